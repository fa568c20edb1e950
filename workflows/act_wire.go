package workflows

import (
	"context"
	"time"

	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	san "rerack.dev/rerack/sanzoning/driver"
)

// ApplySwitch commits the round's ports of one switch.
func (a *Activities) ApplySwitch(ctx context.Context, in DeviceStep) error {
	dev, done := atDevices(ctx)
	defer done()
	w, err := a.loadRound(ctx, in)
	if err != nil {
		return toTemporal(err)
	}
	return late(ctx, a.applySwitch(dev, w.topology, in.Device, fabric.Change{Owner: in.Run, Settings: w.Switches[in.Device]}))
}

// ApplyFabric commits the round's zones of one fabric.
func (a *Activities) ApplyFabric(ctx context.Context, in DeviceStep) error {
	dev, done := atDevices(ctx)
	defer done()
	load := func() (wiring, error) { return a.loadRound(ctx, in) }
	return overtaking(ctx, load, func(w wiring) error {
		return a.applyFabric(dev, w.topology, in.Device, san.ZoneChange{Owner: in.Run, Zones: w.Fabrics[in.Device]})
	})
}

// ApplyArray commits the round's masks of one array. lost are the workloads with a volume that the array does
// not have, with why: they would wait for it in vain.
func (a *Activities) ApplyArray(ctx context.Context, in DeviceStep) (lost map[string]string, err error) {
	dev, done := atDevices(ctx)
	defer done()
	load := func() (wiring, error) { return a.loadRound(ctx, in) }
	err = overtaking(ctx, load, func(w wiring) error {
		missing, err := a.applyArray(dev, w.topology, in.Device, san.MaskChange{Owner: in.Run, Masks: w.Arrays[in.Device]})
		lost = map[string]string{}
		for _, name := range w.topology.Names(topology.KindWorkload) {
			for _, v := range w.topology.Workloads[name].Spec.Volumes {
				if why := missing[v.Volume]; why != "" {
					lost[name] = why
				}
			}
		}
		return err
	})
	return lost, err
}

// RetireInput names what failed in a round.
type RetireInput struct {
	Step
	Lost losses `json:"lost"`
}

// Retire marks machines that failed as suspect, takes them out of the run's claims, and withdraws the
// leases of workloads that did not come up, before they are fenced. A machine on which something else is
// healthy - a Host with other VMs - or that is not ours keeps running and gets nothing new, and one that a newer run
// has taken since is that run's; to cut are the others.
func (a *Activities) Retire(ctx context.Context, in RetireInput) (cut []string, err error) {
	defer beating(ctx)()
	now := a.Now()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return nil, toTemporal(err)
	}
	serves, err := a.serving(ctx)
	if err != nil {
		return nil, toTemporal(err)
	}
	for _, m := range sortedKeys(in.Lost.Machines) {
		why, theirs := in.Lost.Machines[m], false
		if _, err := state.Update(ctx, a.Store, state.MachinesAt+m, func(rec *state.Machine) error {
			if theirs = rec.Epoch > in.Epoch; theirs {
				return nil
			}
			rec.Machine, rec.Claim = m, nil
			if !serves[m] {
				rec.Host = nil
			}
			if rec.Suspect == nil {
				rec.Suspect = &state.Suspect{Run: in.Run, Reason: why, Since: now}
			}
			return nil
		}); err != nil {
			return nil, toTemporal(err)
		}
		if theirs || serves[m] || t.Machines[m].Spec.Existing() { // who runs VMs of theirs there keeps them
			continue
		}
		cut = append(cut, m)
		if err := a.Store.Txn(ctx, store.Delete(state.BootsAt+m)); err != nil {
			return nil, toTemporal(err)
		}
	}
	for _, w := range sortedKeys(in.Lost.Workloads) {
		if err := a.withdraw(ctx, in, w, now); err != nil {
			return nil, toTemporal(err)
		}
		// One whose place was lost before it was started has no other word on that.
		if err := a.result(ctx, in.Run, w, func(r *state.Result) {
			if r.State == "planned" {
				r.State, r.Reason = "failed", in.Lost.Workloads[w]
			}
		}); err != nil {
			return nil, toTemporal(err)
		}
	}
	return cut, nil
}

// withdraw takes the lease back from where the workload was to run. A machine that was held for it, was
// never given anything to boot, and was seen to stop, has no part in its identity: it is good for another.
func (a *Activities) withdraw(ctx context.Context, in RetireInput, w string, now time.Time) error {
	if err := state.WithdrawLease(ctx, a.Store, w, in.Run, in.Epoch, now); fault.Is(err, fault.Stale) {
		return nil // a newer run has it
	} else if err != nil {
		return err
	}
	res, _, err := state.Load[state.Result](ctx, a.Store, state.ResultsAt+in.Run+"/"+w)
	if err != nil || res.Where.VM || in.Lost.Machines[res.Where.Machine] != "" || !seenToStop(res) {
		return err
	}
	return state.CutOff(ctx, a.Store, w, in.Run, in.Epoch)
}

// serving lists the machines on which some workload is healthy.
func (a *Activities) serving(ctx context.Context) (map[string]bool, error) {
	leases, err := state.List[state.Lease](ctx, a.Store, state.LeasesAt)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, l := range leases {
		if l.Healthy {
			out[l.Holder.Machine] = true
		}
	}
	return out, nil
}
