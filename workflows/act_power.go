package workflows

import (
	"context"
	"slices"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
)

// PowerOn sets the machine to boot from the network once and turns it on, both read back. Its token is good
// from then on for as long as the boot may take.
func (a *Activities) PowerOn(ctx context.Context, in BootInput) error {
	dev, done := atDevices(ctx)
	defer done()
	claimed, release, err := a.whileClaimed(dev, in)
	if err != nil {
		return toTemporal(err)
	}
	err = a.powerOn(ctx, claimed, in)
	if lost := release(); lost != nil {
		return toTemporal(lost)
	}
	if err != nil {
		return late(ctx, err)
	}
	if err := a.startToken(ctx, in); err != nil {
		return toTemporal(err)
	}
	return toTemporal(a.stamp(ctx, in, "on"))
}

func (a *Activities) powerOn(ctx, dev context.Context, in BootInput) error {
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return err
	}
	m := t.Machines[in.Where.Machine]
	control, err := a.Devices.Machine(dev, m)
	if err != nil {
		return err
	}
	if err := a.stillOff(ctx, dev, in, control); err != nil {
		return err
	}
	// "power-on" is when it was asked: what follows until DHCP is the hardware's time.
	if err := a.stamp(ctx, in, "power-on"); err != nil {
		return err
	}
	err = control.On(dev, bmc.BootOverride{Device: bmc.BootPXE, Mode: firmware(t, in, m), Once: true}, in.Limits.Resend)
	return fault.Wrap(err, "power on", "machine "+in.Where.Machine)
}

// whileClaimed returns a context that ends when the target's machine is fenced or not claimed by the run any
// more: a power-on that is sent again for minutes must not be sent to a machine that is somebody else's by
// then. The store must answer for it, too. release returns why it has ended, if it has.
func (a *Activities) whileClaimed(ctx context.Context, in BootInput) (claimed context.Context, release func() error, err error) {
	key := state.MachinesAt + in.Where.Machine
	entries, from, err := a.Store.List(ctx, key)
	if err != nil {
		return nil, nil, err
	}
	at := slices.IndexFunc(entries, func(e store.Entry) bool { return e.Key == key })
	if at < 0 {
		return nil, nil, claimedBy(state.Machine{}, in)
	}
	rec, err := state.Decode[state.Machine](entries[at])
	if err == nil {
		err = claimedBy(rec, in)
	}
	if err != nil {
		return nil, nil, err
	}
	claimed, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		ended <- a.Store.Watch(claimed, key, from, func(b store.Batch) error {
			if b.Reset && !slices.ContainsFunc(b.Changes, func(c store.Change) bool { return c.Key == key }) {
				return claimedBy(state.Machine{}, in)
			}
			for _, c := range b.Changes {
				if c.Key != key {
					continue // one whose name begins alike
				}
				rec, err := state.Decode[state.Machine](c.Entry)
				if c.Deleted {
					rec, err = state.Machine{}, nil
				}
				if err == nil {
					err = claimedBy(rec, in)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}()
	return claimed, func() error { cancel(); return <-ended }, nil
}

// claimedBy refuses a machine that is not the run's to turn on.
func claimedBy(rec state.Machine, in BootInput) error {
	if rec.Fence == nil && rec.Claim != nil && rec.Claim.Run == in.Run {
		return nil
	}
	return &fault.Error{Kind: fault.Unsafe, Where: "machine " + in.Where.Machine, What: "power on",
		Evidence: "it is fenced, or not claimed by " + in.Run}
}

// startToken makes the token of a target that was just started good for as long as its boot may take. One that
// was used up meanwhile stays as it is, a held one is good for its hold, and that of a capture for its copy.
func (a *Activities) startToken(ctx context.Context, in BootInput) error {
	now := a.Now()
	_, err := state.Update(ctx, a.Store, state.BootsAt+in.bootName(), func(rec *state.Boot) error {
		switch {
		case rec.Run != in.Run || rec.Epoch != in.Epoch:
			return &fault.Error{Kind: fault.Stale, Where: "boot record " + in.bootName(), What: "start its token", Evidence: "another boot has taken its place"}
		case !rec.Held && !rec.Capture && rec.PhonedAt == nil:
			rec.Expires = now.Add(in.Limits.token())
		}
		return nil
	})
	return err
}

// stillOff refuses a machine that is on before this boot ever asked for it: it runs something else, and
// would not boot from the network.
func (a *Activities) stillOff(ctx, dev context.Context, in BootInput, control MachineControl) error {
	res, _, err := state.Load[state.Result](ctx, a.Store, state.ResultsAt+in.Run+"/"+in.resultName())
	if err != nil || !res.Times["power-on"].IsZero() {
		return err
	}
	// What cannot be read now is tried anyway: turning on reads it again.
	if now, err := control.Power(dev); err == nil && now.State == bmc.PowerOn {
		return &fault.Error{Kind: fault.Conflict, Where: "machine " + in.Where.Machine, What: "power on",
			Evidence: "it is on already, and not by this run", Next: "find out what runs on it"}
	}
	return nil
}

// firmware is the mode to boot in: what the workload needs, else the machine's first that its image boots by.
func firmware(t *topology.Topology, in BootInput, m topology.Machine) bmc.FirmwareMode {
	if w, ok := t.Workloads[in.Name]; ok && !in.Host && w.Spec.Firmware != "" {
		return bmc.FirmwareMode(w.Spec.Firmware)
	}
	var boots []topology.Firmware // what its image boots by; none means all
	if !in.Host {
		boots = t.Images[t.Workloads[in.Name].Spec.Image].Spec.Firmware
	}
	for _, f := range t.HardwareTypes[m.Spec.HardwareType].Spec.Firmware {
		if len(boots) == 0 || slices.Contains(boots, f) {
			return bmc.FirmwareMode(f)
		}
	}
	return bmc.FirmwareAny
}
