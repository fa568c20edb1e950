package workflows

import (
	"context"
	"slices"
	"sort"
	"time"

	"go.temporal.io/sdk/activity"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// AwaitVerdict watches the run's domain until it is certain that it burned, or until the policy's
// deadline for suspicion passes, counted from the request or the last approval. It returns the last
// verdict; only a burned one allows to go on.
func (a *Activities) AwaitVerdict(ctx context.Context, id string) (policies.Verdict, error) {
	defer beating(ctx)()
	r, err := a.run(ctx, id)
	if err != nil {
		return policies.Verdict{}, toTemporal(err)
	}
	p, err := a.policy(ctx, r)
	if err != nil {
		return policies.Verdict{}, toTemporal(err)
	}
	since := r.Requested
	for _, yes := range r.Approvals {
		if yes.At.After(since) {
			since = yes.At
		}
	}
	deadline := since.Add(p.Evidence.SuspectDeadline.Or(5 * time.Minute))
	tick := time.NewTicker(min(p.Evidence.PollEvery.Or(10*time.Second), time.Second))
	defer tick.Stop()
	for {
		// A person may come to the site after the run was asked for.
		if r, err = a.run(ctx, id); err != nil {
			return policies.Verdict{}, toTemporal(err)
		}
		said := r.Statement()
		v, err := a.Observer.Judge(ctx, r.Domain, said.By, said.Text, said.At)
		if err != nil {
			return v, toTemporal(err)
		}
		if v.State == policies.VerdictBurned || !a.Now().Before(deadline) {
			heard := len(r.Attested)
			missed := false // one that came while it was judged; who made it was told that it counts
			err := a.updateRun(ctx, id, func(r *state.Run) error {
				if missed = v.State != policies.VerdictBurned && len(r.Attested) > heard; !missed {
					r.Verdict = &v
				}
				return nil
			})
			if err != nil || !missed {
				return v, err
			}
		}
		activity.RecordHeartbeat(ctx, v.Reason)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// policy is the one that governs a run: its runbook's.
func (a *Activities) policy(ctx context.Context, r state.Run) (topology.PolicySpec, error) {
	t, err := a.topology(ctx, r)
	if err != nil {
		return topology.PolicySpec{}, err
	}
	if r.Runbook == "" { // a placement or release
		return topology.EffectivePolicy(t, rackPolicy(t)), nil
	}
	book, ok := t.Runbooks[r.Runbook]
	if !ok {
		return topology.PolicySpec{}, &fault.Error{Kind: fault.NotFound, Where: "run " + r.ID, What: "its runbook is gone",
			Evidence: r.Runbook, Next: "apply a topology with this runbook"}
	}
	return topology.EffectivePolicy(t, book.Spec.Policy), nil
}

// rackPolicy is the policy that all racks share, or none.
func rackPolicy(t *topology.Topology) string {
	names := map[string]bool{}
	for _, r := range t.Racks {
		names[r.Spec.Policy] = true
	}
	if shared := sortedKeys(names); len(shared) == 1 {
		return shared[0]
	}
	return ""
}

// OpenScope freezes what the run is about: the topology, the domain's machines in it, and the workloads that
// the leases - not the declaration - place on them. It gives the run its epoch. Asked again it looks again at the
// leases, and at nothing else.
func (a *Activities) OpenScope(ctx context.Context, id string) (Scope, error) {
	defer beating(ctx)()
	s, err := a.openScope(ctx, id)
	return s, toTemporal(err)
}

func (a *Activities) openScope(ctx context.Context, id string) (Scope, error) {
	var s Scope
	r, err := a.run(ctx, id)
	if err != nil {
		return s, err
	}
	r, t, err := a.freeze(ctx, r)
	if err != nil {
		return s, err
	}
	d, err := t.Domain(r.Domain)
	if err != nil {
		return s, err
	}
	if s.Policy, err = a.policy(ctx, r); err != nil {
		return s, err
	}
	book := t.Runbooks[r.Runbook].Spec
	s.Approvals, s.BootHosts = book.Approvals, book.HypervisorImage != ""
	if s.Epoch, err = state.NextEpoch(ctx, a.Store, id); err != nil {
		return s, err
	}
	inside := map[string]bool{}
	for _, m := range d.Machines {
		if !t.Machines[m].Spec.Maintenance {
			inside[m] = true
			s.Machines = append(s.Machines, m)
		}
	}
	if len(s.Machines) == 0 {
		return s, &fault.Error{Kind: fault.Unsafe, Where: r.Domain, What: "the domain holds no machine", Next: "check its name and its machines"}
	}
	leases, err := state.List[state.Lease](ctx, a.Store, state.LeasesAt)
	if err != nil {
		return s, err
	}
	var names []string
	for _, l := range leases {
		down, err := a.staysDown(ctx, l, r.Domain)
		if err != nil {
			return s, err
		}
		if last := l.LastHolder(); inside[last.Machine] || down {
			s.Affected = append(s.Affected, Affected{Workload: l.Workload, From: last})
			names = append(names, l.Workload)
		}
	}
	a.addFormer(&s, leases)
	sort.Slice(s.Affected, func(i, j int) bool { return s.Affected[i].Workload < s.Affected[j].Workload })
	_, err = state.Update(ctx, a.Store, state.RunsAt+id, func(r *state.Run) error {
		r.Epoch, r.Workloads = s.Epoch, names
		if len(r.Approvals) < s.Approvals {
			r.State = state.RunWaiting
		}
		return nil
	})
	return s, err
}

// freeze writes into the run which revision it goes by: the present one, if it has none yet.
func (a *Activities) freeze(ctx context.Context, r state.Run) (state.Run, *topology.Topology, error) {
	present, _, err := a.Revisions.Present(ctx)
	if err != nil {
		return r, nil, err
	}
	r, err = state.Update(ctx, a.Store, state.RunsAt+r.ID, func(r *state.Run) error {
		if r.Revision == 0 {
			r.Revision = present
		}
		return nil
	})
	if err != nil {
		return r, nil, err
	}
	t, err := a.topology(ctx, r)
	return r, t, err
}

// staysDown reports whether an earlier run on the same domain took the lease and found no place: a
// new run tries again.
func (a *Activities) staysDown(ctx context.Context, l state.Lease, domain string) (bool, error) {
	if l.Holder.Machine != "" || l.Run == "" {
		return false, nil
	}
	before, _, err := state.Load[state.Run](ctx, a.Store, state.RunsAt+l.Run)
	return before.Domain == domain, err
}

// addFormer adds machines outside the domain on which an earlier run tried to start an affected workload
// and that are not known to be cut off. One that serves something else by now has been booted anew, so
// that nothing of the former workload is left on it.
func (a *Activities) addFormer(s *Scope, leases []state.Lease) {
	serves := bare(leases)
	for i, w := range s.Affected {
		m := w.From.Machine
		if m == "" || w.From.VM || slices.Contains(s.Machines, m) {
			continue
		}
		if serves[m] != "" {
			s.Affected[i].From = policies.Where{}
			continue
		}
		s.Machines = append(s.Machines, m)
	}
}

// bare lists the workloads that are healthy on bare metal, by machine.
func bare(leases []state.Lease) map[string]string {
	out := map[string]string{}
	for _, l := range leases {
		if l.Healthy && !l.Holder.VM {
			out[l.Holder.Machine] = l.Workload
		}
	}
	return out
}

// TakeOver raises every affected workload's lease to the run's epoch and writes down, before anything
// is touched, that the domain's machines are being fenced. It returns the workloads that a newer run, on a
// domain that overlaps with this one, has already: they are that run's.
func (a *Activities) TakeOver(ctx context.Context, id string, s Scope) (others []string, err error) {
	defer beating(ctx)()
	now := a.Now()
	t, err := a.declared(ctx, id)
	if err != nil {
		return nil, toTemporal(err)
	}
	for _, m := range s.Machines {
		_, err := state.Update(ctx, a.Store, state.MachinesAt+m, func(rec *state.Machine) error {
			rec.Machine = m
			if rec.Fence == nil || rec.Fence.Epoch < s.Epoch {
				rec.Fence = &state.FenceState{Run: id, Epoch: s.Epoch, Since: now}
			}
			rec.Host, rec.Claim, rec.Epoch = nil, nil, max(rec.Epoch, s.Epoch)
			return nil
		})
		if err != nil {
			return nil, toTemporal(err)
		}
	}
	for _, w := range s.Affected {
		former, err := state.TakeLease(ctx, a.Store, w.Workload, id, s.Epoch, now)
		if fault.Is(err, fault.Stale) {
			if err := a.overtaken(ctx, id, w.Workload); err != nil {
				return nil, toTemporal(err)
			}
			others = append(others, w.Workload)
			continue
		}
		if err != nil {
			return nil, toTemporal(err)
		}
		if w.From == (policies.Where{}) && former != w.From {
			// Nobody was to be cut off when the run opened. Who has had it since is not cut off by that.
			leases, err := state.List[state.Lease](ctx, a.Store, state.LeasesAt)
			if err == nil && !former.VM && bare(leases)[former.Machine] != "" {
				err = state.CutOff(ctx, a.Store, w.Workload, id, s.Epoch)
			}
			if err != nil {
				return nil, toTemporal(err)
			}
		}
		err = a.result(ctx, id, w.Workload, func(r *state.Result) {
			r.From, r.State, r.Priority = w.From.Machine, "fencing", t.Workloads[w.Workload].Spec.Priority
		})
		if err != nil {
			return nil, toTemporal(err)
		}
	}
	return others, nil
}

// overtaken writes into the run's report that a newer run has taken a workload.
func (a *Activities) overtaken(ctx context.Context, id, w string) error {
	l, _, err := state.Load[state.Lease](ctx, a.Store, state.LeasesAt+w)
	if err != nil {
		return err
	}
	return a.result(ctx, id, w, func(r *state.Result) {
		r.State, r.Constraint, r.Reason = "left-out", "other run", "run "+l.Run+" has taken it; see there"
	})
}
