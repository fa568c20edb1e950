package workflows_test

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/workflows"
)

// slow is a store that answers nothing until its caller was heard to be alive, and then refuses for good.
type slow struct {
	store.Store
	alive <-chan struct{}
}

func (s slow) wait() error {
	select {
	case <-s.alive:
	case <-time.After(10 * time.Second):
	}
	return &fault.Error{Kind: fault.Unauthorized, What: "the store does not let us in"}
}

func (s slow) Get(context.Context, string) (store.Entry, error)            { return store.Entry{}, s.wait() }
func (s slow) List(context.Context, string) ([]store.Entry, uint64, error) { return nil, 0, s.wait() }
func (s slow) Txn(context.Context, ...store.Op) error                      { return s.wait() }

// A store that takes longer than the heartbeat timeout is no crash: every activity says that it is alive while
// it waits.
func TestEveryActivityBeats(t *testing.T) {
	t.Parallel()
	methods := reflect.TypeFor[*workflows.Activities]()
	tried := 0
	for i := range methods.NumMethod() {
		m := methods.Method(i)
		if m.Type.NumIn() < 2 || m.Type.In(1) != reflect.TypeFor[context.Context]() || slices.Contains([]string{"PlacementInput", "CheckCapture", "HostReady"}, m.Name) {
			continue // two that are no activities, and one that asks a device first
		}
		tried++
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			alive, beats := make(chan struct{}), 0
			var once sync.Once
			var suite testsuite.WorkflowTestSuite
			suite.SetLogger(sdklog.NewStructuredLogger(quiet))
			suite.SetDisableRegistrationAliasing(true)
			env := suite.NewTestActivityEnvironment()
			env.SetTestTimeout(time.Minute)
			env.SetOnActivityHeartbeatListener(func(*activity.Info, converter.EncodedValues) {
				once.Do(func() { beats++; close(alive) })
			})
			acts := &workflows.Activities{Store: slow{alive: alive}, Now: time.Now, Log: quiet}
			env.RegisterActivity(acts)
			var args []any
			for in := 2; in < m.Type.NumIn(); in++ {
				v := reflect.New(m.Type.In(in)).Elem().Interface()
				if _, is := v.(workflows.Scope); is {
					v = workflows.Scope{Affected: []workflows.Affected{{Workload: "db"}}}
				}
				args = append(args, v)
			}
			if _, err := env.ExecuteActivity(m.Name, args...); err == nil {
				t.Error("it did not go to the store")
			}
			if beats == 0 {
				t.Error("no sign of life while the store does not answer")
			}
		})
	}
	if tried < 20 {
		t.Errorf("only %d activities were tried", tried)
	}
}
