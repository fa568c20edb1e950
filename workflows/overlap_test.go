package workflows_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"go.temporal.io/sdk/temporal"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/world"
)

// A newer run, on a domain that overlaps, takes a workload at some step of this run: it is that run's from
// then on, the report says so, and all others come back as if nothing had happened.
func TestOverlappingRun(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"TakeOver#1", "FencePower#1", "JudgeFences#1", "Plan#1", "PrepareBoot(mail)#1", "StartVM(mail)#1", "Verify(mail)#1"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t)).burn()
			hit := false
			e := r.recover(recovery.Request{}, func(ctx context.Context, step string, _ int, do func() (any, error)) (any, error) {
				if step == at && !hit {
					hit = true
					if _, err := state.TakeLease(ctx, r.kv, "mail", "feed-1-1", 99, r.dc.Now()); err != nil {
						t.Error(err)
					}
				}
				return do()
			})
			if !hit {
				t.Fatal("the step did not happen")
			}
			if e.run.State != state.RunPartial || e.res.Recovered != 3 {
				t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.results)
			}
			mail := e.results["mail"]
			if mail.State != "left-out" || !strings.Contains(mail.Reason+strings.Join(mail.Tried, " "), "feed-1-1") {
				t.Errorf("mail: %+v", mail)
			}
			if l := r.leases()["mail"]; l.Epoch != 99 || l.Run != "feed-1-1" || l.Healthy {
				t.Errorf("the other run's lease: %+v", l)
			}
			if up, _ := r.healthy([]string{"mail"}); len(up) > 0 {
				t.Error("mail was started although it is another run's")
			}
			for _, v := range r.dc.World.Check() {
				t.Errorf("%s broken: %s: %s", v.Rule, v.Subject, v.Detail)
			}
		})
	}
}

// A target that fails for no other reason than that a newer run has taken its workload has a sound machine: it is
// turned off again and good for others.
func TestOverlappingRunSparesTheMachine(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"PrepareBoot(db)#1", "Verify(db)#1"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t)).burn()
			e := r.recover(recovery.Request{}, func(ctx context.Context, step string, attempt int, do func() (any, error)) (any, error) {
				if strings.HasPrefix(step, "StopTarget(") {
					r.giveUp()
				}
				if step == at && attempt == 1 {
					if _, err := state.TakeLease(ctx, r.kv, "db", "feed-1-1", 99, r.dc.Now()); err != nil {
						t.Error(err)
					}
				}
				return do()
			})
			if db := e.results["db"]; db.State != "left-out" || !strings.Contains(db.Reason+strings.Join(db.Tried, " "), "feed-1-1") && !strings.Contains(strings.Join(db.Tried, " "), "taken") {
				t.Errorf("db: %+v", db)
			}
			if m := r.machines()["b1"]; m.Suspect != nil || m.Fence != nil || m.Claim != nil {
				t.Errorf("the machine did nothing wrong: %+v", m)
			}
			if held := r.leases()["erp"].Holder; r.dc.World.Power("b1").On && held.Machine != "b1" {
				t.Errorf("it was left on; erp is on %+v", held)
			}
		})
	}
}

// A newer run has set one port of a switch meanwhile: the others on it are closed all the same, the switch does not
// count as dead, and the one port counts as closed only if that run has closed it.
func TestOverlappingRunSharesASwitch(t *testing.T) {
	t.Parallel()
	for name, shut := range map[string]bool{"closed by it": true, "open": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t))
			r.halfBurn()
			if err := r.dc.World.SetPort("tor-a", "p4", world.Port{Untagged: 110, Shut: shut, Epoch: 99}); err != nil {
				t.Fatal(err)
			}
			e := r.recover(recovery.Request{Attestation: "it burns"}, nil)
			for _, a := range r.journal() {
				if strings.HasPrefix(a, "switch/spine ") {
					t.Errorf("the rack was cut off above a switch that answers: %s", a)
				}
			}
			fences := r.machines()
			for _, m := range []string{"a1", "a2", "a3", "a4"} {
				closed := slices.ContainsFunc(fences[m].Fence.Fences, func(f policies.Fence) bool { return f.Kind == policies.FenceNetwork && f.Confirmed })
				if closed != (m != "a4" || shut) {
					t.Errorf("the network fence of %s: %+v", m, fences[m].Fence.Fences)
				}
			}
			want := 3 // web ran on a4
			if shut {
				want = 4
			}
			if e.res.Recovered != want {
				t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.results)
			}
			if web := e.results["web"]; !shut && (web.Constraint != "fencing" || !strings.Contains(web.Reason, "newer run")) {
				t.Errorf("web: %+v", web)
			}
		})
	}
}

// The newer run boots the workload's VM elsewhere while this one still waits for it: what this run stops is
// its own VM, and not the boot of the other.
func TestOverlappingRunKeepsItsBoot(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	theirs := state.Boot{Name: "vm-mail", Machine: "b9", Workload: "mail", VM: true, Run: "feed-1-1", Epoch: 99, Workflow: "boot/feed-1-1/1/workload/mail"}
	r.recover(recovery.Request{}, func(ctx context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if step == "Verify(mail)#1" {
			if _, err := state.TakeLease(ctx, r.kv, "mail", "feed-1-1", 99, r.dc.Now()); err != nil {
				t.Error(err)
			}
			if _, err := state.Update(ctx, r.kv, state.BootsAt+"vm-mail", func(b *state.Boot) error { *b = theirs; return nil }); err != nil {
				t.Error(err)
			}
		}
		return do()
	})
	if b, _, err := state.Load[state.Boot](t.Context(), r.kv, state.BootsAt+"vm-mail"); err != nil || b.Workflow != theirs.Workflow {
		t.Errorf("the other run's boot record: %+v, %v", b, err)
	}
}

// web stayed down, and an older run that was held up starts it after this one has opened: who has it since
// was never cut off, so that it starts nowhere else.
func TestOlderRunIsLate(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		if strings.HasPrefix(step, "StartVM(web)") {
			return nil, temporal.NewNonRetryableApplicationError("refused here", "unsafe", nil)
		}
		return do()
	})
	r.trust()
	if l := r.leases()["web"]; l.LastHolder() != (policies.Where{}) {
		t.Fatalf("web does not stay down: %+v", l)
	}
	const older, there = "workload-web-1", "b9"
	epoch, err := state.NextEpoch(t.Context(), r.kv, older)
	if err != nil {
		t.Fatal(err)
	}
	e := r.recover(recovery.Request{}, func(ctx context.Context, step string, attempt int, do func() (any, error)) (any, error) {
		if step == "TakeOver#1" && attempt == 1 {
			if _, err := state.TakeLease(ctx, r.kv, "web", older, epoch, r.dc.Now()); err != nil {
				t.Error(err)
			}
			if err := state.GrantLease(ctx, r.kv, "web", older, epoch, at(there, ""), r.dc.Now()); err != nil {
				t.Error(err)
			}
		}
		return do()
	})
	web := e.results["web"]
	if l := r.leases()["web"]; web.State != "left-out" || !strings.Contains(web.Reason, there) || l.Former.Machine != there {
		t.Errorf("%+v; %+v", web, l)
	}
}

// The newer run has told the array of its workload already: what this run wants of the same array for its
// other workloads is none the worse for it.
func TestOverlappingRunSharesAnArray(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"FenceArray(fc)#1", "FenceFabric(fab)#1", "ApplyArray(fc)#1", "ApplyFabric(fab)#1"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t)).burn()
			e := r.recover(recovery.Request{}, func(ctx context.Context, step string, attempt int, do func() (any, error)) (any, error) {
				if step == at && attempt == 1 {
					if _, err := state.TakeLease(ctx, r.kv, "erp", "feed-1-1", 99, r.dc.Now()); err != nil {
						t.Error(err)
					}
					if err := r.dc.World.SetMask("fc", "/vol/v1/erp", world.Mask{Epoch: 99}); err != nil {
						t.Error(err)
					}
					if err := r.dc.World.SetZones("fab", append(slices.DeleteFunc(r.dc.World.Zones("fab"), func(z world.Zone) bool { return z.Name == "vol-erp" }),
						world.Zone{Name: "vol-erp", Epoch: 99})); err != nil {
						t.Error(err)
					}
				}
				return do()
			})
			if up, _ := r.healthy([]string{"db", "mail", "web"}); len(up) != 3 || e.res.Recovered != 3 {
				t.Errorf("%s: %s; %v are up; %+v", e.run.State, e.run.Reason, up, e.results)
			}
			for _, v := range r.dc.World.Check() {
				t.Errorf("%s broken: %s: %s", v.Rule, v.Subject, v.Detail)
			}
		})
	}
}

// A newer run has had a spare and given it back: its port takes nothing from this run any more. It is not
// chosen, and the others on its switch are connected.
func TestSpareOfNewerRun(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t, "plain")).burn()
	e := r.recover(recovery.Request{}, func(ctx context.Context, step string, attempt int, do func() (any, error)) (any, error) {
		if step == "Plan#1" && attempt == 1 {
			epoch, err := state.NextEpoch(ctx, r.kv, "rack-b-1")
			if err == nil {
				err = state.ClaimMachine(ctx, r.kv, "b1", state.Claim{Run: "rack-b-1", Epoch: epoch, For: "other"})
			}
			if err == nil {
				err = r.dc.World.SetPort("tor-b", "p1", world.Port{Untagged: 100, Epoch: epoch})
			}
			if err == nil {
				_, err = state.Update(ctx, r.kv, state.MachinesAt+"b1", func(m *state.Machine) error { m.Claim = nil; return nil })
			}
			if err != nil {
				t.Error(err)
			}
		}
		return do()
	})
	r.mustBeSound(e)
	if e.run.State != state.RunDone {
		t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.results)
	}
	for name, m := range r.machines() {
		if m.Suspect != nil {
			t.Errorf("%s did nothing wrong: %+v", name, m.Suspect)
		}
	}
}

// A newer run fences the same machines: what it has read back is not replaced by what this one has.
func TestNewerRunsFencesStay(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	theirs := state.FenceState{Run: "feed-1-1", Epoch: 99, Fences: []policies.Fence{{Kind: policies.FenceNetwork, Confirmed: true, Detail: "theirs"}}}
	e := r.recover(recovery.Request{}, func(ctx context.Context, step string, attempt int, do func() (any, error)) (any, error) {
		if step == "JudgeFences#1" && attempt == 1 {
			if _, err := state.Update(ctx, r.kv, state.MachinesAt+"a1", func(m *state.Machine) error { m.Fence = &theirs; return nil }); err != nil {
				t.Error(err)
			}
		}
		return do()
	})
	r.mustBeSound(e)
	if f := r.machines()["a1"].Fence; f == nil || f.Run != theirs.Run || len(f.Fences) != 1 || f.Fences[0].Detail != "theirs" {
		t.Errorf("the newer run's fences: %+v", f)
	}
}
