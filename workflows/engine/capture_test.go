package engine_test

import (
	"context"
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/workflows"
)

// mending are devices among which a machine's disk is sound again from its nth opening on.
type mending struct {
	workflows.Devices
	dc     *workflowtest.DataCentre
	opened int
}

// Machine implements workflows.Devices. It is opened to look at its power, and then for each boot twice.
func (m *mending) Machine(ctx context.Context, t topology.Machine) (workflows.MachineControl, error) {
	if m.opened++; m.opened == 4 {
		m.dc.Break(t.Meta.Name, workflowtest.Sound)
	}
	return m.Devices.Machine(ctx, t)
}

// TestCaptures runs copies of a disk on the real engine, see TestProcedures.
func TestCaptures(t *testing.T) {
	for name, c := range map[string]struct {
		defect workflowtest.Defect
		ends   state.RunState
		says   string
		boots  int
		mends  bool
	}{
		"capture":         {workflowtest.Sound, state.RunDone, "sha256:", 1, false},
		"capture-resumed": {workflowtest.NeverServes, state.RunDone, "sha256:", 2, true},
		"capture-failed":  {workflowtest.ReadsBadly, state.RunFailed, "read error at LBA 4711", 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlant(t, func(a *workflows.Activities) {
				if dc := a.Devices.(*workflowtest.DataCentre); c.mends {
					a.Devices = &mending{Devices: dc, dc: dc}
				}
			})
			p.dc.Break("b1", c.defect)
			r, _, err := p.svc.StartCapture(t.Context(), state.CaptureRequest{Machine: "b1", Disk: "serial:S1", Volume: "copy"}, "ann")
			if r = p.finish(r, err); r.State != c.ends || !strings.Contains(r.Reason, c.says) {
				t.Fatalf("%s: %s", r.State, r.Reason)
			}
			got, _, err := state.Load[state.Capture](t.Context(), p.svc.Store, state.CapturesAt+r.ID)
			if err != nil || got.Attempts != c.boots {
				t.Errorf("%d boots, %v", got.Attempts, err)
			}
			if p.dc.World.Power("b1").On {
				t.Error("the machine is still on")
			}
			p.keep(name, workflows.RecoveryID(r.ID))
		})
	}
}
