package workflows

import (
	"context"
	"fmt"
	"slices"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/policies"
)

// RecordPhase writes a phase's begin or end into the run.
func (a *Activities) RecordPhase(ctx context.Context, id string, p state.Phase) error {
	defer beating(ctx)()
	return a.updateRun(ctx, id, func(r *state.Run) error {
		for i := range r.Phases {
			if r.Phases[i].Name == p.Name {
				r.Phases[i] = p
				return nil
			}
		}
		r.Phases = append(r.Phases, p)
		return nil
	})
}

// RecordApproval writes a person's yes into the run and returns how many count: each person once, and
// never who asked for the run. With enough of them the run waits no longer.
func (a *Activities) RecordApproval(ctx context.Context, id string, by state.Approval, enough int) (given int, err error) {
	defer beating(ctx)()
	err = a.updateRun(ctx, id, func(r *state.Run) error {
		same := func(have state.Approval) bool { return have.By == by.By }
		if by.By != "" && !r.Proposed(by.By) && !slices.ContainsFunc(r.Approvals, same) {
			r.Approvals = append(r.Approvals, by)
		}
		if given = len(r.Approvals); given >= enough && r.State == state.RunWaiting {
			r.State = state.RunRunning
		}
		return nil
	})
	return given, err
}

// CloseRun writes the run's end, marks what stays down, and lets the domain go.
func (a *Activities) CloseRun(ctx context.Context, id string, res RecoverResult) error {
	defer beating(ctx)()
	r, err := a.run(ctx, id)
	if err != nil {
		return toTemporal(err)
	}
	now := a.Now()
	ends, err := a.ends(ctx, r)
	if err != nil {
		return toTemporal(err)
	}
	for _, w := range r.Workloads {
		err := a.result(ctx, id, w, func(out *state.Result) {
			if out.State == "healthy" || out.State == "left-out" {
				return
			}
			out.State = ends[w]
			if out.Reason == "" {
				out.Reason = res.Reason
			}
		})
		if err != nil {
			return toTemporal(err)
		}
	}
	for _, w := range r.Workloads {
		if err := a.abandon(ctx, r, w); err != nil {
			return toTemporal(err)
		}
	}
	if err := a.releaseClaims(ctx, id); err != nil {
		return toTemporal(err)
	}
	if err := a.updateRun(ctx, id, func(r *state.Run) error {
		if !r.State.Ended() {
			r.State, r.Reason, r.Ended = res.State, res.Reason, now
			if r.Reason == "" {
				r.Reason = fmt.Sprintf("%d of %d workloads are back", res.Recovered, res.Of)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	_, err = state.Update(ctx, a.Store, state.DomainsAt+r.Domain, func(d *state.Domain) error {
		if d.Active == id {
			d.Active = ""
		}
		return nil
	})
	return toTemporal(err)
}

// ends says what became of the workloads that are not healthy: left out, or of a release what its lease says.
func (a *Activities) ends(ctx context.Context, r state.Run) (map[string]string, error) {
	out := map[string]string{}
	for _, w := range r.Workloads {
		out[w] = "left-out"
		if r.Kind != state.KindRelease {
			continue
		}
		l, _, err := state.Load[state.Lease](ctx, a.Store, state.LeasesAt+w)
		switch {
		case err != nil:
			return nil, err
		case l.LastHolder() != (policies.Where{}):
			out[w] = "running"
		case l.Run == r.ID:
			out[w] = "released"
		}
	}
	return out, nil
}

// abandon takes the lease back from a target that the run started and did not see healthy, as it happens
// when it is cancelled. Unless the target was seen to stop, a later run has to cut it off first.
func (a *Activities) abandon(ctx context.Context, r state.Run, w string) error {
	res, _, err := state.Load[state.Result](ctx, a.Store, state.ResultsAt+r.ID+"/"+w)
	if err != nil || res.State == "healthy" || res.Where == (policies.Where{}) {
		return err
	}
	l, _, err := state.Load[state.Lease](ctx, a.Store, state.LeasesAt+w)
	if err != nil || l.Run != r.ID || l.Holder != res.Where {
		return err
	}
	if err := state.WithdrawLease(ctx, a.Store, w, r.ID, r.Epoch, a.Now()); err != nil {
		return err
	}
	if !seenToStop(res) {
		return nil
	}
	return state.CutOff(ctx, a.Store, w, r.ID, r.Epoch)
}

// seenToStop reports whether a target that was started was read back as stopped since, or never started.
func seenToStop(r state.Result) bool { return !r.Times["stopped"].Before(r.Times["power-on"]) }

// releaseClaims gives back machines that the run claimed and does not use: those that hold no lease
// and are no Host.
func (a *Activities) releaseClaims(ctx context.Context, id string) error {
	holders, err := a.holders(ctx)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, at := range holders {
		used[at.Machine] = true
	}
	machines, err := a.machines(ctx)
	if err != nil {
		return err
	}
	for _, name := range sortedKeys(machines) {
		m := machines[name]
		if m.Claim == nil || m.Claim.Run != id {
			continue
		}
		// The boot record goes first: once the claim is gone another run may write its own.
		if !used[name] && m.Host == nil {
			if err := a.Store.Txn(ctx, store.Delete(state.BootsAt+name)); err != nil {
				return err
			}
		}
		if _, err := state.Update(ctx, a.Store, state.MachinesAt+name, func(rec *state.Machine) error {
			if rec.Claim != nil && rec.Claim.Run == id {
				rec.Claim = nil
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
