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

// tapping is the worker interceptor that calls a tapFunc.
type tapping struct {
	interceptor.WorkerInterceptorBase
	tap    tapFunc
	flight *sync.WaitGroup

	mu    sync.Mutex
	seen  map[string]int    // executions by name so far
	steps map[string]string // activity id of a workflow -> its step
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
	do := func() (any, error) { return a.Next.ExecuteActivity(ctx, in) }
	if a.t.tap == nil {
		return do()
	}
	info := activity.GetInfo(ctx)
	return a.t.tap(ctx, a.t.step(info, in.Args), int(info.Attempt), do)
}

// step names an execution by its activity, what it is about, and how many such there were before.
func (t *tapping) step(info activity.Info, args []any) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.steps == nil {
		t.seen, t.steps = map[string]int{}, map[string]string{}
	}
	id := info.WorkflowExecution.ID + " " + info.ActivityID
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
