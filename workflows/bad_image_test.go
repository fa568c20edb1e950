package workflows_test

import (
	"context"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/workflows"
)

// An image that fails its checksum is found out before anything is touched for it.
func TestBadImageIsLeftOut(t *testing.T) {
	t.Parallel()
	top := small(t, "plain")
	r := newTrial(t, top).burn()
	kernel := string(top.Images[top.Workloads["db"].Spec.Image].Spec.Kernel)
	r.acts.CheckImage = func(_ context.Context, digest string) error {
		if digest == kernel {
			return &fault.Error{Kind: fault.Unverified, Where: "image " + digest, What: "check", Evidence: "content is another"}
		}
		return nil
	}
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if strings.HasPrefix(step, "PowerOn(db)") {
			r.Error("a machine was turned on for an image that cannot be booted")
		}
		return do()
	})
	r.mustBeSound(e)
	if db := e.results["db"]; db.State != "left-out" || db.Constraint != workflows.ConstraintImage || !strings.Contains(db.Reason, "content is another") {
		t.Errorf("%+v", db)
	}
}

// An image that the boot servers refuse ends the boot at once, and its machine is as good as before: off, neither
// suspect nor fenced.
func TestRefusedImageIsNotTheMachinesFault(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t, "plain")).burn()
	r.dc.Break("b1", workflowtest.NeverPhonesHome)
	refused := 0
	e := r.recover(recovery.Request{}, func(ctx context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if !strings.HasPrefix(step, "PowerOn(db)") {
			return do()
		}
		b, _, err := state.Load[state.Boot](ctx, r.kv, state.BootsAt+"b1")
		if err != nil || b.Workload != "db" {
			return do()
		}
		refused++
		_ = r.Reached(ctx, b.Workflow, workflows.Milestone{Kind: workflows.MilestoneRefused, Epoch: b.Epoch, Detail: "the kernel is not served"})
		return do()
	})
	r.mustBeSound(e)
	b1 := r.machines()["b1"]
	if refused == 0 || b1.Suspect != nil || b1.Fence != nil {
		t.Errorf("refused %d times; the machine: %+v", refused, b1)
	}
	if db := e.results["db"]; len(db.Tried) == 0 && !strings.Contains(db.Reason, "the kernel is not served") {
		t.Errorf("%+v", db)
	}
}
