package workflows

import (
	"context"
	"fmt"
	"sync"

	"go.temporal.io/sdk/activity"
	"golang.org/x/sync/errgroup"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
)

// Evict stops the repurposable workloads that the round's plan takes machines from: lease taken, power
// off, read back, cut off. Repurposability and priority are checked again here, at the moment of the act.
func (a *Activities) Evict(ctx context.Context, s Step) (losses, error) {
	dev, done := atDevices(ctx)
	defer done()
	out := losses{Machines: map[string]string{}}
	plan, _, err := state.Load[StoredPlan](ctx, a.Store, planKey(s.Run, s.Round))
	if err != nil {
		return out, toTemporal(err)
	}
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(powerAtOnce)
	for _, e := range plan.Placement.Evictions {
		g.Go(func() error {
			if err := a.evict(ctx, dev, s, e); err != nil {
				mu.Lock()
				defer mu.Unlock()
				out.Machines[e.Machine] = fmt.Sprintf("%s could not be evicted: %v", e.Workload, err)
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return no error
	return out, toTemporal(ctx.Err())
}

func (a *Activities) evict(ctx, dev context.Context, s Step, e policies.Eviction) error {
	// Both must allow it: what the run was planned with, and what is declared now.
	t, err := a.declared(ctx, s.Run)
	if err != nil {
		return err
	}
	if !t.Workloads[e.Workload].Spec.Repurposable || !a.Topology().Workloads[e.Workload].Spec.Repurposable {
		return &fault.Error{Kind: fault.Unsafe, Where: "workload " + e.Workload, What: "it is not repurposable any more"}
	}
	rec, _, err := state.Load[state.Machine](ctx, a.Store, state.MachinesAt+e.Machine)
	if err != nil {
		return err
	}
	if rec.Claim == nil || rec.Claim.Run != s.Run {
		return &fault.Error{Kind: fault.Conflict, Where: "machine " + e.Machine, What: "the run's claim is gone"}
	}
	lease, _, err := state.Load[state.Lease](ctx, a.Store, state.LeasesAt+e.Workload)
	if err != nil {
		return err
	}
	if lease.Holder.Machine != "" && lease.Holder.Machine != e.Machine {
		return &fault.Error{Kind: fault.Conflict, Where: "workload " + e.Workload, What: "it has moved to " + lease.Holder.Machine}
	}
	control, err := a.Devices.Machine(ctx, t.Machines[e.Machine])
	if err != nil {
		return err
	}
	r, err := a.run(ctx, s.Run)
	if err != nil {
		return err
	}
	p, err := a.policy(ctx, r)
	if err != nil {
		return err
	}
	// The lease comes first: a newer run that has it since must not find its machine turned off.
	if _, err = state.TakeLease(ctx, a.Store, e.Workload, s.Run, s.Epoch, a.Now()); err == nil {
		_, err = control.Off(dev, max(p.Fencing.OffReadings, 1), p.Fencing.OffInterval.Or(0))
	}
	if err == nil {
		err = state.CutOff(ctx, a.Store, e.Workload, s.Run, s.Epoch)
	}
	if err == nil {
		return nil
	}
	// Whatever kept it from being certain, a cancellation included: who has the workload now is written down.
	i := activity.GetInfo(ctx)
	write := context.WithoutCancel(ctx)
	look, cancel := context.WithTimeout(write, (i.StartToCloseTimeout-onDevices(i))/2)
	defer cancel()
	victim := Affected{Workload: e.Workload, From: policies.Where{Machine: e.Machine}, Healthy: lease.Healthy}
	// A BMC that did not answer in time may still turn the machine off: what reads as on says nothing of that.
	victim.Healthy = victim.Healthy && !fault.Is(err, fault.Timeout)
	if _, kerr := a.keep(write, look, s, victim, p.Fencing); kerr != nil {
		a.Log.Error("the lease of a workload that was not evicted cannot be given back", "workload", e.Workload, "machine", e.Machine, "error", kerr)
	}
	return err
}
