package lab

import (
	"context"
	"net/netip"
	"sync"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/test/world"
)

// guests runs the virtual machines of a Host: what is behind its simulated hypervisor.
type guests struct {
	box *box
	ctx context.Context // the machine's life
	wg  sync.WaitGroup
}

var _ hypersim.Backend = (*guests)(nil)

// newHost is the hypervisor of a machine in its present life.
func newHost(ctx context.Context, b *box) (*hypersim.Host, *guests, error) {
	hw := b.lab.topo.HardwareTypes[b.machine.spec.HardwareType].Spec
	g := &guests{box: b, ctx: ctx}
	h, err := hypersim.New(hypersim.Config{Name: b.machine.name, CPUs: hw.CPUs, MemoryMiB: hw.MemoryMiB, Backend: g})
	return h, g, err
}

// Power implements hypersim.Backend: the VM boots from the network until it is off again.
func (g *guests) Power(s driver.Spec) (func(context.Context) error, error) {
	b, err := g.boxOf(s)
	if err != nil {
		return nil, err
	}
	vm := world.VM{Name: s.Name, Epoch: s.Epoch}
	for _, n := range s.NICs {
		vm.VLANs = append(vm.VLANs, n.VLAN)
	}
	if err := b.lab.world.StartVM(b.life, vm); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(g.ctx)
	done := make(chan struct{})
	g.wg.Go(func() {
		defer close(done)
		defer cancel()
		if pause(ctx, b.lab.cfg.PostVM) {
			b.netBoot(ctx)
		}
	})
	return func(ctx context.Context) error {
		cancel()
		select {
		case <-done:
		case <-ctx.Done():
			return fault.Wrap(ctx.Err(), "wait until VM "+s.Name+" is off", "host "+b.machine.name)
		}
		return b.lab.world.StopVM(b.life, s.Name)
	}, nil
}

// wait ends when all VMs are gone, which the end of the machine's life brings about.
func (g *guests) wait() { g.wg.Wait() }

// boxOf builds the computer that a VM is: its NICs come out at the host's ports on their VLANs, its
// disks are what the host attaches.
func (g *guests) boxOf(s driver.Spec) (*box, error) {
	b := &box{lab: g.box.lab, machine: g.box.machine, vm: s.Name, life: g.box.life, arch: topology.Arch(s.Arch),
		uuid: parseUUID(s.UUID), firmware: firmwareArch(topology.Arch(s.Arch), s.Firmware, false), log: g.box.log.With("vm", s.Name)}
	for _, n := range s.NICs {
		b.nics = append(b.nics, bootNIC{mac: n.MAC, at: func() (outlet, bool) {
			sw, port, ok := b.lab.world.Carrying(b.machine.name, n.VLAN)
			return outlet{sw, port, n.VLAN}, ok
		}})
	}
	for _, d := range s.Disks {
		if d.FC != nil {
			b.disks = append(b.disks, disk{Volume: d.Volume, Target: d.FC.WWPN, LUN: d.FC.LUN})
			continue
		}
		portal, err := netip.ParseAddrPort(d.ISCSI.Portal)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Where: "host " + b.machine.name, What: "attach " + d.Volume, Err: err}
		}
		var login iscsi.Account
		if c := d.ISCSI.CHAP; c != nil {
			login = iscsi.Account{User: c.User, Secret: string(c.Secret)}
		}
		b.disks = append(b.disks, disk{Volume: d.Volume, ISCSI: true, Portal: portal, Target: d.ISCSI.Target, LUN: d.ISCSI.LUN, Login: login})
	}
	return b, nil
}
