package workflows_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/test/workflowtest"
)

// order taps a recovery and notes the steps in the order they begin.
type order struct {
	mu    sync.Mutex
	steps []string
	at    func(step string) // optional
}

func (o *order) tap(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
	o.mu.Lock()
	o.steps = append(o.steps, step)
	o.mu.Unlock()
	if o.at != nil {
		o.at(step)
	}
	return do()
}

// index is when a step began, or -1.
func (o *order) index(step string) int {
	for i, s := range o.steps {
		if strings.HasPrefix(s, step) {
			return i
		}
	}
	return -1
}

// erp depends on db: its machine is powered on with that of db, and given something to boot when db is
// healthy.
func TestDependentIsHeldInItsLoader(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	on := make(chan struct{})
	o := &order{at: func(step string) {
		switch {
		case strings.HasPrefix(step, "PowerOn(erp)"):
			close(on)
			return
		case strings.HasPrefix(step, "Verify(db)"): // db is not healthy before it was verified
			select {
			case <-on:
			case <-time.After(30 * time.Second):
				t.Error("erp is not powered on before db is healthy")
			}
			return
		case !strings.HasPrefix(step, "ReleaseBoot(erp)"):
			return
		}
		if up, _ := r.healthy([]string{"db"}); len(up) == 0 {
			t.Error("erp is released and db does not serve")
		}
		if l := r.leases()["db"]; !l.Healthy {
			t.Error("erp is released and db is not known to be healthy")
		}
	}}
	e := r.recover(recovery.Request{}, o.tap)
	r.mustBeSound(e)
	if e.run.State != state.RunDone {
		t.Fatalf("%s: %s", e.run.State, e.run.Reason)
	}
	erp := e.results["erp"].Times
	if erp["phone-home"].Before(erp["released"]) || erp["script"].IsZero() {
		t.Errorf("times of erp: %v", erp)
	}
}

// When every slot is taken by a target that can go on, the dependent one is not powered on: it would
// wait in the slot of the one it waits for.
func TestOneSlotIsNotGivenToWhoWaits(t *testing.T) {
	t.Parallel()
	top := small(t)
	p := top.Policies["quick"]
	p.Spec.Recovery.BootsAtOnce = 1
	top.Policies["quick"] = p
	r := newTrial(t, top).burn()
	o := &order{}
	e := r.recover(recovery.Request{}, o.tap)
	r.mustBeSound(e)
	if e.run.State != state.RunDone || o.index("ReleaseBoot(erp)") >= 0 || o.index("PowerOn(erp)") < o.index("Verify(db)") {
		t.Errorf("%s: %s; steps %v", e.run.State, e.run.Reason, o.steps)
	}
}

// db does not come back: the machine that was held for erp is turned off, given back, and used again.
func TestHeldMachineIsGivenBack(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t, "plain")).burn()
	r.dc.Break("b1", workflowtest.NeverPhonesHome)
	o := &order{}
	e := r.recover(recovery.Request{}, o.tap)
	r.mustBeSound(e)
	if e.run.State != state.RunDone || o.index("StopTarget(erp)") < 0 {
		t.Fatalf("%s: %s; %v", e.run.State, e.run.Reason, o.steps)
	}
	for name, m := range r.machines() {
		if name != "b1" && m.Suspect != nil {
			t.Errorf("%s did nothing wrong: %+v", name, m.Suspect)
		}
	}
}

// The machine that was held for erp cannot be turned off again: erp is not started elsewhere before it
// is cut off, and the machine is not used again.
func TestHeldMachineThatDoesNotStop(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t, "plain")).burn()
	r.dc.Break("b1", workflowtest.NeverPhonesHome)
	var held string
	o := &order{}
	o.at = func(step string) {
		if !strings.HasPrefix(step, "StopTarget(erp)") || held != "" {
			return
		}
		held = r.leases()["erp"].Holder.Machine
		r.dc.Break(held, workflowtest.NeverTurnsOff)
	}
	e := r.recover(recovery.Request{}, o.tap)
	r.mustBeSound(e)
	if held == "" || !r.dc.World.Power(held).On {
		t.Fatalf("nothing was held: %q", held)
	}
	m := r.machines()[held]
	if m.Suspect == nil || !strings.Contains(m.Suspect.Reason, "was not seen to stop") || m.Fence == nil {
		t.Errorf("%s: %+v", held, m)
	}
	if r.dc.World.Connected(held) {
		t.Errorf("%s runs and is connected", held)
	}
	if erp := e.results["erp"]; erp.State == "healthy" && erp.Where.Machine == held {
		t.Errorf("erp is said to run where it was not stopped: %+v", erp)
	}
}
