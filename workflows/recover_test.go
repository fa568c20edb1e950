package workflows_test

import (
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/workflows"
)

func TestSmallRecovery(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.err != nil || e.run.State != state.RunDone || e.res.Recovered != 4 {
		t.Fatalf("%+v, %v, %+v", e.res, e.err, e.results)
	}
	for w, vm := range map[string]bool{"db": false, "erp": false, "mail": true, "web": true} {
		if e.results[w].Where.VM != vm {
			t.Errorf("%s came back at %+v", w, e.results[w].Where)
		}
	}
}

// The story: twenty machines burn, ten take their work, eight as bare metal and two as hosts of six VMs.
func TestStory(t *testing.T) {
	t.Parallel()
	r := newTrial(t, story(t)).burn()
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.err != nil || e.run.State != state.RunDone || e.res.Recovered != 20 {
		t.Fatalf("%+v, %v", e.res, e.err)
	}
	bare, hosts := 0, map[string]int{}
	for _, x := range e.results {
		if x.Where.VM {
			hosts[x.Where.Machine]++
		} else {
			bare++
		}
	}
	if bare != 8 || len(hosts) != 2 {
		t.Errorf("%d on bare metal, VMs on %v", bare, hosts)
	}
	for m, n := range hosts {
		if n != 6 {
			t.Errorf("%d VMs on %s", n, m)
		}
	}
	// One commit per device and phase, not one per workload.
	for device, calls := range r.dc.Commits() {
		if calls > 2 {
			t.Errorf("%s was changed in %d commits", device, calls)
		}
	}
}

// Single workloads: stopped and disconnected, and started again where they fit.
func TestReleaseAndPlace(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t))
	run, _, err := r.svc.StartWorkload(t.Context(), state.KindRelease, "batch", "ann")
	if err != nil {
		t.Fatal(err)
	}
	e := r.execute(run, workflows.ReleaseWorkload, nil)
	if e.run.State != state.RunDone || r.dc.World.Power("b3").On || len(r.dc.Holders("batch")) != 0 {
		t.Fatalf("%s: %s", e.run.State, e.run.Reason)
	}
	if l := r.leases()["batch"]; l.Holder.Machine != "" || l.Former.Machine != "" {
		t.Errorf("lease of a released workload: %+v", l)
	}
	if run, _, err = r.svc.StartWorkload(t.Context(), state.KindPlace, "batch", "ann"); err != nil {
		t.Fatal(err)
	}
	e = r.execute(run, workflows.PlaceWorkload, nil)
	r.mustBeSound(e)
	if up, _ := r.healthy([]string{"batch"}); len(up) == 0 || e.run.State != state.RunDone {
		t.Errorf("%s: %s", e.run.State, e.run.Reason)
	}
}

// What a recovery could not cut off cannot be started by hand either.
func TestUnfencedIsNotPlaced(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t))
	r.halfBurn()
	r.dc.Fail("switch/tor-a", workflowtest.Failure{Err: down("tor-a")})
	r.dc.Fail("switch/spine", workflowtest.Failure{Err: down("spine")})
	r.mustBeSound(r.recover(recovery.Request{Attestation: "it burns"}, nil))
	run, _, err := r.svc.StartWorkload(t.Context(), state.KindPlace, "db", "ann")
	if err != nil {
		t.Fatal(err)
	}
	e := r.execute(run, workflows.PlaceWorkload, nil)
	r.mustBeSound(e)
	if e.run.State != state.RunFailed || !strings.Contains(e.run.Reason, "a1") {
		t.Errorf("%s: %s", e.run.State, e.run.Reason)
	}
}
