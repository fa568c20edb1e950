package bootplane

import (
	"context"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/policies"
)

const (
	// rebootTime is how long the token of a reboot is good.
	rebootTime = 30 * time.Minute
	// A reboot within quickReboot of the phone-home before it is a sign of a loop; after maxQuick of
	// them in a row the machine is left alone (hazard H48).
	quickReboot = 10 * time.Minute
	maxQuick    = 5
)

// reboot gives a machine that has phoned home, and asks to boot again, a new token for the same boot: it
// reset itself, and a workload without a disk of its own comes back in no other way.
//
// It does so only when nothing has changed since: the workload's lease is held by exactly this machine
// or VM under exactly this epoch and run, and the machine is neither fenced nor claimed by another run.
// Lease and machine are checked in the transaction that gives the token. Before the workload has been
// seen healthy the workflow that boots it decides: a new token would make a stray packet's sender able
// to end the boot that is under way. A Host is left alone: its VMs are gone with it and are recovered
// elsewhere, and an empty Host under its old name would hide that.
func (p *Plane) reboot(ctx context.Context, b state.Boot, rev uint64) error {
	log := p.Log.With("machine", b.Machine, "workload", b.Workload, "run", b.Run)
	if b.Nonce == "" || b.PhonedAt == nil {
		return nil // of the boot before: this one's token is not used up
	}
	if b.Capture {
		log.Warn("a machine whose disk is copied has reset itself; its run boots it again when it has been silent for long enough")
		return nil
	}
	if b.Workload == "" {
		log.Warn("a host has reset itself; it is not booted again")
		return nil
	}
	lease, leaseRev, err := state.Load[state.Lease](ctx, p.Store, state.LeasesAt+b.Workload)
	if err != nil {
		return err
	}
	m, machineRev, err := state.Load[state.Machine](ctx, p.Store, state.MachinesAt+b.Machine)
	if err != nil {
		return err
	}
	here := policies.Where{Machine: b.Machine, VM: b.VM}
	switch {
	case lease.Holder != here || lease.Epoch != b.Epoch || lease.Run != b.Run:
		log.Warn("a machine asks to boot again and does not hold the lease any more")
		return nil
	case !lease.Healthy:
		return &fault.Error{Kind: fault.Busy, Where: "machine " + b.Machine, What: "boot it again", Evidence: "it is still being booted"}
	case m.Fence != nil || !b.VM && m.Claim != nil && m.Claim.Run != b.Run:
		// Refused and not settled: the other run may yet let go of the machine.
		return &fault.Error{Kind: fault.Unsafe, Where: "machine " + b.Machine, What: "boot it again", Evidence: "it is fenced, or claimed by another run"}
	}
	now := p.Now()
	if now.Sub(*b.PhonedAt) < quickReboot {
		b.Quick++
	} else {
		b.Quick = 0
	}
	if b.Quick > maxQuick {
		log.Error("a machine resets itself again and again; it is not booted any more", "reboots", b.Reboots,
			"next", "look at its console, then rerack workload release "+b.Workload)
		return nil
	}
	b.Reboots++
	b.Nonce, b.PhonedAt, b.Expires = "", nil, now.Add(rebootTime)
	rec, err := state.Encode(b)
	if err != nil {
		return err
	}
	if err := p.Store.Txn(ctx, store.PutIf(state.BootsAt+b.Name, rec, rev),
		store.Check(state.LeasesAt+b.Workload, leaseRev), store.Check(state.MachinesAt+b.Machine, machineRev)); err != nil {
		return fault.Wrap(err, "boot it again", "machine "+b.Machine)
	}
	log.Warn("a machine has reset itself and is booted again", "reboots", b.Reboots)
	return nil
}
