package workflowtest

import (
	"context"
	"net/netip"
	"strconv"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/bootplane"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/test/world"
	"rerack.dev/rerack/workflows"
)

// Machine implements workflows.Devices.
func (d *DataCentre) Machine(_ context.Context, m topology.Machine) (workflows.MachineControl, error) {
	if m.Meta.Name == "" {
		return nil, &fault.Error{Kind: fault.NotFound, What: "the machine is not in the topology any more"}
	}
	return &control{d, m.Meta.Name}, nil
}

// PowerOf implements workflows.Observer.
func (d *DataCentre) PowerOf(machine string) bmc.Reading {
	c := control{d, machine}
	r, err := c.reading()
	if err != nil {
		return bmc.Reading{State: bmc.PowerUnknown, At: d.Now()}
	}
	return r
}

// control is one machine's BMC.
type control struct {
	d    *DataCentre
	name string
}

func (c *control) key() string { return "machine/" + c.name }

func (c *control) reading() (bmc.Reading, error) {
	p := c.d.World.Power(c.name)
	if !p.Reachable {
		return bmc.Reading{State: bmc.PowerUnknown}, &fault.Error{Kind: fault.Unreachable, Where: c.key(), What: "read power"}
	}
	r := bmc.Reading{State: bmc.PowerOff, At: c.d.Now(), Source: "memory"}
	if p.Reported {
		r.State = bmc.PowerOn
	}
	return r, nil
}

// Power implements workflows.MachineControl.
func (c *control) Power(context.Context) (bmc.Reading, error) { return c.reading() }

// Off implements workflows.MachineControl.
func (c *control) Off(ctx context.Context, readings int, gap time.Duration) ([]bmc.Reading, error) {
	err := c.d.do(ctx, c.key(), func() error {
		r, err := c.reading()
		if err != nil || r.State == bmc.PowerOff {
			return err
		}
		if c.d.defect(c.name) == NeverTurnsOff {
			return &fault.Error{Kind: fault.Unverified, Where: c.key(), What: "power off", Evidence: "reads on"}
		}
		c.d.note(Act{Device: c.key(), Object: "power", State: "off"})
		return c.d.World.Press(c.name, false, "rerack")
	})
	if err != nil {
		return nil, err
	}
	var out []bmc.Reading
	for range readings {
		r, err := c.reading()
		if err != nil || r.State != bmc.PowerOff {
			return out, &fault.Error{Kind: fault.Unverified, Where: c.key(), What: "read power as off", Err: err, Evidence: string(r.State)}
		}
		out = append(out, r)
		c.d.clock.Sleep(gap)
	}
	return out, nil
}

// On implements workflows.MachineControl. The machine boots before On returns, as far as it gets.
func (c *control) On(ctx context.Context, boot bmc.BootOverride, _ time.Duration) error {
	return c.d.do(ctx, c.key(), func() error {
		r, err := c.reading()
		if err != nil || r.State == bmc.PowerOn {
			return err
		}
		c.d.note(Act{Device: c.key(), Object: "power", State: "on"})
		if err := c.d.World.Press(c.name, true, "rerack"); err != nil {
			return err
		}
		if r, err = c.reading(); err != nil || r.State != bmc.PowerOn {
			return &fault.Error{Kind: fault.Unverified, Where: c.key(), What: "power on", Err: err, Evidence: string(r.State)}
		}
		if life, on := c.d.World.Life(c.name); on && boot.Device == bmc.BootPXE {
			c.d.beside(ctx, func(ctx context.Context) { c.d.netBoot(ctx, life, "") })
		}
		return nil
	})
}

// StayOff implements workflows.MachineControl.
func (c *control) StayOff(context.Context) error {
	if _, err := c.reading(); err != nil {
		return err
	}
	return c.d.World.SetRestore(c.name, world.RestoreOff)
}

// beside does what a machine does by itself: of who turned it on it knows nothing. Unless the data centre is
// live it is done when beside returns.
func (d *DataCentre) beside(ctx context.Context, f func(context.Context)) {
	if d.live {
		go f(context.Background())
		return
	}
	f(ctx)
}

// netBoot is what a machine or VM does from its firmware on. Where it gets stuck it stays: the workflow
// sees no more of it.
func (d *DataCentre) netBoot(ctx context.Context, l world.Life, vm string) {
	name := l.Machine
	if vm != "" {
		name = "vm-" + vm
	}
	rec, ok := d.bootRecord(ctx, name)
	if !ok || !d.hears(l, vm, rec.Address) {
		return
	}
	b := booting{d: d, life: l, vm: vm, rec: rec}
	d.clock.Sleep(time.Second)
	b.report(ctx, pxe.KindDHCP, "", "")
	if !rec.Held {
		b.start(ctx)
		return
	}
	d.hold(name, func(ctx context.Context) {
		if now, on := d.World.Life(l.Machine); on && now == l {
			b.start(ctx)
		}
	})
	b.report(ctx, pxe.KindScript, "", "")
}

// booting is one machine or VM that has found its boot record.
type booting struct {
	d    *DataCentre
	life world.Life
	vm   string
	rec  state.Boot
}

func (b booting) report(ctx context.Context, k pxe.Kind, agent, detail string) bool {
	return b.d.plane.Reached(ctx, pxe.Milestone{Machine: b.rec.Name, Run: bootplane.BootOf(b.rec), Epoch: b.rec.Epoch, Kind: k, At: b.d.Now(),
		Nonce: b.rec.Name + "#" + strconv.FormatUint(b.life.Boot, 10), AgentURL: agent, Detail: detail}) == nil
}

// start is what follows when the boot loader is given something to boot.
func (b booting) start(ctx context.Context) {
	d, l := b.d, b.life
	switch d.defect(l.Machine) {
	case NeverPhonesHome:
		return
	case ReportsFailure:
		b.report(ctx, pxe.KindFailed, "", "disk controller not found")
		return
	case Sound, NeverServes, NeverTurnsOff, ReadsBadly:
	}
	if b.rec.Capture {
		b.copies(ctx)
		return
	}
	if b.rec.Workload == "" {
		if d.World.BecomeHost(l) == nil && d.become(l) == nil {
			b.report(ctx, pxe.KindPhoneHome, "memory://"+l.Machine, "")
		}
		return
	}
	if !b.report(ctx, pxe.KindPhoneHome, "", "") || d.defect(l.Machine) == NeverServes {
		return
	}
	if d.serve(l, b.vm, b.rec.Workload, b.rec.Epoch) == nil {
		b.report(ctx, pxe.KindHealthy, "", "")
	}
}

// hears reports whether the boot servers' answers for an address get to the machine's firmware: untagged
// on a port of a machine, on the VLAN of its NIC for a VM.
func (d *DataCentre) hears(l world.Life, vm, address string) bool {
	p, err := netip.ParsePrefix(address)
	if err != nil {
		return false
	}
	for _, n := range d.topo.Networks {
		if !n.Spec.Subnet.Contains(p.Addr()) {
			continue
		}
		if vm != "" {
			_, _, ok := d.World.Carrying(l.Machine, n.Spec.VLAN)
			return ok
		}
		for _, nic := range d.topo.Machines[l.Machine].Spec.NICs {
			if _, _, vlan, ok := d.World.Untagged(l.Machine, nic.Name); ok && vlan == n.Spec.VLAN {
				return true
			}
		}
	}
	return false
}
