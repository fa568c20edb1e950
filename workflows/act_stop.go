package workflows

import (
	"context"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
)

// StopTarget stops a target that did not come up, reads back that it stopped, and withdraws its boot
// record. Stopping is confirmed in its result; without that its identity moves nowhere.
func (a *Activities) StopTarget(ctx context.Context, in BootInput, why string) error {
	dev, done := atDevices(ctx)
	defer done()
	if err := a.forget(ctx, in); err != nil {
		return toTemporal(err)
	}
	if err := a.distrust(ctx, in); err != nil {
		return toTemporal(err)
	}
	r, err := a.run(ctx, in.Run)
	if err != nil {
		return toTemporal(err)
	}
	p, err := a.policy(ctx, r)
	if err != nil {
		return toTemporal(err)
	}
	if err := a.result(ctx, in.Run, in.resultName(), func(r *state.Result) {
		r.State, r.Reason = "failed", why
		if in.Host && !strings.Contains(strings.Join(r.Tried, "\n"), why) {
			r.Tried = append(r.Tried, in.Name+": "+why)
		}
	}); err != nil {
		return toTemporal(err)
	}
	if err := a.mayStop(ctx, in); err != nil {
		return toTemporal(err)
	}
	if err := a.stop(dev, in, p.Fencing); err != nil {
		return late(ctx, err)
	}
	return toTemporal(a.result(ctx, in.Run, in.resultName(), func(r *state.Result) { r.Times["stopped"] = a.Now() }))
}

// mayStop refuses a machine that another run has claimed since, or that was given free: what runs on it now is not
// this run's. One that is fenced may be turned off by anybody.
func (a *Activities) mayStop(ctx context.Context, in BootInput) error {
	if in.Where.VM {
		return nil // a Host refuses an older epoch itself
	}
	rec, _, err := state.Load[state.Machine](ctx, a.Store, state.MachinesAt+in.Where.Machine)
	if err != nil || rec.Fence != nil || rec.Claim != nil && rec.Claim.Run == in.Run {
		return err
	}
	return &fault.Error{Kind: fault.Stale, Where: "machine " + in.Where.Machine, What: "stop it", Evidence: "it is not claimed by " + in.Run + " any more"}
}

// forget withdraws the target's boot record. A VM's goes by its workload's name, so that a newer run which
// has taken the workload may have put its own there.
func (a *Activities) forget(ctx context.Context, in BootInput) error {
	return a.withdrawBoot(ctx, in.bootName(), func(b state.Boot) bool { return b.Workflow == bootID(in.Step, in.Name, in.Host) })
}

// withdrawBoot takes a boot record out if it is the caller's.
func (a *Activities) withdrawBoot(ctx context.Context, name string, mine func(state.Boot) bool) error {
	for {
		rec, rev, err := state.Load[state.Boot](ctx, a.Store, state.BootsAt+name)
		if err != nil || rev == 0 || !mine(rec) {
			return err
		}
		if err := a.Store.Txn(ctx, store.DeleteIf(state.BootsAt+name, rev)); !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}

// distrust takes back what the store says of a target that is about to be stopped: it is no Host, its
// workload is not healthy.
func (a *Activities) distrust(ctx context.Context, in BootInput) (err error) {
	if in.Host {
		_, err = state.Update(ctx, a.Store, state.MachinesAt+in.Name, func(rec *state.Machine) error {
			if rec.Host != nil && rec.Host.Epoch == in.Epoch {
				rec.Host = nil
			}
			return nil
		})
		return err
	}
	_, err = state.Update(ctx, a.Store, state.LeasesAt+in.Name, func(l *state.Lease) error {
		if l.Epoch == in.Epoch && l.Holder == in.Where {
			l.Healthy = false
		}
		return nil
	})
	return err
}

func (a *Activities) stop(ctx context.Context, in BootInput, p topology.FencingPolicy) error {
	if !in.Where.VM {
		t, err := a.declared(ctx, in.Run)
		if err != nil {
			return err
		}
		control, err := a.Devices.Machine(ctx, t.Machines[in.Where.Machine])
		if err != nil {
			return err
		}
		_, err = control.Off(ctx, max(p.OffReadings, 1), p.OffInterval.Or(0))
		return err
	}
	h, err := a.host(ctx, in.Where.Machine)
	if err != nil {
		return err
	}
	if err := h.Stop(ctx, in.Name, in.Epoch); err != nil {
		return err
	}
	return h.Undefine(ctx, in.Name, in.Epoch)
}
