package workflows_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"go.temporal.io/sdk/testsuite"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
)

// hooked is the store of a trial's activities with something that happens to its writes.
type hooked struct {
	store.Store
	txn func(ctx context.Context, do func() error, ops []store.Op) error
}

// Txn implements store.Store.
func (h hooked) Txn(ctx context.Context, ops ...store.Op) error {
	return h.txn(ctx, func() error { return h.Store.Txn(ctx, ops...) }, ops)
}

// A machine that a cancelled run gives back may be claimed and booted by another run at once: its boot
// record is not taken for one of the run that ends.
func TestGivenBackMachineIsTaken(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	taken := map[string]bool{}
	r.acts.Store = hooked{r.acts.Store, func(ctx context.Context, do func() error, ops []store.Op) error {
		if err := do(); err != nil {
			return err
		}
		for _, op := range ops {
			name, is := strings.CutPrefix(op.Key, state.MachinesAt)
			if !is || taken[name] {
				continue
			}
			m, err := state.Decode[state.Machine](store.Entry{Value: op.Value})
			if err != nil || m.Claim != nil || m.Fence != nil || m.Suspect != nil || m.Host != nil {
				continue
			}
			taken[name] = true
			if err := state.ClaimMachine(ctx, r.kv, name, state.Claim{Run: "feed-9-1", Epoch: 99, For: "other"}); err != nil {
				t.Error(err)
			}
			if _, err := state.Update(ctx, r.kv, state.BootsAt+name, func(b *state.Boot) error {
				*b = state.Boot{Name: name, Machine: name, Run: "feed-9-1", Epoch: 99, Workflow: "boot/feed-9-1/1/workload/other"}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
		return nil
	}}
	r.suffer(recoverRackA, "RecordPhase(boot begins)#1", cancelled)
	if len(taken) == 0 {
		t.Fatal("no machine was given back")
	}
	for name := range taken {
		if b, _, err := state.Load[state.Boot](t.Context(), r.kv, state.BootsAt+name); err != nil || b.Run != "feed-9-1" {
			t.Errorf("the other run's boot record for %s: %+v, %v", name, b, err)
		}
	}
}

// A run is cancelled while the store does not take one of its writes, or takes it and does not say so: what
// an activity had begun stays as it is. A later run finds nothing that it cannot bring back.
func TestCancelledAtEveryWrite(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		for n := int64(1); ; n++ {
			var writes atomic.Int64
			t.Run(fmt.Sprintf("%d, done %t", n, done), func(t *testing.T) {
				r := newTrial(t, small(t)).burn()
				plain := r.acts.Store
				var env *testsuite.TestWorkflowEnvironment
				r.acts.Store = hooked{plain, func(_ context.Context, do func() error, _ []store.Op) error {
					if writes.Add(1) != n {
						return do()
					}
					env.CancelWorkflow()
					if done {
						if err := do(); err != nil {
							return err
						}
					}
					return &fault.Error{Kind: fault.Unreachable, What: "no answer from the store here"}
				}}
				e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
					if strings.HasPrefix(step, "StopTarget(") {
						r.giveUp()
					}
					return do()
				}, func(e *testsuite.TestWorkflowEnvironment) { env = e })
				r.acts.Store = plain
				r.mustBeSound(e)
				r.recoverAgain()
			})
			if writes.Load() < n {
				break // that one was not disturbed
			}
		}
	}
}
