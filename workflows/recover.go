package workflows

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// RecoverInput starts a recovery of one failure domain.
type RecoverInput struct {
	Run     string `json:"run"`
	Domain  string `json:"domain"`
	Runbook string `json:"runbook"`
}

// RecoverResult is the short end of a recovery; the long one is in the store.
type RecoverResult struct {
	State     state.RunState `json:"state"`
	Recovered int            `json:"recovered"`
	Of        int            `json:"of"`
	Reason    string         `json:"reason,omitempty"`
}

// Scope is what a run is about, frozen when it opens.
type Scope struct {
	Epoch     uint64              `json:"epoch"`
	Machines  []string            `json:"machines"`
	Switches  []string            `json:"switches,omitempty"` // of a release: where the machine is cabled to
	Affected  []Affected          `json:"affected"`
	Policy    topology.PolicySpec `json:"policy"`
	Approvals int                 `json:"approvals"`
	BootHosts bool                `json:"bootHosts"` // the runbook names a hypervisor image
}

// Affected is one workload that ran in the domain.
type Affected struct {
	Workload string         `json:"workload"`
	From     policies.Where `json:"from"`
	Healthy  bool           `json:"healthy,omitempty"` // of one that is to be stopped: as it was before
}

// SignalApprove carries a state.Approval to a recovery that waits for people.
const SignalApprove = "approve"

// Recover brings the workloads of a burned failure domain back on other machines:
// evidence, fence, plan, evict, rewire, boot hosts, boot workloads by wave, verify, report.
// Nothing is undone at its end: what could not be placed stays fenced and is named in the report.
func Recover(ctx workflow.Context, in RecoverInput) (RecoverResult, error) {
	r := newRecovery(in)
	return r.closing(ctx, r.run)
}

// closing runs f and then closes the run, whatever ended it: an error and a cancellation included.
func (r *recovery) closing(ctx workflow.Context, f func(workflow.Context) (RecoverResult, error)) (RecoverResult, error) {
	run := r.in.Run
	res, err := f(ctx)
	last, _ := workflow.NewDisconnectedContext(ctx)
	if err != nil {
		for _, l := range r.late {
			l.abandon(last)
		}
	}
	switch {
	case temporal.IsCanceledError(err):
		res.State = state.RunCancelled
		if res.Reason == "" {
			res.Reason = "cancelled by a person"
		}
	case err != nil:
		res = RecoverResult{State: state.RunFailed, Reason: reason(err)}
	}
	// A run that is not closed blocks its domain for ever, so that even a final refusal is asked again.
	cerr := workflow.ExecuteActivity(quick(last), (*Activities).CloseRun, run, res).Get(last, nil)
	for tries := 1; cerr != nil && tries < closeTries; tries++ {
		if err := workflow.Sleep(last, time.Minute); err != nil {
			return res, err
		}
		cerr = workflow.ExecuteActivity(quick(last), (*Activities).CloseRun, run, res).Get(last, nil)
	}
	if cerr != nil {
		return res, cerr
	}
	return res, err
}

// closeTries is how often closing is tried, each try being retried for ten minutes by itself.
const closeTries = 60

func newRecovery(in RecoverInput) *recovery {
	return &recovery{in: in, tried: map[string][]string{}, healthy: map[string]bool{}, started: map[string]bool{}}
}

type recovery struct {
	in      RecoverInput
	scope   Scope
	pending []string            // still to be placed
	tried   map[string][]string // workload -> machines that failed, with why
	healthy map[string]bool
	started map[string]bool // machines this run has powered on
	late    []latePower
}

func (r *recovery) run(ctx workflow.Context) (RecoverResult, error) {
	v, err := r.verdict(ctx, "verdict")
	if err != nil {
		return RecoverResult{}, err
	}
	if v.State != policies.VerdictBurned {
		return RecoverResult{State: state.RunSuspect, Reason: v.Reason}, nil
	}
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).OpenScope, r.in.Run).Get(ctx, &r.scope); err != nil {
		return RecoverResult{}, err
	}
	if r.scope.Approvals > 0 {
		if err := r.approve(ctx); err != nil {
			return RecoverResult{}, err
		}
		// People take their time, and the domain may have come back meanwhile.
		if workflow.GetVersion(ctx, "confirm", workflow.DefaultVersion, 1) >= 1 {
			if v, err = r.verdict(ctx, "confirm"); err != nil {
				return RecoverResult{}, err
			}
			if v.State != policies.VerdictBurned {
				return RecoverResult{State: state.RunSuspect, Reason: "approved, but by then: " + v.Reason}, nil
			}
		}
		more, err := r.rescope(ctx)
		if err != nil {
			return RecoverResult{}, err
		}
		if len(more) > 0 {
			return RecoverResult{State: state.RunSuspect, Reason: "approved, but by then it would also cut off " + strings.Join(more, ", ") + "; ask again"}, nil
		}
	}
	for _, a := range r.scope.Affected {
		r.pending = append(r.pending, a.Workload)
	}
	err = r.phase(ctx, "fence", func() (string, error) {
		var others []string
		if err := workflow.ExecuteActivity(quick(ctx), (*Activities).TakeOver, r.in.Run, r.scope).Get(ctx, &others); err != nil {
			return "", err
		}
		r.pending = slices.DeleteFunc(r.pending, func(w string) bool { return slices.Contains(others, w) })
		met, late, err := fence(ctx, r.in.Run, r.scope, r.scope.Machines, r.pending)
		r.late = append(r.late, late)
		if err != nil {
			return "", err
		}
		r.pending = met
		return fmt.Sprintf("%d of %d workloads cut off from their former machines", len(met), len(r.scope.Affected)), nil
	})
	if err != nil {
		return RecoverResult{}, err
	}
	return r.rounds(ctx)
}

// rescope looks again who runs in the domain, after people took their time to approve: what has moved out is not
// this run's any more. It returns machines that would be cut off now and were not approved.
func (r *recovery) rescope(ctx workflow.Context) (more []string, err error) {
	if workflow.GetVersion(ctx, "rescope", workflow.DefaultVersion, 1) < 1 {
		return nil, nil
	}
	var now Scope
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).OpenScope, r.in.Run).Get(ctx, &now); err != nil {
		return nil, err
	}
	for _, m := range now.Machines {
		if !slices.Contains(r.scope.Machines, m) {
			more = append(more, m)
		}
	}
	r.scope = now
	return more, nil
}

// verdict waits until the domain is certain to have burned, or the time for it is over.
func (r *recovery) verdict(ctx workflow.Context, phase string) (v policies.Verdict, err error) {
	err = r.phase(ctx, phase, func() (string, error) {
		err := workflow.ExecuteActivity(wait(ctx, time.Hour), (*Activities).AwaitVerdict, r.in.Run).Get(ctx, &v)
		return v.Reason, err
	})
	return v, err
}

// rounds plans and boots what is pending until all of it is healthy or no further round can help.
func (r *recovery) rounds(ctx workflow.Context) (RecoverResult, error) {
	rounds := max(r.scope.Policy.Recovery.Rounds, 1)
	for round := 1; round <= rounds && len(r.pending) > 0; round++ {
		again, err := r.round(ctx, round)
		if err != nil {
			return RecoverResult{}, err
		}
		if !again {
			break
		}
	}
	for _, l := range r.late {
		if err := l.record(ctx); err != nil {
			return RecoverResult{}, err
		}
	}
	res := RecoverResult{State: state.RunDone, Recovered: len(r.healthy), Of: len(r.scope.Affected)}
	if res.Recovered < res.Of {
		res.State = state.RunPartial
		res.Reason = fmt.Sprintf("%d of %d workloads stay down", res.Of-res.Recovered, res.Of)
	}
	return res, nil
}

// round plans what is pending, rewires for it and boots it. What does not boot is fenced again and
// stays pending; the round says whether another one can help.
func (r *recovery) round(ctx workflow.Context, round int) (again bool, err error) {
	var plan Planned
	name := func(phase string) string {
		if round == 1 {
			return phase
		}
		return fmt.Sprintf("%s %d", phase, round)
	}
	err = r.phase(ctx, name("plan"), func() (string, error) {
		err := workflow.ExecuteActivity(quick(ctx), (*Activities).Plan, PlanInput{Run: r.in.Run, Round: round,
			Scope: r.scope, Pending: r.pending, Tried: r.tried}).Get(ctx, &plan)
		return plan.Summary, err
	})
	if err != nil {
		return false, err
	}
	if len(plan.Assignments) == 0 {
		return false, nil
	}
	lost := losses{Machines: map[string]string{}, Workloads: map[string]string{}}
	if len(plan.Evictions) > 0 {
		if err := r.phase(ctx, name("evict"), func() (string, error) {
			r.evict(ctx, round, plan, lost)
			return fmt.Sprintf("%d repurposable workloads stopped, %d machines not to be had", len(plan.Evictions), len(lost.Machines)), nil
		}); err != nil {
			return false, err
		}
	}
	if err := r.phase(ctx, name("rewire"), func() (string, error) {
		n, err := rewire(ctx, r.step(round), limits(r.scope).device, lost)
		return fmt.Sprintf("%d devices, one commit each", n), err
	}); err != nil {
		return false, err
	}
	if err := r.phase(ctx, name("boot"), func() (string, error) {
		r.boot(ctx, round, plan, lost)
		return fmt.Sprintf("%d of %d healthy", len(r.healthy), len(r.scope.Affected)), ctx.Err()
	}); err != nil {
		return false, err
	}
	return r.retire(ctx, round, plan, lost)
}

// losses are the machines and workloads that dropped out of a round, each with why.
type losses struct {
	Machines  map[string]string `json:"machines,omitempty"`
	Workloads map[string]string `json:"workloads,omitempty"`
}

func (r *recovery) evict(ctx workflow.Context, round int, plan Planned, lost losses) {
	var out losses
	err := workflow.ExecuteActivity(device(ctx, limits(r.scope).power), (*Activities).Evict, r.step(round)).Get(ctx, &out)
	for _, e := range plan.Evictions {
		if err != nil {
			// Without the victims' machines the rest of the plan still stands.
			lost.Machines[e.Machine] = reason(err)
		} else if why, bad := out.Machines[e.Machine]; bad {
			lost.Machines[e.Machine] = why
		}
	}
}

// retire fences what failed in this round, so that the next round may give its identity to another
// machine, and works out what is still pending. Another round helps only when something failed:
// planning the same facts again gives the same answer.
func (r *recovery) retire(ctx workflow.Context, round int, plan Planned, lost losses) (again bool, err error) {
	at := map[string]policies.Where{}
	for _, a := range plan.Assignments {
		at[a.Workload] = a.Where
	}
	var left []string
	for _, w := range r.pending {
		if r.healthy[w] {
			continue
		}
		left = append(left, w)
		where, planned := at[w]
		if !planned {
			continue
		}
		why := lost.Workloads[w]
		if why == "" {
			why = lost.Machines[where.Machine]
		}
		if try := where.Machine + ": " + why; !slices.Contains(r.tried[w], try) {
			r.tried[w] = append(r.tried[w], try)
		}
	}
	r.pending = left
	if len(left) == 0 || len(lost.Machines)+len(lost.Workloads) == 0 {
		return false, nil
	}
	err = r.phase(ctx, fmt.Sprintf("retire %d", round), func() (string, error) {
		in := RetireInput{Step: r.step(round), Lost: lost}
		var cut, bad []string
		if err := workflow.ExecuteActivity(quick(ctx), (*Activities).Retire, in).Get(ctx, &cut); err != nil {
			return "", err
		}
		// Only what was powered on can hold an identity; a victim that could not be evicted keeps running.
		for _, m := range cut {
			if r.started[m] {
				bad = append(bad, m)
			}
		}
		met, late, err := fence(ctx, r.in.Run, r.scope, bad, left)
		r.pending = met
		r.late = append(r.late, late)
		return fmt.Sprintf("%d machines taken out of use", len(lost.Machines)), err
	})
	return len(r.pending) > 0, err
}

func (r *recovery) step(round int) Step {
	return Step{Run: r.in.Run, Round: round, Epoch: r.scope.Epoch}
}

// phase runs f and records its begin, end and note in the run's record.
func (r *recovery) phase(ctx workflow.Context, name string, f func() (string, error)) error {
	start := workflow.Now(ctx)
	p := state.Phase{Name: name, Start: start}
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).RecordPhase, r.in.Run, p).Get(ctx, nil); err != nil {
		return err
	}
	note, err := f()
	p.Note, p.End = note, workflow.Now(ctx)
	if err != nil {
		p.Note = reason(err)
	}
	// A cancelled run still records how far it came.
	rec, _ := workflow.NewDisconnectedContext(ctx)
	if rerr := workflow.ExecuteActivity(quick(rec), (*Activities).RecordPhase, r.in.Run, p).Get(rec, nil); err == nil {
		err = rerr
	}
	return err
}

func (r *recovery) approve(ctx workflow.Context) error {
	return r.phase(ctx, "approval", func() (string, error) {
		ch := workflow.GetSignalChannel(ctx, SignalApprove)
		given := 0
		for given < r.scope.Approvals {
			var a state.Approval
			// A bare Receive would not hear of a cancellation.
			workflow.NewSelector(ctx).
				AddReceive(ch, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, &a) }).
				AddReceive(ctx.Done(), func(workflow.ReceiveChannel, bool) {}).
				Select(ctx)
			if ctx.Err() != nil {
				return "", ctx.Err()
			}
			record := workflow.ExecuteActivity(quick(ctx), (*Activities).RecordApproval, r.in.Run, a, r.scope.Approvals)
			if err := record.Get(ctx, &given); err != nil {
				return "", err
			}
		}
		return fmt.Sprintf("approved by %d", given), nil
	})
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	//workflowcheck:ignore
	for k := range m { // sorted below
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
