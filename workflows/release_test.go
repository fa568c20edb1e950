package workflows_test

import (
	"context"
	"strings"
	"testing"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// disconnected reports whether batch's machine is where free machines are and its volume nobody's.
func (r *trial) disconnected() bool {
	p, _ := r.dc.World.PortState("tor-b", "p3")
	m, _ := r.dc.World.MaskOf("iscsi", "iqn.2026-01.org.example:batch")
	return p.Untagged == 100 && len(p.Tagged) == 0 && len(m.Initiators) == 0
}

// The machine was turned off before the cancellation came, or before the answer was lost: nobody would start the
// workload there again, so that the release is finished, and the report says so.
func TestReleaseOfWhatIsOffIsFinished(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		misfortune
		end state.RunState
	}{
		"cancelled":  {cancelled, state.RunCancelled},
		"reply lost": {replyLost, state.RunDone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t))
			e := r.suffer(release("batch"), "StopWorkload#1", c.misfortune)
			r.mustBeSound(e)
			if e.run.State != c.end || e.results["batch"].State != "released" || !strings.Contains(e.run.Reason, "released") {
				t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.results["batch"])
			}
			if r.dc.World.Power("b3").On || !r.disconnected() {
				t.Error("batch is released and its machine is on, or connected")
			}
			r.mustEnd(place("batch")(r, nil))
		})
	}
}

// A release that is cancelled between its devices disconnects the others all the same.
func TestCancelledReleaseIsDisconnected(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t))
	e := r.suffer(release("batch"), "FenceArray(iscsi)#1", cancelledAt)
	r.mustBeSound(e)
	if e.run.State != state.RunCancelled || e.results["batch"].State != "released" || !r.disconnected() {
		t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.results["batch"])
	}
}

// A release that did not go through says that its workload runs on.
func TestReleaseThatDidNotGoThrough(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t))
	e := r.suffer(release("batch"), "StopWorkload#1", refused)
	r.mustBeSound(e)
	if e.run.State != state.RunFailed || e.results["batch"].State != "running" {
		t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.results["batch"])
	}
}

// A machine that is on is no healthy workload: one that does not answer, or was not healthy before, keeps its lease
// and is not said to be healthy.
func TestKeptIsNotHealthy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		silent, unhealthy bool
	}{"as it was": {}, "does not answer": {silent: true}, "was not healthy": {unhealthy: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := small(t)
			w := top.Workloads["batch"]
			w.Spec.Health = topology.Health{TCPPort: 25}
			top.Workloads["batch"] = w
			r := newTrial(t, top)
			if life, on := r.dc.World.Life("b3"); c.silent {
				if err := r.dc.World.Serve(life, "", false); err != nil || !on {
					t.Fatal(on, err)
				}
			}
			if c.unhealthy {
				if _, err := state.Update(t.Context(), r.kv, state.LeasesAt+"batch", func(l *state.Lease) error { l.Healthy = false; return nil }); err != nil {
					t.Fatal(err)
				}
			}
			// Its lease is taken, and then its machine is not to be had.
			e := release("batch")(r, func(ctx context.Context, step string, _ int, do func() (any, error)) (any, error) {
				if step != "StopWorkload#1" {
					return do()
				}
				if _, err := state.TakeLease(ctx, r.kv, "batch", "workload-batch-1", 2, r.dc.Now()); err != nil {
					t.Error(err)
				}
				return nil, temporal.NewNonRetryableApplicationError("refused here", "unsafe", nil)
			}, func(*testsuite.TestWorkflowEnvironment) {})
			l := r.leases()["batch"]
			if l.Holder != (policies.Where{Machine: "b3"}) || l.Epoch != 2 || l.Healthy != (name == "as it was") {
				t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, l)
			}
		})
	}
}
