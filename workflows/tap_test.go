package workflows_test

import (
	"context"
	"fmt"
	"sync"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/interceptor"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/workflows"
)

// tapFunc stands between the engine and an activity. step names the execution: the same in every run of
// the same recovery, whatever ran beside it; attempt counts from 1.
type tapFunc func(ctx context.Context, step string, attempt int, do func() (any, error)) (any, error)

// tapping is the worker interceptor that calls a tapFunc. It also does what the engine does for
// activities that wait for their cancellation and the test environment does not: when a workflow is
// cancelled, what it starts next begins only after the cancelled activities have ended.
type tapping struct {
	interceptor.WorkerInterceptorBase
	tap    tapFunc
	flight sync.WaitGroup

	mu        sync.Mutex
	seen      map[string]int           // executions by name so far
	steps     map[string]string        // activity -> its step
	flying    map[string]chan struct{} // activity -> closed when it ends
	cancelled map[string]bool          // activities
}

func newTapping(tap tapFunc) *tapping {
	if tap == nil {
		tap = func(_ context.Context, _ string, _ int, do func() (any, error)) (any, error) { return do() }
	}
	return &tapping{tap: tap, seen: map[string]int{}, steps: map[string]string{}, flying: map[string]chan struct{}{}, cancelled: map[string]bool{}}
}

func activityKey(i activity.Info) string { return i.WorkflowExecution.ID + " " + i.ActivityID }

// cancel is called by the environment's loop before the workflow goes on.
func (t *tapping) cancel(i *activity.Info) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancelled[activityKey(*i)] = true
}

// begin registers an activity and returns what it has to wait for; ok is false for one that was
// cancelled before it began.
func (t *tapping) begin(key string) (wait []chan struct{}, done chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cancelled[key] {
		return nil, nil, false
	}
	for k, ch := range t.flying {
		if t.cancelled[k] {
			wait = append(wait, ch)
		}
	}
	done = make(chan struct{})
	t.flying[key] = done
	return wait, done, true
}

func (t *tapping) end(key string, done chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(done)
	if t.flying[key] == done {
		delete(t.flying, key)
	}
}

func (t *tapping) InterceptActivity(_ context.Context, next interceptor.ActivityInboundInterceptor) interceptor.ActivityInboundInterceptor {
	return &tapped{interceptor.ActivityInboundInterceptorBase{Next: next}, t}
}

type tapped struct {
	interceptor.ActivityInboundInterceptorBase
	t *tapping
}

func (a *tapped) ExecuteActivity(ctx context.Context, in *interceptor.ExecuteActivityInput) (any, error) {
	a.t.flight.Add(1)
	defer a.t.flight.Done()
	info := activity.GetInfo(ctx)
	key := activityKey(info)
	wait, done, ok := a.t.begin(key)
	if !ok {
		return nil, context.Canceled
	}
	defer a.t.end(key, done)
	for _, ch := range wait {
		<-ch
	}
	do := func() (any, error) { return a.Next.ExecuteActivity(ctx, in) }
	return a.t.tap(ctx, a.t.step(info, in.Args), int(info.Attempt), do)
}

// step names an execution by its activity, what it is about, and how many such there were before.
func (t *tapping) step(info activity.Info, args []any) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := activityKey(info)
	if s, again := t.steps[id]; again {
		return s
	}
	name := info.ActivityType.Name
	for _, a := range args {
		if about := subject(a); about != "" {
			name += "(" + about + ")"
		}
	}
	t.seen[name]++
	t.steps[id] = fmt.Sprintf("%s#%d", name, t.seen[name])
	return t.steps[id]
}

func subject(arg any) string {
	switch v := arg.(type) {
	case workflows.FenceInput:
		return v.Device
	case workflows.DeviceStep:
		return v.Device
	case workflows.BootInput:
		return v.Name
	case state.Phase:
		if v.End.IsZero() {
			return v.Name + " begins"
		}
		return v.Name + " ends"
	}
	return ""
}
