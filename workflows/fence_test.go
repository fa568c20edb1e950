package workflows_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/test/workflowtest"
)

// down is what a device says that refuses for good.
func down(where string) error {
	return &fault.Error{Kind: fault.Unauthorized, Where: where, What: "change", Evidence: "credentials refused"}
}

// halfBurn makes the fire that lies: the rack reads as burned, and a1 with the database runs on.
func (r *trial) halfBurn() {
	r.Helper()
	if err := r.dc.World.HalfBurn(rackA, "a1"); err != nil {
		r.Fatal(err)
	}
}

// A workload whose former machine cannot be cut off stays down, in this run and in every later one,
// until the machine is cut off.
func TestUnfencedIsNeverTakenOver(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t))
	r.halfBurn()
	r.dc.Fail("switch/tor-a", workflowtest.Failure{Err: down("tor-a")})
	r.dc.Fail("switch/spine", workflowtest.Failure{Err: down("spine")})
	attested := recovery.Request{Attestation: "I stand before it and it burns"}
	for range 2 {
		e := r.recover(attested, nil)
		r.mustBeSound(e)
		db := e.results["db"]
		if db.State != "left-out" || db.Constraint != "fencing" || !strings.Contains(db.Reason, "a1") {
			t.Fatalf("db of a machine that is not fenced: %+v", db)
		}
		if held := r.dc.Holders("db"); len(held) != 1 || held[0].Machine != "a1" {
			t.Fatalf("db runs on %+v", held)
		}
	}
	r.dc.Heal("switch/tor-a")
	e := r.recover(attested, nil)
	r.mustBeSound(e)
	if up, left := r.healthyElsewhere(); len(left) > 0 {
		t.Errorf("with the switch back %v are up and %v down: %+v", up, left, e.results)
	}
}

// healthyElsewhere counts the small rack's workloads that serve outside it.
func (r *trial) healthyElsewhere() (up, left []string) {
	for _, w := range []string{"db", "erp", "mail", "web"} {
		ok := slices.ContainsFunc(r.dc.Holders(w), func(h holder) bool { return h.Serving && strings.HasPrefix(h.Machine, "b") })
		if ok {
			up = append(up, w)
		} else {
			left = append(left, w)
		}
	}
	return up, left
}

// A switch that refuses counts as dead, and the port behind which it stands is closed instead.
func TestRefusingSwitchIsClosedOffAbove(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t))
	r.halfBurn()
	r.dc.Fail("switch/tor-a", workflowtest.Failure{Err: down("tor-a")})
	e := r.recover(recovery.Request{Attestation: "it burns"}, nil)
	r.mustBeSound(e)
	if e.run.State != state.RunDone {
		t.Fatalf("%s: %s", e.run.State, e.run.Reason)
	}
	if !slices.Contains(r.journal(), "switch/spine p1@2 untagged 0 tagged [] shut true") {
		t.Errorf("the spine's port was not closed:\n%s", strings.Join(r.journal(), "\n"))
	}
	if r.dc.World.Connected("a1") {
		t.Error("a1 is still connected")
	}
}

// What hangs on an array that refuses for good is left out by name; everything else comes back.
func TestRefusingArray(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	r.dc.Fail("array/iscsi", workflowtest.Failure{Err: down("array iscsi")})
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.run.State != state.RunPartial {
		t.Fatalf("%s: %s", e.run.State, e.run.Reason)
	}
	mail := e.results["mail"]
	if mail.State != "left-out" || !strings.Contains(mail.Reason, "array iscsi") {
		t.Errorf("mail: %+v", mail)
	}
	if up, left := r.healthyElsewhere(); !slices.Equal(left, []string{"mail"}) {
		t.Errorf("up %v, down %v", up, left)
	}
}

// Dead fabric management is no obstacle to fencing while the array unmasks, but nothing can be zoned.
func TestRefusingFabric(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	r.dc.Fail("fabric/fab", workflowtest.Failure{Err: down("fabric fab")})
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	for _, w := range []string{"db", "erp"} {
		if x := e.results[w]; x.State != "left-out" || !strings.Contains(strings.Join(x.Tried, " ")+x.Reason, "fabric") {
			t.Errorf("%s: %+v", w, x)
		}
	}
	if up, _ := r.healthyElsewhere(); !slices.Equal(up, []string{"mail", "web"}) {
		t.Errorf("up are %v", up)
	}
}

// Fencing ends with an error while power is still being turned off: the run is not closed before that has ended,
// or the machine might be unfenced and turned off afterwards.
func TestRunAwaitsItsPowerFence(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	failed, closed := make(chan struct{}), make(chan struct{})
	var done atomic.Bool
	e := r.recover(recovery.Request{}, func(ctx context.Context, step string, _ int, do func() (any, error)) (any, error) {
		switch step {
		case "FencePower#1":
			<-failed
			defer done.Store(true)
			select { // it is deaf to its cancellation for a while, like a BMC that was told already
			case <-closed:
			case <-time.After(500 * time.Millisecond):
			}
			return do()
		case "PlanNetworkFence#1":
			defer close(failed)
			return nil, temporal.NewNonRetryableApplicationError("refused here", "unsafe", nil)
		case "CloseRun#1":
			close(closed)
			if !done.Load() {
				t.Error("the run is closed and its power fence is under way")
			}
		}
		return do()
	})
	if e.run.State != state.RunFailed {
		t.Errorf("%s: %s", e.run.State, e.run.Reason)
	}
}

// The switch of a machine that runs on stops answering after the fence was planned: its ports are not
// taken for closed because nothing was left to do on it.
func TestSwitchFallsSilentWhileFencing(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t))
	r.halfBurn()
	e := r.recover(recovery.Request{Attestation: "it burns"}, func(_ context.Context, step string, attempt int, do func() (any, error)) (any, error) {
		if step == "FenceSwitch(tor-a)#1" && attempt == 1 {
			if err := r.dc.World.SetManagement("switch/tor-a", false); err != nil {
				t.Error(err)
			}
		}
		return do()
	})
	r.mustBeSound(e)
	if e.run.State != state.RunDone || r.dc.World.Connected("a1") {
		t.Errorf("%s: %s; a1: %+v", e.run.State, e.run.Reason, r.machines()["a1"].Fence)
	}
}
