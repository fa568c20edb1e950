package workflows_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/workflows"
)

// misfortune is what happens to one execution of one activity.
type misfortune string

const (
	refused     misfortune = "refused"      // nothing was done, and never will be
	doneFailed  misfortune = "done, failed" // it was done, the answer was an error, once
	replyLost   misfortune = "reply lost"   // it was done, the answer is an error for good
	cancelled   misfortune = "cancelled"    // the run is cancelled while it is done
	cancelledAt misfortune = "cancelled at" // the run is cancelled instead of doing it
	repeated    misfortune = "done twice"   // it is done twice in a row, as after a crash of the worker
)

// scene is a procedure to which things happen.
type scene struct {
	setup func(*trial)
	run   procedure
	again func(*trial)                        // what a person does after it, and finds
	rest  string                              // only steps that this scene does not have
	topo  func(*testing.T) *topology.Topology // default: small
}

// procedure runs a workflow to its end, with every activity passing through tap.
type procedure func(r *trial, tap tapFunc, before ...func(*testsuite.TestWorkflowEnvironment)) ended

func (s scene) trial(t *testing.T) *trial {
	if s.topo == nil {
		s.topo = func(t *testing.T) *topology.Topology { return small(t) }
	}
	r := newTrial(t, s.topo(t))
	s.setup(r)
	return r
}

func recoverRackA(r *trial, tap tapFunc, before ...func(*testsuite.TestWorkflowEnvironment)) ended {
	return r.recover(recovery.Request{}, tap, before...)
}

func release(w string) procedure { return single(w, state.KindRelease, workflows.ReleaseWorkload) }

func place(w string) procedure { return single(w, state.KindPlace, workflows.PlaceWorkload) }

// single runs a procedure on one workload alone.
func single(w string, kind state.RunKind, f any) procedure {
	return func(r *trial, tap tapFunc, before ...func(*testsuite.TestWorkflowEnvironment)) ended {
		r.Helper()
		run, _, err := r.svc.StartWorkload(r.Context(), kind, w, "ann")
		if err != nil {
			r.Fatal(err)
		}
		return r.execute(run, f, tap, before...)
	}
}

func (r *trial) mustEnd(e ended) {
	r.Helper()
	r.mustBeSound(e)
	if e.run.State != state.RunDone {
		r.Fatalf("%s: %s: %s", e.run.ID, e.run.State, e.run.Reason)
	}
}

func scenes() map[string]scene {
	return map[string]scene{
		"sound": {run: recoverRackA, again: (*trial).recoverAgain, setup: func(r *trial) { r.burn() }},
		// The spare that the database gets first never reports: round two.
		"bad spare": {run: recoverRackA, again: (*trial).recoverAgain, rest: "sound", setup: func(r *trial) {
			r.burn()
			r.dc.Break("b1", workflowtest.NeverPhonesHome)
		}},
		"release": {run: release("batch"), again: placeAgain("batch"), setup: func(*trial) {}},
		"place":   {run: place("batch"), again: placeAgain("batch"), setup: func(r *trial) { r.mustEnd(release("batch")(r, nil)) }},
		"release of a VM": {run: release("mail"), again: placeAgain("mail"), setup: func(r *trial) {
			r.mustEnd(recoverRackA(r.burn(), nil))
		}},
		"place as a VM": {run: place("mail"), again: placeAgain("mail"), setup: func(r *trial) {
			r.mustEnd(recoverRackA(r.burn(), nil))
			r.mustEnd(release("mail")(r, nil))
		}},
	}
}

// TestFailEveryStep lets every misfortune happen to every step of every procedure, one at a time.
func TestFailEveryStep(t *testing.T) {
	t.Parallel()
	for name, s := range scenes() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			steps, journal, state0 := baseline(t, s)
			if s.rest != "" { // what the other scene has as well is tried there
				known, _, _ := baseline(t, scenes()[s.rest])
				steps = slices.DeleteFunc(steps, func(step string) bool { return slices.Contains(known, step) })
			}
			for _, step := range steps {
				for _, m := range []misfortune{refused, doneFailed, replyLost, cancelled, cancelledAt, repeated} {
					t.Run(step+"/"+string(m), func(t *testing.T) {
						t.Parallel()
						r := s.trial(t)
						e := r.suffer(s.run, step, m)
						r.mustBeSound(e)
						switch m {
						case doneFailed, repeated:
							// It must be as if nothing had happened, down to each act on each device.
							if e.run.State != state0 {
								t.Errorf("the run is %s (%s), without the misfortune %s", e.run.State, e.run.Reason, state0)
							}
							if got := r.journal(); !slices.Equal(got, journal) {
								t.Errorf("the devices were told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(journal, "\n"))
							}
						case cancelled, cancelledAt:
							if strings.HasPrefix(step, "CloseRun") {
								break // too late
							}
							if e.run.State != state.RunCancelled && !strings.HasPrefix(step, "RecordPhase(") {
								t.Errorf("a cancelled run is %s (%s)", e.run.State, e.run.Reason)
							}
						case refused, replyLost:
						}
						s.again(r)
					})
				}
			}
		})
	}
}

// baseline runs the scene undisturbed, and returns its steps, acts and end.
func baseline(t *testing.T, s scene) (steps, journal []string, end state.RunState) {
	t.Helper()
	r := s.trial(t)
	var mu sync.Mutex
	e := s.run(r, func(_ context.Context, step string, attempt int, do func() (any, error)) (any, error) {
		// Whether the power fence is late depends on time alone; it has a test of its own.
		if late := strings.HasPrefix(step, "JudgeFences#") && step != "JudgeFences#1"; attempt == 1 && !late {
			mu.Lock()
			steps = append(steps, step)
			mu.Unlock()
		}
		return do()
	})
	r.mustBeSound(e)
	if t.Failed() {
		t.FailNow()
	}
	slices.Sort(steps)
	return steps, r.journal(), e.run.State
}

// suffer runs a procedure in which m happens to one step, and makes sure that it did.
func (r *trial) suffer(run procedure, step string, m misfortune) ended {
	r.Helper()
	var env *testsuite.TestWorkflowEnvironment
	var mu sync.Mutex
	hit := 0
	e := run(r, func(_ context.Context, at string, attempt int, do func() (any, error)) (any, error) {
		if strings.HasPrefix(at, "StopTarget(") {
			// Who started a target may stop it: that is no harm done to a workload of others.
			r.giveUp()
		}
		if at != step || attempt != 1 {
			return do()
		}
		mu.Lock()
		hit++
		mu.Unlock()
		switch m {
		case refused:
			return nil, temporal.NewNonRetryableApplicationError("refused here", "unsafe", nil)
		case doneFailed:
			if v, err := do(); err != nil {
				return v, err
			}
			return nil, temporal.NewApplicationError("connection lost here", "unreachable")
		case replyLost:
			if v, err := do(); err != nil {
				return v, err
			}
			return nil, temporal.NewNonRetryableApplicationError("reply lost here", "unsafe", nil)
		case cancelled:
			v, err := do()
			env.CancelWorkflow()
			return v, err
		case cancelledAt:
			env.CancelWorkflow()
			return nil, context.Canceled
		case repeated:
			if v, err := do(); err != nil {
				return v, err
			}
		}
		return do()
	}, func(e *testsuite.TestWorkflowEnvironment) { env = e })
	if hit != 1 {
		r.Fatalf("the misfortune hit %d executions of %s", hit, step)
	}
	return e
}

// giveUp tells the checker of safety rules which machines are the run's own to stop.
func (r *trial) giveUp() {
	for name, m := range r.machines() {
		if m.Claim != nil {
			if err := r.dc.World.Attest(name); err != nil {
				r.Error(err)
			}
		}
	}
}

// recoverAgain recovers the domain undisturbed, after a person has taken the machines that failed into service
// again: then everything is back. A machine that was never seen to be cut off is fenced by the first such
// run, and of use only to the next.
func (r *trial) recoverAgain() {
	r.Helper()
	all := []string{"db", "erp", "mail", "web"}
	r.dc.Break("b1", workflowtest.Sound)
	for runs := 1; ; runs++ {
		_, down := r.healthy(all)
		if len(down) == 0 {
			break
		}
		r.trust()
		e := r.recover(recovery.Request{}, nil)
		r.mustBeSound(e)
		if _, down = r.healthy(all); len(down) > 0 && runs == 2 {
			r.Fatalf("after two more runs (%s: %s) %v are still down: %+v", e.run.State, e.run.Reason, down, e.results)
		}
	}
	if up, _ := r.healthy([]string{"ldap"}); len(up) == 0 {
		r.Error("ldap was none of our business and is down")
	}
}

// placeAgain releases a workload, if it runs, and starts it again, undisturbed, after a person has taken
// machines that failed into service again.
func placeAgain(w string) func(*trial) {
	return func(r *trial) {
		r.Helper()
		r.trust()
		if l := r.leases()[w]; l.Holder.Machine != "" {
			r.mustEnd(release(w)(r, nil))
		}
		r.mustEnd(place(w)(r, nil))
		if up, _ := r.healthy([]string{w}); len(up) == 0 {
			r.Errorf("%s is placed and does not serve", w)
		}
	}
}
