package workflows_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/workflows"
)

// pressed is a data centre whose machines call before each power-on.
type pressed struct {
	workflows.Devices
	before func(ctx context.Context, machine string) error
}

func (p pressed) Machine(ctx context.Context, m topology.Machine) (workflows.MachineControl, error) {
	c, err := p.Devices.Machine(ctx, m)
	return pressedControl{c, m.Meta.Name, p.before}, err
}

type pressedControl struct {
	workflows.MachineControl
	name   string
	before func(ctx context.Context, machine string) error
}

func (c pressedControl) On(ctx context.Context, boot bmc.BootOverride, resend time.Duration) error {
	if err := c.before(ctx, c.name); err != nil {
		return err
	}
	return c.MachineControl.On(ctx, boot, resend)
}

// change changes a machine's record, as another run or a person does.
func (r *trial) change(machine string, f func(*state.Machine)) {
	r.Helper()
	if _, err := state.Update(r.Context(), r.kv, state.MachinesAt+machine, func(m *state.Machine) error { f(m); return nil }); err != nil {
		r.Error(err)
	}
}

// A power-on that is sent again and again is sent no more when the machine is not the run's any more. What the
// other run has made of it is left alone.
func TestPowerOnEndsWithTheClaim(t *testing.T) {
	t.Parallel()
	theirs := state.Claim{Run: "feed-9-1", Epoch: 99, For: "other"}
	for name, c := range map[string]struct {
		lose func(*state.Machine)
		on   bool // by the other run
	}{
		"claimed by another run": {func(m *state.Machine) { m.Claim, m.Epoch = &theirs, 99 }, true},
		"fenced": {func(m *state.Machine) {
			m.Claim, m.Fence, m.Epoch = nil, &state.FenceState{Run: "feed-9-1", Epoch: 99}, 99
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t, "plain")).burn()
			var late atomic.Bool
			r.acts.Devices = pressed{r.dc, func(ctx context.Context, machine string) error {
				if machine != "b1" {
					return nil
				}
				r.change("b1", c.lose)
				select {
				case <-ctx.Done():
					if c.on {
						if err := r.dc.World.Press("b1", true, "operator"); err != nil {
							t.Error(err)
						}
					}
					return ctx.Err()
				case <-time.After(20 * time.Second):
					late.Store(true)
					return nil
				}
			}}
			e := r.recover(recovery.Request{}, nil)
			if late.Load() || slices.Contains(r.journal(), "machine/b1 power@0 on") {
				t.Error("b1 was turned on although it is another run's")
			}
			if on := r.dc.World.Power("b1").On; on != c.on {
				t.Errorf("b1 is on: %t", on)
			}
			// It may have been turned on all the same, and is not this run's to cut off: db starts nowhere else.
			if db := e.results["db"]; db.Constraint != "fencing" || !strings.Contains(db.Reason, "b1") || e.res.Recovered != 3 {
				t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, db)
			}
			if m := r.machines()["b1"]; c.on && (m.Claim == nil || *m.Claim != theirs || m.Suspect != nil || m.Fence != nil) {
				t.Errorf("the other run's machine: %+v", m)
			}
		})
	}
}

// The BMC takes its time: what a machine may fetch with its token stays good until its boot is due, counted from
// when it was read as on.
func TestTokenOutlivesASlowPowerOn(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	p := r.topo.Policies["quick"].Spec.Recovery
	good := p.BootDeadline.Or(0) + p.HealthDeadline.Or(0)
	var ahead, on atomic.Int64 // on is when b1 turned on
	now := func() time.Time { return r.dc.Now().Add(time.Duration(ahead.Load())) }
	r.acts.Now = now
	start := now()
	boot := func(name string) state.Boot {
		b, _, err := state.Load[state.Boot](t.Context(), r.kv, state.BootsAt+name)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	r.acts.Devices = pressed{r.dc, func(_ context.Context, machine string) error {
		if machine != "b1" {
			return nil
		}
		for range 5 { // in all not longer than the engine lets it
			ahead.Add(int64(10 * time.Second))
			if b := boot(machine); !b.Expires.After(now()) {
				t.Errorf("while it is turned on its token is good for %s", b.Expires.Sub(now()))
			}
		}
		on.Store(int64(now().Sub(start)))
		return nil
	}}
	r.dc.Break("b1", workflowtest.NeverPhonesHome)
	read := false
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if step != "PowerOn(db)#1" {
			return do()
		}
		read = true
		v, err := do()
		if b := boot("b1"); b.Expires.Before(start.Add(time.Duration(on.Load()) + good)) {
			t.Errorf("when it is on its token is good for %s more", b.Expires.Sub(start)-time.Duration(on.Load()))
		}
		return v, err
	})
	r.mustBeSound(e)
	if !read {
		t.Error("db was not turned on")
	}
}
