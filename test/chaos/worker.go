package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/workflows"
)

// process is one attempt at one activity, in a worker that may crash or be paused.
type process struct {
	name         string
	run          string // workflow it works for
	dead, paused bool   // guarded by the schedule's lock
	lost         chan struct{}
	lostOnce     sync.Once
}

type processKey struct{}

func processOf(ctx context.Context) *process {
	p, _ := ctx.Value(processKey{}).(*process)
	return p
}

// worker runs activities. The engine that it works for loses it when it crashes, or says nothing for the
// heartbeat's timeout, and then gives the activity to another one.
type worker struct {
	interceptor.WorkerInterceptorBase
	s       *schedule
	givesUp func(workload string, epoch uint64) // is told whose start is about to be undone

	mu         sync.Mutex
	alive      map[*process]bool
	flying     map[string]chan struct{} // activity -> closed when it ends
	cancelled  map[string]bool          // activities
	executions map[string]int           // by name
}

func newWorker(s *schedule) *worker {
	return &worker{s: s, alive: map[*process]bool{}, flying: map[string]chan struct{}{}, cancelled: map[string]bool{}, executions: map[string]int{}}
}

func key(i activity.Info) string { return i.WorkflowExecution.ID + " " + i.ActivityID }

// cancel is called by the environment before the workflow goes on. The engine lets a workflow wait for the end
// of what it cancelled, and the test environment does not: begin does it instead.
func (w *worker) cancel(i *activity.Info) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancelled[key(*i)] = true
}

func (w *worker) begin(k string) (wait []chan struct{}, done chan struct{}, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancelled[k] {
		return nil, nil, false
	}
	for k, ch := range w.flying {
		if w.cancelled[k] {
			wait = append(wait, ch)
		}
	}
	done = make(chan struct{})
	w.flying[k] = done
	return wait, done, true
}

// name says which execution of an activity this is, the same in every run of a seed: the engine's own number for
// it depends on who was first of those that start at once.
func (w *worker) name(i activity.Info, args []any) string {
	about := fnv.New32a()
	_ = json.NewEncoder(about).Encode(args) // what the engine could encode this can
	name := fmt.Sprintf("%s %s-%08x", i.WorkflowExecution.ID, i.ActivityType.Name, about.Sum32())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.executions[name]++
	return fmt.Sprintf("%s.%d", name, w.executions[name])
}

func (w *worker) end(k string, done chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(done)
	if w.flying[k] == done {
		delete(w.flying, k)
	}
}

// crash ends every activity that runs, wherever it is. The engine finds out when missed is called.
func (w *worker) crash() (missed func()) {
	var died []*process
	w.each(func(p *process) {
		p.dead = true
		died = append(died, p)
	})
	return func() { forsake(died) }
}

// pause stops every activity that runs where it is, and resume lets it go on. The engine finds out when missed is
// called.
func (w *worker) pause() (missed, resume func()) {
	var paused []*process
	w.each(func(p *process) {
		p.paused = true
		paused = append(paused, p)
	})
	return func() { forsake(paused) }, func() {
		w.s.mu.Lock()
		defer w.s.mu.Unlock()
		for _, p := range paused {
			p.paused = false
		}
	}
}

func forsake(ps []*process) {
	for _, p := range ps {
		p.lostOnce.Do(func() { close(p.lost) })
	}
}

func (w *worker) each(f func(*process)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	for p := range w.alive {
		f(p)
	}
}

// InterceptActivity implements interceptor.WorkerInterceptor.
func (w *worker) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &working{interceptor.ActivityInboundInterceptorBase{Next: next}, w}
}

type working struct {
	interceptor.ActivityInboundInterceptorBase
	w *worker
}

// ExecuteActivity implements interceptor.ActivityInboundInterceptor.
func (a *working) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	info := activity.GetInfo(ctx)
	if info.ActivityType.Name == heart {
		return a.Next.ExecuteActivity(ctx, in)
	}
	wait, done, ok := a.w.begin(key(info))
	if !ok {
		return nil, context.Canceled
	}
	for _, ch := range wait {
		<-ch
	}
	defer a.w.end(key(info), done)
	for _, arg := range in.Args {
		if b, is := arg.(workflows.BootInput); is && info.ActivityType.Name == "StopTarget" && !b.Host {
			a.w.givesUp(b.Name, b.Epoch)
		}
	}
	p := &process{name: a.w.name(info, in.Args), run: info.WorkflowExecution.ID, lost: make(chan struct{})}
	a.w.mu.Lock()
	a.w.alive[p] = true
	a.w.mu.Unlock()
	s := a.w.s
	ctx, cancel := context.WithCancel(context.WithValue(ctx, processKey{}, p))
	type answer struct {
		v   any
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		defer func() {
			a.w.mu.Lock()
			delete(a.w.alive, p)
			a.w.mu.Unlock()
		}()
		if s.cut(ctx, internal, "begins").fault == Crashed {
			return
		}
		v, err := a.Next.ExecuteActivity(ctx, in)
		answered <- answer{v, err}
	}()
	limit := time.NewTimer(time.Until(info.Deadline) * 95 / 100)
	defer limit.Stop()
	anew := context.WithValue(context.Background(), processKey{}, &process{name: p.name})
	for {
		select {
		case r := <-answered:
			if a.w.isDead(p) {
				continue // the dead do not answer
			}
			cancel()
			if s.cut(anew, reply, "ends").fault == Redone && r.err == nil {
				return nil, lost("its answer did not arrive")
			}
			return r.v, r.err
		case <-p.lost:
			// The process may still be there and act: it hears of its end only when it speaks to the engine.
			time.AfterFunc(1500*time.Millisecond, cancel)
			s.cut(anew, internal, "is given up")
			return nil, lost("its worker does not answer")
		case <-limit.C:
			cancel()
			s.cut(anew, internal, "is out of time")
			return nil, lost("out of time")
		}
	}
}

func (w *worker) isDead(p *process) bool {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return p.dead
}

// InterceptWorkflow implements interceptor.WorkerInterceptor.
func (w *worker) InterceptWorkflow(ctx workflow.Context, next interceptor.WorkflowInboundInterceptor) interceptor.WorkflowInboundInterceptor {
	return &inbound{interceptor.WorkflowInboundInterceptorBase{Next: next}}
}

type inbound struct {
	interceptor.WorkflowInboundInterceptorBase
}

// Init implements interceptor.WorkflowInboundInterceptor.
func (i *inbound) Init(out interceptor.WorkflowOutboundInterceptor) error {
	return i.Next.Init(&outbound{interceptor.WorkflowOutboundInterceptorBase{Next: out}})
}

// outbound takes the heartbeats from activities: the environment would count them through their retries as well,
// and not try again what has missed one. The worker does it instead.
type outbound struct {
	interceptor.WorkflowOutboundInterceptorBase
}

// ExecuteActivity implements interceptor.WorkflowOutboundInterceptor.
func (o *outbound) ExecuteActivity(ctx workflow.Context, name string, args ...any) workflow.Future {
	opts := workflow.GetActivityOptions(ctx)
	opts.HeartbeatTimeout = 0
	return o.Next.ExecuteActivity(workflow.WithActivityOptions(ctx, opts), name, args...)
}

func lost(why string) error { return temporal.NewApplicationError(why, "timeout") }
