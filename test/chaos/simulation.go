// Package chaos is the deterministic simulation: the product's own workflows and activities recover a data
// centre of test/world on virtual time, while faults drawn from a seed happen to every call they make, to the
// process they run in and to the world itself. After every event the safety rules are checked, and in the
// end, when everything is whole again, that whatever was promised is done.
//
// One seed is one story: it runs in a bubble of testing/synctest, in which one call at a time goes on, so
// that the same seed gives the same trace.
package chaos

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing/synctest"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"
	sdkworker "go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/workflows"
)

// Config of one simulation.
type Config struct {
	Seed     uint64
	Topology *topology.Topology
	Scarce   bool // the topology has not machines enough for everything to come back in the end
	// Deaf switches, fabrics and arrays say that they have taken away what they were asked to, and do not. No control
	// plane can bear that: it is how a test finds out whether the checker would notice.
	Deaf  bool
	Dir   string // for the store's file; memory-backed where there is such a thing
	Trace bool   // keep the trace as text
}

// Report is how one simulation ended.
type Report struct {
	Seed   uint64
	Steps  int           // events
	Took   time.Duration // of virtual time
	Hash   uint64        // of the trace
	Fired  map[Fault]int
	Ends   map[state.RunState]int
	Broken []string // rules, with what broke them
	Trace  []string
}

// simulation is one data centre with a control plane to which things happen.
type simulation struct {
	*schedule
	topo   *topology.Topology
	kv     store.Store // without cuts
	dc     *workflowtest.DataCentre
	svc    *recovery.Service
	worker *worker
	engine *engine
	check  *checker
	plot   []event // in order of time
	scarce bool
	only   bool // nothing burned for good: whoever ran in the rack is to run there in the end, or was moved with reason
}

var quiet = slog.New(slog.DiscardHandler)

// Run simulates one seed. It must be called in a bubble of testing/synctest.
func Run(c Config) (Report, error) {
	s := &simulation{schedule: newSchedule(c.Seed, c.Trace), topo: c.Topology, scarce: c.Scarce}
	if err := s.build(c); err != nil {
		return Report{}, err
	}
	over := s.engine.run(s)
	s.write()
	s.play()
	s.heal()
	s.engine.stop()
	for done := false; !done; {
		s.step(time.Minute)
		select {
		case <-over:
			done = true
		default:
		}
	}
	s.drain()
	r := Report{Seed: c.Seed, Steps: s.steps, Took: time.Since(s.began), Hash: s.hash.Sum64(), Fired: s.fired, Ends: s.engine.ends,
		Broken: s.check.broken, Trace: s.lines}
	return r, s.kv.Close()
}

func (s *simulation) build(c Config) error {
	ctx := context.Background()
	path := filepath.Join(c.Dir, fmt.Sprintf("%d.db", c.Seed))
	kv, err := embedded.Open(embedded.Config{Path: path})
	if err != nil {
		return err
	}
	_ = os.Remove(path) // the file lives as long as it is open
	s.kv = kv
	s.worker = newWorker(s.schedule)
	s.engine = newEngine(s)
	booting := &cutStore{Store: kv, s: s.schedule, sound: true}
	if s.dc, err = workflowtest.New(ctx, workflowtest.Config{Topology: c.Topology, Store: booting, Signals: s.engine, Live: true}); err != nil {
		return err
	}
	s.worker.givesUp = s.dc.World.GiveUp
	s.check = newChecker(s)
	revs := &revision.Log{Store: kv, Now: time.Now}
	if _, _, err := revs.Apply(ctx, c.Topology, "ann", "", -1); err != nil {
		return err
	}
	if _, err := recovery.Adopt(ctx, kv, c.Topology, time.Now()); err != nil {
		return err
	}
	faulty := &cutStore{Store: s.dc.Follow(kv), s: s.schedule}
	acts := &workflows.Activities{Store: faulty, Topology: revs.Topology, Revisions: revs, Devices: &devices{s.dc, s.schedule, s.check, c.Deaf},
		Observer: s.dc, Probe: s.dc, Now: time.Now, Log: quiet}
	s.svc = &recovery.Service{Store: faulty, Topology: revs.Topology, Engine: s.engine, Judge: s.dc.Judge, PowerOf: s.dc.PowerOf, Now: time.Now, Log: quiet}
	s.engine.setup(acts)
	return nil
}

// drain lets what is still on its way arrive, so that nothing outlives the simulation.
func (s *simulation) drain() {
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); {
		s.step(time.Until(end))
	}
	synctest.Wait()
}

// engine runs workflows on the Temporal SDK's test environment, as children of one that never ends: so that
// something always runs, and the environment's clock goes with the bubble's and does not leap.
type engine struct {
	s   *simulation
	env *testsuite.TestWorkflowEnvironment

	mu      sync.Mutex
	started map[string]bool
	ended   map[string]bool
	ends    map[state.RunState]int
	over    chan struct{}
}

// heart is the activity that beats as long as the simulation lives.
const heart = "heart"

const (
	signalStart  = "start"
	signalCancel = "cancel"
	signalStop   = "stop"
)

func newEngine(s *simulation) *engine {
	return &engine{s: s, started: map[string]bool{}, ended: map[string]bool{}, ends: map[state.RunState]int{}, over: make(chan struct{})}
}

func (e *engine) setup(acts *workflows.Activities) {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(sdklog.NewStructuredLogger(quiet))
	suite.SetDisableRegistrationAliasing(true)
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(100 * 365 * 24 * time.Hour)
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: "chaos", TaskQueue: workflows.TaskQueue})
	env.SetActivityTimeoutGracePeriod(365 * 24 * time.Hour) // the worker minds them, for each attempt
	env.SetOnActivityCanceledListener(e.s.worker.cancel)
	env.SetWorkerOptions(sdkworker.Options{DisableRegistrationAliasing: true, Interceptors: []interceptor.WorkerInterceptor{e.s.worker}})
	workflows.Register(env, acts)
	env.RegisterWorkflowWithOptions(e.all, workflow.RegisterOptions{Name: "all"})
	env.RegisterActivityWithOptions(func(context.Context) error { <-e.over; return nil }, activity.RegisterOptions{Name: heart})
	e.env = env
}

func (e *engine) run(s *simulation) (over chan error) {
	over = make(chan error, 1)
	go func() {
		e.env.ExecuteWorkflow("all")
		over <- e.env.GetWorkflowError()
	}()
	synctest.Wait()
	return over
}

func (e *engine) stop() {
	close(e.over)
	e.post(func() { e.env.SignalWorkflow(signalStop, nil) })
}

// post does something on the environment's own loop, which alone may touch it.
func (e *engine) post(f func()) { e.env.RegisterDelayedCallback(f, 0) }

// all is the workflow whose children the runs are.
func (e *engine) all(ctx workflow.Context) error {
	beat := workflow.ExecuteActivity(workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 10 * 365 * 24 * time.Hour}), heart)
	start, cancel := workflow.GetSignalChannel(ctx, signalStart), workflow.GetSignalChannel(ctx, signalCancel)
	stop := workflow.GetSignalChannel(ctx, signalStop)
	cancels := map[string]workflow.CancelFunc{}
	for stopped := false; !stopped; {
		workflow.NewSelector(ctx).
			AddReceive(start, func(c workflow.ReceiveChannel, _ bool) {
				var r state.Run
				c.Receive(ctx, &r)
				one, end := workflow.WithCancel(workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{WorkflowID: workflows.RecoveryID(r.ID), WaitForCancellation: true}))
				cancels[r.ID] = end
				workflow.Go(one, func(ctx workflow.Context) { e.child(ctx, r) })
			}).
			AddReceive(cancel, func(c workflow.ReceiveChannel, _ bool) {
				var id string
				c.Receive(ctx, &id)
				if end := cancels[id]; end != nil {
					end()
				}
			}).
			AddReceive(stop, func(c workflow.ReceiveChannel, _ bool) { stopped = c.Receive(ctx, nil) }).
			Select(ctx)
	}
	return beat.Get(ctx, nil)
}

func (e *engine) child(ctx workflow.Context, r state.Run) {
	procedure := map[state.RunKind]any{state.KindRecover: workflows.Recover, state.KindPlace: workflows.PlaceWorkload,
		state.KindRelease: workflows.ReleaseWorkload}[r.Kind]
	var res workflows.RecoverResult
	err := workflow.ExecuteChildWorkflow(ctx, procedure, workflows.RecoverInput{Run: r.ID, Domain: r.Domain, Runbook: r.Runbook}).Get(ctx, &res)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended[r.ID] = true
	if err != nil {
		res = workflows.RecoverResult{State: state.RunFailed, Reason: err.Error()}
	}
	e.ends[res.State]++
	e.s.note("engine", r.ID, string(res.State)+" "+res.Reason)
}

// Start implements recovery.Engine.
func (e *engine) Start(_ context.Context, r state.Run) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.started[r.ID] {
		e.started[r.ID] = true
		e.post(func() { e.env.SignalWorkflow(signalStart, r) })
	}
	return nil
}

// Approve implements recovery.Engine.
func (e *engine) Approve(_ context.Context, run string, by state.Approval) error {
	e.post(func() { _ = e.env.SignalWorkflowByID(workflows.RecoveryID(run), workflows.SignalApprove, by) })
	return nil
}

// Cancel implements recovery.Engine.
func (e *engine) Cancel(_ context.Context, run string) error {
	e.post(func() { e.env.SignalWorkflow(signalCancel, run) })
	return nil
}

// Reached implements bootplane.Signaller.
func (e *engine) Reached(_ context.Context, id string, m workflows.Milestone) error {
	e.post(func() { _ = e.env.SignalWorkflowByID(id, workflows.SignalMilestone, m) })
	return nil
}

// busy lists the runs that have not ended.
func (e *engine) busy() (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.started) - len(e.ended)
}
