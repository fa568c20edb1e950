package workflows

import (
	"context"
	"slices"
	"strings"

	bmc "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	hypervisor "rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// OpenPlacement takes the lease of the run's workload, which must run nowhere.
func (a *Activities) OpenPlacement(ctx context.Context, id string) (Scope, error) {
	defer beating(ctx)()
	s, t, lease, err := a.openWorkload(ctx, id)
	if err != nil {
		return s, toTemporal(err)
	}
	if lease.Holder.Machine != "" && lease.Run != id {
		return s, toTemporal(&fault.Error{Kind: fault.Conflict, Where: "workload " + lease.Workload, What: "it runs already",
			Evidence: "on " + lease.Holder.Machine, Next: "rerack workload release " + lease.Workload})
	}
	if lease.Former.Machine != "" {
		return s, toTemporal(&fault.Error{Kind: fault.Unsafe, Where: "workload " + lease.Workload, What: "start it elsewhere",
			Evidence: lease.Former.Machine + " had it and is not known to be cut off", Next: "recover the failure domain of " + lease.Former.Machine})
	}
	// Placing one workload turns no machine into a Host: which image that takes is a runbook's word.
	w := s.Affected[0].Workload
	if err := a.notFilled(ctx, t.Workloads[w]); err != nil {
		return s, toTemporal(err)
	}
	if _, err := state.TakeLease(ctx, a.Store, w, id, s.Epoch, a.Now()); err != nil {
		return s, toTemporal(err)
	}
	return s, toTemporal(a.result(ctx, id, w, func(r *state.Result) {
		r.State, r.Priority = "planned", t.Workloads[w].Spec.Priority
	}))
}

// OpenRelease freezes where the run's workload runs and raises its lease, so that nothing else starts it
// meanwhile.
func (a *Activities) OpenRelease(ctx context.Context, id string) (Scope, error) {
	defer beating(ctx)()
	s, t, lease, err := a.openWorkload(ctx, id)
	if err != nil {
		return s, toTemporal(err)
	}
	if lease.Holder.Machine == "" {
		return s, toTemporal(&fault.Error{Kind: fault.Conflict, Where: "workload " + s.Affected[0].Workload, What: "it runs nowhere"})
	}
	s.Affected[0].From, s.Affected[0].Healthy = lease.Holder, lease.Healthy
	if !lease.Holder.VM {
		s.Machines = []string{lease.Holder.Machine}
		for _, nic := range t.Machines[lease.Holder.Machine].Spec.NICs {
			if !slices.Contains(s.Switches, nic.Switch) {
				s.Switches = append(s.Switches, nic.Switch)
			}
		}
		slices.Sort(s.Switches)
	}
	return s, nil
}

func (a *Activities) openWorkload(ctx context.Context, id string) (s Scope, t *topology.Topology, lease state.Lease, err error) {
	r, err := a.run(ctx, id)
	if err != nil {
		return s, nil, lease, err
	}
	if r, t, err = a.freeze(ctx, r); err != nil {
		return s, nil, lease, err
	}
	name := strings.TrimPrefix(r.Domain, "workload/")
	if _, ok := t.Workloads[name]; !ok {
		return s, nil, lease, &fault.Error{Kind: fault.NotFound, Where: name, What: "no such workload"}
	}
	if s.Policy, err = a.policy(ctx, r); err != nil {
		return s, nil, lease, err
	}
	if s.Epoch, err = state.NextEpoch(ctx, a.Store, id); err != nil {
		return s, nil, lease, err
	}
	s.Affected = []Affected{{Workload: name}}
	if err := a.updateRun(ctx, id, func(r *state.Run) error {
		r.Epoch, r.Workloads = s.Epoch, []string{name}
		return nil
	}); err != nil {
		return s, nil, lease, err
	}
	lease, _, err = state.Load[state.Lease](ctx, a.Store, state.LeasesAt+name)
	return s, t, lease, err
}

// StopWorkload ends the lease and stops the workload where it runs, read back.
func (a *Activities) StopWorkload(ctx context.Context, s Step, sc Scope) error {
	dev, done := atDevices(ctx)
	defer done()
	w := sc.Affected[0]
	if _, err := state.TakeLease(ctx, a.Store, w.Workload, s.Run, s.Epoch, a.Now()); err != nil {
		return toTemporal(err)
	}
	if !w.From.VM { // its ports are set with this epoch
		if _, err := state.Update(ctx, a.Store, state.MachinesAt+w.From.Machine, func(rec *state.Machine) error {
			rec.Machine, rec.Epoch = w.From.Machine, max(rec.Epoch, s.Epoch)
			return nil
		}); err != nil {
			return toTemporal(err)
		}
	}
	in := BootInput{Step: s, Name: w.Workload, Where: w.From}
	if err := a.stop(dev, in, sc.Policy.Fencing); err != nil {
		return late(ctx, err)
	}
	if err := state.CutOff(ctx, a.Store, w.Workload, s.Run, s.Epoch); err != nil {
		return toTemporal(err)
	}
	return toTemporal(a.Store.Txn(ctx, store.Delete(state.BootsAt+in.bootName())))
}

// KeepWorkload gives the lease back to where the workload still runs, when a release did not go through. It
// reports whether the workload is stopped, and stays so.
func (a *Activities) KeepWorkload(ctx context.Context, s Step, sc Scope) (stopped bool, err error) {
	dev, done := atDevices(ctx)
	defer done()
	stopped, err = a.keep(ctx, dev, s, sc.Affected[0], sc.Policy.Fencing)
	return stopped, toTemporal(err)
}

// keep gives a lease that was taken to stop a workload back to where it still runs. One that was stopped all
// the same stays released; where nobody can tell, the place keeps the lease and the workload is not said to
// be healthy. A machine that is on says little of its workload: healthy is what was so before, and still answers
// where it can be asked.
func (a *Activities) keep(ctx, dev context.Context, s Step, w Affected, p topology.FencingPolicy) (stopped bool, err error) {
	l, _, err := state.Load[state.Lease](ctx, a.Store, state.LeasesAt+w.Workload)
	if err != nil || l.Run != s.Run || l.Epoch != s.Epoch {
		return false, err // it was never taken, or a newer run has it
	}
	if l.Former != w.From {
		return l.LastHolder() == policies.Where{}, nil // it is cut off, or given back already
	}
	runs, err := a.runsThere(dev, s, w, p)
	if err == nil && !runs {
		return true, state.CutOff(ctx, a.Store, w.Workload, s.Run, s.Epoch)
	}
	healthy := runs && w.Healthy
	if healthy {
		t, err := a.declared(ctx, s.Run)
		if err != nil {
			return false, err
		}
		healthy = a.probe(dev, t, w.Workload) == nil
	}
	if err != nil {
		a.Log.Warn("whether a workload still runs cannot be read", "workload", w.Workload, "machine", w.From.Machine, "error", err)
	}
	_, err = state.Update(ctx, a.Store, state.LeasesAt+w.Workload, func(l *state.Lease) error {
		if l.Run == s.Run && l.Epoch == s.Epoch {
			l.Holder, l.Former, l.Healthy = w.From, policies.Where{}, healthy
		}
		return nil
	})
	return false, err
}

// runsThere reads whether a workload runs where it was. It is said not to only when that would do as a
// fence: the machine reads off as often as the policy wants, or its Host does not list the VM as running.
func (a *Activities) runsThere(ctx context.Context, s Step, w Affected, p topology.FencingPolicy) (bool, error) {
	if w.From.VM {
		h, err := a.host(ctx, w.From.Machine)
		if err != nil {
			return false, err
		}
		vms, err := h.VMs(ctx)
		running := func(vm hypervisor.VM) bool { return vm.Name == w.Workload && vm.State != hypervisor.StateDefined }
		if err != nil || slices.ContainsFunc(vms, running) {
			return err == nil, err
		}
		// A start that is still on its way to the Host comes too late for it from now on.
		return false, h.Stop(ctx, w.Workload, s.Epoch)
	}
	t, err := a.declared(ctx, s.Run)
	if err != nil {
		return false, err
	}
	control, err := a.Devices.Machine(ctx, t.Machines[w.From.Machine])
	if err != nil {
		return false, err
	}
	power, err := control.Power(ctx)
	if err != nil || power.State != bmc.PowerOff {
		return power.State == bmc.PowerOn, err
	}
	_, err = control.Off(ctx, max(p.OffReadings, 1), p.OffInterval.Or(0))
	return false, err
}

// FreePorts puts the machines' ports on one switch into their provisioning network, where free machines
// are; one without such a network is closed.
func (a *Activities) FreePorts(ctx context.Context, in FenceInput) error {
	dev, done := atDevices(ctx)
	defer done()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return toTemporal(err)
	}
	w := newWiring(t)
	for _, m := range in.Machines {
		if t.Machines[m].Spec.Provisioning.Network == "" {
			w.close(t, m, in.Epoch)
			continue
		}
		w.connect(t, m, t.Machines[m].Spec.Provisioning.Network, nil, in.Epoch)
	}
	w.sort()
	return late(ctx, a.applySwitch(dev, t, in.Device, fabric.Change{Owner: in.Run, Settings: w.Switches[in.Device]}))
}
