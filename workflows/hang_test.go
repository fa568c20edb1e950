package workflows_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/workflowtest"
)

// hurried is a trial in which a device is not waited for long.
func hurried(t *testing.T, more ...string) *trial {
	top := small(t, more...)
	p := top.Policies["quick"]
	p.Spec.Fencing.PowerLimit, p.Spec.Fencing.DeviceLimit = topology.Duration(time.Second), topology.Duration(time.Second)
	top.Policies["quick"] = p
	return newTrial(t, top).burn()
}

// The BMC of a victim hangs: its machine is not to be had, and everything else goes on.
func TestHangingVictim(t *testing.T) {
	t.Parallel()
	r := hurried(t)
	r.dc.Fail("machine/b3", workflowtest.Failure{Hang: true})
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.run.State != state.RunPartial || e.res.Recovered != 3 {
		t.Errorf("%s: %s", e.run.State, e.run.Reason)
	}
	if erp := e.results["erp"]; !strings.Contains(strings.Join(erp.Tried, " "), "batch could not be evicted") {
		t.Errorf("the report does not say why erp is down: %+v", erp)
	}
}

// The BMC of a target hangs from its power-on to its stop: it is replaced, and its silence named.
func TestHangingTarget(t *testing.T) {
	t.Parallel()
	r := hurried(t, "plain")
	r.dc.Fail("machine/b1", workflowtest.Failure{Hang: true})
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.run.State != state.RunDone {
		t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.results)
	}
	if db := e.results["db"]; !strings.Contains(strings.Join(db.Tried, " "), "b1: ") || !strings.Contains(strings.Join(db.Tried, " "), "no answer") {
		t.Errorf("the report does not name b1 and its silence: %+v", db)
	}
}

// A switch hangs while the targets are connected: what hangs on it is lost for the round, and named.
func TestHangingSwitch(t *testing.T) {
	t.Parallel()
	r := hurried(t, "plain")
	r.dc.Fail("switch/tor-b", workflowtest.Failure{Hang: true})
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if !e.run.State.Ended() || e.res.Recovered != 0 {
		t.Errorf("%s: %s", e.run.State, e.run.Reason)
	}
	for w, x := range e.results {
		if !strings.Contains(x.Reason+strings.Join(x.Tried, " "), "tor-b") {
			t.Errorf("%s stays down and the report does not name tor-b: %+v", w, x)
		}
	}
}

// The BMC of a target turns it on and then hangs: the target itself is heard of, so it is on.
func TestTargetSpeaksForItself(t *testing.T) {
	t.Parallel()
	r := hurried(t)
	r.dc.Fail("machine/b1", workflowtest.Failure{Hang: true, After: true})
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if db := e.results["db"]; e.run.State != state.RunDone || db.Where.Machine != "b1" {
		t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, db)
	}
}

// A newer run has taken the victim's lease and given it back: its machine is none of this run's business.
func TestVictimOfStaleRun(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	e := r.recover(recovery.Request{}, func(ctx context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if step == "Evict#1" {
			if _, err := state.Update(ctx, r.kv, state.LeasesAt+"batch", func(l *state.Lease) error {
				l.Epoch, l.Run = 99, "workload-batch-1"
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
		return do()
	})
	r.mustBeSound(e)
	if up, _ := r.healthy([]string{"batch"}); len(up) == 0 {
		t.Errorf("batch was stopped; %+v", r.leases()["batch"])
	}
}

// A victim that is turned off although the answer says otherwise is not said to run.
func TestVictimIsOffAllTheSame(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	r.dc.Fail("machine/b3", workflowtest.Failure{Err: down("b3"), After: true, Times: 1})
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if l := r.leases()["batch"]; r.dc.World.Power("b3").On || l.Healthy || l.LastHolder() != (policies.Where{}) {
		t.Errorf("batch is off and its lease says %+v", l)
	}
}
