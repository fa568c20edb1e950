package workflows

import (
	"context"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// JudgeInput is what was read back after fencing.
type JudgeInput struct {
	FenceInput
	Got map[policies.FenceKind]Fences `json:"got"`
	// PowerPending says that power is still being worked on: a workload that needs it is not met yet,
	// and not given up either.
	PowerPending bool `json:"powerPending,omitempty"`
}

// JudgeFences decides for every workload whether its former machine is fenced enough (rule F2), writes
// the fences into the machines' records, and returns the workloads that may start elsewhere.
func (a *Activities) JudgeFences(ctx context.Context, in JudgeInput) ([]string, error) {
	defer beating(ctx)()
	now := a.Now()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return nil, toTemporal(err)
	}
	for _, m := range in.Machines {
		fences := machineFences(in.Got, m)
		if _, err := state.Update(ctx, a.Store, state.MachinesAt+m, func(rec *state.Machine) error {
			rec.Machine = m
			switch {
			case rec.Fence == nil || rec.Fence.Epoch < in.Epoch:
				rec.Fence = &state.FenceState{Run: in.Run, Epoch: in.Epoch, Since: now, Fences: fences}
			case rec.Fence.Epoch == in.Epoch: // else a newer run fences it
				rec.Fence.Fences = fences
			}
			return nil
		}); err != nil {
			return nil, toTemporal(err)
		}
	}
	fenced := map[string]bool{}
	for _, m := range in.Machines {
		fenced[m] = true
	}
	var met []string
	for _, w := range in.Workloads {
		ok, why, err := a.fencedEnough(ctx, t, in, w)
		if err == nil && ok {
			err = state.CutOff(ctx, a.Store, w, in.Run, in.Epoch)
		}
		if fault.Is(err, fault.Stale) {
			if err := a.overtaken(ctx, in.Run, w); err != nil {
				return nil, toTemporal(err)
			}
			continue
		}
		if err != nil {
			return nil, toTemporal(err)
		}
		if !ok && in.PowerPending {
			continue
		}
		if err := a.result(ctx, in.Run, w, func(r *state.Result) {
			if ok {
				r.State = "fenced"
				if r.Times["fenced"].IsZero() {
					r.Times["fenced"] = now
				}
				return
			}
			r.State, r.Constraint, r.Reason = "left-out", "fencing", why
		}); err != nil {
			return nil, toTemporal(err)
		}
		if ok {
			met = append(met, w)
		}
	}
	return met, nil
}

// fencedEnough decides for one workload: what counts is who its lease says had it last.
func (a *Activities) fencedEnough(ctx context.Context, t *topology.Topology, in JudgeInput, w string) (bool, string, error) {
	l, _, err := state.Load[state.Lease](ctx, a.Store, state.LeasesAt+w)
	if err != nil {
		return false, "", err
	}
	former := l.LastHolder().Machine
	switch {
	case l.Epoch > in.Epoch:
		return false, "", &fault.Error{Kind: fault.Stale, Where: "lease of " + w, What: "judge its fences", Evidence: "it belongs to run " + l.Run}
	case former == "":
		return true, "", nil // it ran nowhere since the last fence
	case slices.Contains(in.Machines, former):
	case l.LastHolder().VM: // its Host lives on, so the VM itself must have been seen to stop
		f := in.Got[policies.FencePower]["workload/"+w]
		return f.Confirmed, f.Detail, nil
	default:
		return false, former + " had it and is not being fenced", nil
	}
	needs := policies.Needs(t, w)
	needs.Machine = former
	got := machineFences(in.Got, former)
	if f, has := in.Got[policies.FenceStorage]["workload/"+w]; has {
		got = append(got, f)
	}
	v := policies.Fenced(needs, got)
	why := former + " could not be fenced: " + v.Reason
	if len(v.Missing) > 0 {
		why += " (missing: " + strings.Join(v.Missing, ", ") + ")"
	}
	return v.Met, why, nil
}

func machineFences(got map[policies.FenceKind]Fences, machine string) []policies.Fence {
	var out []policies.Fence
	for _, k := range []policies.FenceKind{policies.FencePower, policies.FenceNetwork} {
		if f, ok := got[k][machine]; ok {
			f.Kind = k
			out = append(out, f)
		}
	}
	return out
}
