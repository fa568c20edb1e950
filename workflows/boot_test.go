package workflows_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/workflows"
)

// A machine that does not get there is stopped, fenced, marked suspect, and replaced by the next.
func TestCandidateIsReplaced(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		defect workflowtest.Defect
		says   string
	}{
		"never phones home": {workflowtest.NeverPhonesHome, "no phone-home within 1m0s; last seen: dhcp"},
		"never serves":      {workflowtest.NeverServes, "no healthy within 30s"},
		"reports a failure": {workflowtest.ReportsFailure, "disk controller not found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			top := small(t, "plain")
			r := newTrial(t, top).burn()
			r.dc.Break("b1", c.defect)
			e := r.recover(recovery.Request{}, nil)
			r.mustBeSound(e)
			db := e.results["db"]
			if e.run.State != state.RunDone || db.Where.Machine == "b1" || !slices.ContainsFunc(db.Tried, func(s string) bool {
				return strings.HasPrefix(s, "b1: ") && strings.Contains(s, c.says)
			}) {
				t.Fatalf("%s, %s; %+v", e.run.State, e.run.Reason, e.results)
			}
			b1 := r.machines()["b1"]
			if b1.Suspect == nil || !strings.Contains(b1.Suspect.Reason, c.says) || b1.Fence == nil || b1.Claim != nil {
				t.Errorf("the failed machine: %+v", b1)
			}
			for _, kind := range []policies.FenceKind{policies.FencePower, policies.FenceNetwork} {
				if b1.Fence != nil && !slices.ContainsFunc(b1.Fence.Fences, func(f policies.Fence) bool { return f.Kind == kind && f.Confirmed }) {
					t.Errorf("no %s fence: %+v", kind, b1.Fence.Fences)
				}
			}
			if r.dc.World.Power("b1").On || r.dc.World.Connected("b1") {
				t.Error("the failed machine is on or connected")
			}
			if _, rev, _ := state.Load[state.Boot](t.Context(), r.kv, state.BootsAt+"b1"); rev != 0 {
				t.Error("the failed machine still has a boot record")
			}
		})
	}
}

// One that cannot even be stopped costs its workload the second chance: nothing is started twice.
func TestUnstoppableCandidate(t *testing.T) {
	t.Parallel()
	top := small(t, "plain")
	r := newTrial(t, top).burn()
	r.dc.Break("b1", workflowtest.NeverServes)
	r.dc.Fail("switch/tor-b", workflowtest.Failure{Err: down("tor-b"), Times: -1}) // from the second change on
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		switch step {
		case "ApplySwitch(tor-b)#1":
			r.dc.Heal("switch/tor-b")
			defer r.dc.Fail("switch/tor-b", workflowtest.Failure{Err: down("tor-b")})
		case "Verify(db)#1":
			r.Error("db was verified on a machine that does not serve")
		case "StopTarget(db)#1":
			r.dc.Break("b1", workflowtest.NeverTurnsOff)
		}
		return do()
	})
	r.mustBeSound(e)
	db := e.results["db"]
	if db.State != "left-out" || db.Constraint != "fencing" || !strings.Contains(db.Reason, "b1 could not be fenced") {
		t.Errorf("db: %+v", db)
	}
	if l := r.leases()["db"]; l.Former.Machine != "b1" {
		t.Errorf("the lease has forgotten b1: %+v", l)
	}
}

// A host that does not boot is replaced like any machine, and its VMs with it.
func TestHostIsReplaced(t *testing.T) {
	t.Parallel()
	top := small(t, "plain", "big")
	r := newTrial(t, top).burn()
	r.dc.Break("b2", workflowtest.NeverPhonesHome)
	r.dc.Break("b6", workflowtest.NeverPhonesHome)
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if step == "Retire#1" { // whichever was chosen first is bad, the other is not
			for _, m := range []string{"b2", "b6"} {
				if !r.dc.World.Power(m).On && r.machines()[m].Claim == nil {
					r.dc.Break(m, workflowtest.Sound)
				}
			}
		}
		return do()
	})
	r.mustBeSound(e)
	if e.run.State != state.RunDone {
		t.Fatalf("%s: %s: %+v", e.run.State, e.run.Reason, e.results)
	}
	hosts := 0
	for _, m := range r.machines() {
		if m.Host != nil {
			hosts++
		}
	}
	if hosts != 1 || e.results["mail"].Round < 2 || e.results["web"].Where != e.results["mail"].Where {
		t.Errorf("%d hosts; mail %+v, web %+v", hosts, e.results["mail"], e.results["web"])
	}
}

// A host that dies while its VMs are started takes them with it, and is cut off before they move.
func TestHostDies(t *testing.T) {
	t.Parallel()
	top := small(t, "plain", "big")
	r := newTrial(t, top).burn()
	var once sync.Once
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if name, ok := strings.CutPrefix(step, "StartVM("); ok { // whichever of its VMs is the first
			once.Do(func() {
				name, _, _ = strings.Cut(name, ")")
				if err := r.dc.World.Burn("machine/" + r.leases()[name].Holder.Machine); err != nil {
					r.Error(err)
				}
			})
		}
		return do()
	})
	r.mustBeSound(e)
	if e.run.State != state.RunDone {
		t.Errorf("%s: %s: %+v", e.run.State, e.run.Reason, e.results)
	}
	if mail := e.results["mail"]; len(mail.Tried) == 0 || strings.HasPrefix(mail.Tried[0], mail.Where.Machine+":") {
		t.Errorf("mail: %+v", mail)
	}
}

// A switch that refuses a change for a VM's host costs that VM its place, not the others their host.
func TestHostInUseIsLeftAlone(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		switch step {
		case "StartVM(web)#1", "ApplySwitch(tor-b)#2":
			return nil, temporal.NewNonRetryableApplicationError("refused here", "unsafe", nil)
		}
		return do()
	})
	r.mustBeSound(e)
	if mail := e.results["mail"]; mail.State != "healthy" || mail.Where.Machine != "b2" {
		t.Errorf("mail: %+v", mail)
	}
	if web := e.results["web"]; web.State != "left-out" || len(web.Tried) != 2 {
		t.Errorf("web: %+v", web)
	}
	if b2 := r.machines()["b2"]; b2.Host == nil || b2.Suspect == nil || b2.Fence != nil {
		t.Errorf("the host: %+v", b2)
	}
}

// The power fence of a rack whose BMCs are dead is not waited for, and is recorded all the same.
func TestLatePowerFence(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	booting := make(chan struct{})
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		switch step {
		case "FencePower#1":
			<-booting
		case "PowerOn(db)#1":
			close(booting)
		}
		return do()
	})
	r.mustBeSound(e)
	if e.run.State != state.RunDone {
		t.Fatalf("%s: %s", e.run.State, e.run.Reason)
	}
	power := func(f policies.Fence) bool {
		return f.Kind == policies.FencePower && strings.Contains(f.Detail, "unknown")
	}
	if f := r.machines()["a1"].Fence; f == nil || !slices.ContainsFunc(f.Fences, power) {
		t.Errorf("a1: %+v", f)
	}
}

// Two people have to say yes, each counts once, who asked for the run does not count, and until then no
// device is touched.
func TestApprovals(t *testing.T) {
	t.Parallel()
	top := small(t)
	book := top.Runbooks["rack-a-burns"]
	book.Spec.Approvals = 2
	top.Runbooks["rack-a-burns"] = book
	r := newTrial(t, top).burn()
	waiting := 0
	yes := func(env *testsuite.TestWorkflowEnvironment, by string, after time.Duration) {
		env.RegisterDelayedCallback(func() {
			env.SignalWorkflow(workflows.SignalApprove, state.Approval{By: by, At: r.dc.Now()})
		}, after)
		env.RegisterDelayedCallback(func() {
			run, err := r.svc.Get(r.Context(), "rack-a-1")
			if err != nil || run.State != state.RunWaiting {
				r.Errorf("after the yes of %s the run is %s, %v", by, run.State, err)
			}
			waiting++
			if acts := r.journal(); len(acts) > 0 {
				r.Errorf("before it was approved: %v", acts)
			}
		}, after+time.Minute)
	}
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if step == "TakeOver#1" {
			if run, err := r.svc.Get(r.Context(), "rack-a-1"); err != nil || run.State != state.RunRunning {
				r.Errorf("an approved run is %s, %v", run.State, err)
			}
		}
		return do()
	}, func(env *testsuite.TestWorkflowEnvironment) {
		for i, by := range []string{"bob", "bob", "ann", ""} { // ann asked for the run
			yes(env, by, time.Duration(i+1)*time.Hour)
		}
		env.RegisterDelayedCallback(func() {
			env.SignalWorkflow(workflows.SignalApprove, state.Approval{By: "cid", At: r.dc.Now()})
		}, 10*time.Hour)
	})
	r.mustBeSound(e)
	if waiting != 4 || e.run.State != state.RunDone || len(e.run.Approvals) != 2 || e.run.Approvals[0].By != "bob" || e.run.Approvals[1].By != "cid" {
		t.Errorf("%d times waiting; %s, approved by %+v", waiting, e.run.State, e.run.Approvals)
	}
}

// The rack is back and serves by the time somebody approves: no device is touched.
func TestApprovedTooLate(t *testing.T) {
	t.Parallel()
	top := small(t)
	book := top.Runbooks["rack-a-burns"]
	book.Spec.Approvals = 1
	top.Runbooks["rack-a-burns"] = book
	r := newTrial(t, top).burn()
	e := r.recover(recovery.Request{}, nil, func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(func() {
			if err := r.dc.World.RestorePower(rackA); err != nil {
				r.Error(err)
			}
			for _, m := range []string{"a1", "a2", "a3", "a4"} {
				if err := r.dc.World.Press(m, true, "operator"); err != nil {
					r.Error(err)
				}
			}
			env.SignalWorkflow(workflows.SignalApprove, state.Approval{By: "bob", At: r.dc.Now()})
		}, time.Hour)
	})
	r.mustBeSound(e)
	if acts := r.journal(); len(acts) > 0 || e.run.State != state.RunSuspect {
		t.Errorf("%s: %s, acts %v", e.run.State, e.run.Reason, acts)
	}
	for w, l := range r.leases() {
		if l.Epoch != workflowtest.FirstEpoch || !l.Healthy {
			t.Errorf("lease of %s: %+v", w, l)
		}
	}
}

// A workload was moved out of the rack while people took their time: it is left alone where it is.
func TestMovedBeforeApproval(t *testing.T) {
	t.Parallel()
	top := small(t)
	book := top.Runbooks["rack-a-burns"]
	book.Spec.Approvals = 1
	top.Runbooks["rack-a-burns"] = book
	r := newTrial(t, top).burn()
	moved := state.Lease{Workload: "web", Epoch: 2, Run: "workload-web-1", Healthy: true, Holder: policies.Where{Machine: "b9"}}
	e := r.recover(recovery.Request{}, nil, func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(func() {
			epoch, err := state.NextEpoch(r.Context(), r.kv, moved.Run)
			if err == nil {
				_, err = state.Update(r.Context(), r.kv, state.LeasesAt+"web", func(l *state.Lease) error { moved.Epoch = epoch - 2; *l = moved; return nil })
			}
			if err != nil {
				r.Error(err)
			}
			env.SignalWorkflow(workflows.SignalApprove, state.Approval{By: "bob", At: r.dc.Now()})
		}, time.Hour)
	})
	if l := r.leases()["web"]; l != moved {
		t.Errorf("the lease of what was moved: %+v", l)
	}
	if e.run.State != state.RunDone || e.res.Of != 3 || slices.Contains(e.run.Workloads, "web") {
		t.Errorf("%s: %s; %v", e.run.State, e.run.Reason, e.run.Workloads)
	}
}

// A run that is cancelled while it waits for people has touched nothing.
func TestCancelledBeforeApproval(t *testing.T) {
	t.Parallel()
	top := small(t)
	book := top.Runbooks["rack-a-burns"]
	book.Spec.Approvals = 1
	top.Runbooks["rack-a-burns"] = book
	r := newTrial(t, top).burn()
	e := r.recover(recovery.Request{}, nil, func(env *testsuite.TestWorkflowEnvironment) {
		env.RegisterDelayedCallback(env.CancelWorkflow, time.Hour)
	})
	r.mustBeSound(e)
	if acts := r.journal(); len(acts) > 0 || e.run.State != state.RunCancelled {
		t.Errorf("%s, acts %v", e.run.State, acts)
	}
}

// Not certain enough: no device is touched and no lease taken.
func TestSuspectTouchesNothing(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t))
	if err := r.dc.World.SetManagement(rackA, false); err != nil {
		t.Fatal(err)
	}
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.run.State != state.RunSuspect || e.run.Verdict == nil || e.run.Verdict.State != policies.VerdictSuspect {
		t.Errorf("%s: %s, %+v", e.run.State, e.run.Reason, e.run.Verdict)
	}
	if acts := r.journal(); len(acts) > 0 || len(r.machines()) > 0 {
		t.Errorf("acts %v, machines %v", acts, r.machines())
	}
	for w, l := range r.leases() {
		if l.Epoch != workflowtest.FirstEpoch || !l.Healthy {
			t.Errorf("lease of %s: %+v", w, l)
		}
	}
}

// A spare that somebody has turned on runs something of theirs: nothing is connected to it, and it stays on.
func TestSpareThatIsOn(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t, "plain")).burn()
	if err := r.dc.World.Press("b1", true, "operator"); err != nil {
		t.Fatal(err)
	}
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.run.State != state.RunDone || !r.dc.World.Power("b1").On {
		t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.results)
	}
	for _, a := range r.dc.Journal() {
		if a.Device == "machine/b1" || a.Device == "switch/tor-b" && a.Object == "p1" || a.State == "20:00:00:25:b5:00:00:11" {
			t.Errorf("b1 was touched: %s", a)
		}
	}
}

// One that is turned on after it was chosen is not waited for.
func TestSpareIsTurnedOn(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t, "plain")).burn()
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, attempt int, do func() (any, error)) (any, error) {
		if step == "PowerOn(db)#1" && attempt == 1 {
			if err := r.dc.World.Press("b1", true, "operator"); err != nil {
				t.Error(err)
			}
		}
		return do()
	})
	r.mustBeSound(e)
	db := e.results["db"]
	if e.run.State != state.RunDone || !strings.Contains(strings.Join(db.Tried, " "), "b1: machine b1: power on: it is on already") {
		t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, db)
	}
}

// A run was cancelled and could not stop what it had started: the machine, which serves, is no spare for
// anybody before it is cut off.
func TestFormerHolderIsNoSpare(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	var env *testsuite.TestWorkflowEnvironment
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if step == "Verify(db)#1" {
			r.dc.Break("b1", workflowtest.NeverTurnsOff)
			env.CancelWorkflow()
			return nil, context.Canceled
		}
		return do()
	}, func(e *testsuite.TestWorkflowEnvironment) { env = e })
	r.mustBeSound(e)
	if l := r.leases()["db"]; l.Former.Machine != "b1" || len(r.dc.Holders("db")) != 1 {
		t.Fatalf("db is not left on b1: %+v", l)
	}
	r.dc.Break("b1", workflowtest.Sound)
	e = place("batch")(r, nil) // which had to give way
	r.mustEnd(e)
	if batch := e.results["batch"]; batch.Where.Machine == "b1" || len(batch.Tried) > 0 {
		t.Errorf("batch was tried on b1: %+v", batch)
	}
	if up, _ := r.healthy([]string{"db"}); len(up) == 0 {
		t.Error("db was stopped")
	}
}
