package lab

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/world"
)

// host runs virtual machines on a machine of the lab: the driver.Host behind its agent.
type host struct {
	box *box
	ctx context.Context // the machine's life
	hw  topology.HardwareTypeSpec
	wg  sync.WaitGroup

	mu       sync.Mutex
	vms      map[string]*guest
	draining bool
}

// guest is one defined VM.
type guest struct {
	spec   driver.Spec
	cancel context.CancelFunc // nil while it is off
	done   chan struct{}
}

func newHost(ctx context.Context, b *box) *host {
	return &host{box: b, ctx: ctx, hw: b.lab.topo.HardwareTypes[b.machine.spec.HardwareType].Spec, vms: map[string]*guest{}}
}

var _ driver.Host = (*host)(nil)

// Capacity implements driver.Host.
func (h *host) Capacity(context.Context) (driver.Capacity, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := driver.Capacity{CPUs: h.hw.CPUs, MemoryMiB: h.hw.MemoryMiB, FreeCPUs: h.hw.CPUs, FreeMemory: h.hw.MemoryMiB, Draining: h.draining}
	for _, g := range h.vms {
		c.FreeCPUs -= g.spec.CPUs
		c.FreeMemory -= g.spec.MemoryMiB
	}
	return c, nil
}

// VMs implements driver.Host.
func (h *host) VMs(context.Context) ([]driver.VM, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]driver.VM, 0, len(h.vms))
	for name, g := range h.vms {
		vm := driver.VM{Name: name, UUID: g.spec.UUID, State: driver.StateDefined, Epoch: g.spec.Epoch, Spec: g.spec}
		if g.cancel != nil {
			vm.State = driver.StateRunning
		}
		out = append(out, vm)
	}
	slices.SortFunc(out, func(a, b driver.VM) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Define implements driver.Host.
func (h *host) Define(_ context.Context, s driver.Spec) error {
	if s.Name == "" || s.CPUs < 1 || s.MemoryMiB < 1 {
		return h.refuse(fault.Invalid, s.Name, "define", "name, cpus and memoryMiB are needed")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	have := h.vms[s.Name]
	cpus, memory := s.CPUs, s.MemoryMiB
	for name, g := range h.vms {
		if name != s.Name {
			cpus, memory = cpus+g.spec.CPUs, memory+g.spec.MemoryMiB
		}
	}
	switch {
	case have != nil && s.Epoch < have.spec.Epoch:
		return h.refuse(fault.Stale, s.Name, "define", fmt.Sprintf("epoch %d, it has %d", s.Epoch, have.spec.Epoch))
	case have != nil && have.cancel != nil && !reflect.DeepEqual(have.spec, s):
		return h.refuse(fault.Conflict, s.Name, "define", "it is running with another definition")
	case have != nil && reflect.DeepEqual(have.spec, s):
		return nil
	case h.draining:
		return h.refuse(fault.Conflict, s.Name, "define", "the host is draining")
	case cpus > h.hw.CPUs || memory > h.hw.MemoryMiB:
		return h.refuse(fault.Conflict, s.Name, "define", "no room: it would need "+fmt.Sprintf("%d CPUs and %d MiB", cpus, memory))
	}
	h.vms[s.Name] = &guest{spec: s}
	return nil
}

// Start implements driver.Host.
func (h *host) Start(_ context.Context, name string, epoch uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.vms[name]
	switch {
	case g == nil:
		return h.refuse(fault.NotFound, name, "start", "it is not defined")
	case epoch < g.spec.Epoch:
		return h.refuse(fault.Stale, name, "start", fmt.Sprintf("epoch %d, it has %d", epoch, g.spec.Epoch))
	case epoch > g.spec.Epoch:
		return h.refuse(fault.Conflict, name, "start", fmt.Sprintf("it is defined with epoch %d, not %d", g.spec.Epoch, epoch))
	case g.cancel != nil:
		return nil
	case h.draining:
		return h.refuse(fault.Conflict, name, "start", "the host is draining")
	}
	b, err := h.boxOf(g.spec)
	if err != nil {
		return err
	}
	vm := world.VM{Name: name, Epoch: epoch}
	for _, n := range g.spec.NICs {
		vm.VLANs = append(vm.VLANs, n.VLAN)
	}
	if err := h.box.lab.world.StartVM(h.box.life, vm); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(h.ctx)
	g.cancel, g.done = cancel, make(chan struct{})
	done := g.done
	h.wg.Go(func() {
		defer close(done)
		defer cancel()
		if pause(ctx, h.box.lab.cfg.PostVM) {
			b.netBoot(ctx)
		}
	})
	return nil
}

// Stop implements driver.Host.
func (h *host) Stop(ctx context.Context, name string, epoch uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.vms[name]
	switch {
	case g == nil:
		return nil
	case epoch < g.spec.Epoch:
		return h.refuse(fault.Stale, name, "stop", fmt.Sprintf("epoch %d, it has %d", epoch, g.spec.Epoch))
	case g.cancel == nil:
		return nil
	}
	g.cancel()
	select {
	case <-g.done:
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "stop VM "+name, "host "+h.box.machine.name)
	}
	g.cancel = nil
	return h.box.lab.world.StopVM(h.box.life, name)
}

// Undefine implements driver.Host.
func (h *host) Undefine(_ context.Context, name string, epoch uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.vms[name]
	switch {
	case g == nil:
		return nil
	case epoch < g.spec.Epoch:
		return h.refuse(fault.Stale, name, "undefine", fmt.Sprintf("epoch %d, it has %d", epoch, g.spec.Epoch))
	case g.cancel != nil:
		return h.refuse(fault.Conflict, name, "undefine", "it is running")
	}
	delete(h.vms, name)
	return nil
}

// Drain implements driver.Host.
func (h *host) Drain(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
	return nil
}

// Close implements driver.Host. The VMs run on: they end with the machine.
func (h *host) Close() error { return nil }

// wait ends when all VMs are gone, which the end of the machine's life brings about.
func (h *host) wait() { h.wg.Wait() }

// boxOf builds the computer that a VM is: its NICs come out at the host's ports on their VLANs, its
// disks are what the host attaches.
func (h *host) boxOf(s driver.Spec) (*box, error) {
	b := &box{lab: h.box.lab, machine: h.box.machine, vm: s.Name, life: h.box.life, arch: topology.Arch(s.Arch),
		uuid: parseUUID(s.UUID), firmware: firmwareArch(topology.Arch(s.Arch), s.Firmware, false), log: h.box.log.With("vm", s.Name)}
	for _, n := range s.NICs {
		b.nics = append(b.nics, bootNIC{mac: n.MAC, at: func() (outlet, bool) {
			sw, port, ok := b.lab.world.Carrying(b.machine.name, n.VLAN)
			return outlet{sw, port, n.VLAN}, ok
		}})
	}
	for _, d := range s.Disks {
		switch {
		case d.ISCSI != nil && d.FC == nil:
			portal, err := netip.ParseAddrPort(d.ISCSI.Portal)
			if err != nil {
				return nil, h.refuse(fault.Invalid, s.Name, "attach "+d.Volume, err.Error())
			}
			b.disks = append(b.disks, disk{Volume: d.Volume, ISCSI: true, Portal: portal, Target: d.ISCSI.Target, LUN: d.ISCSI.LUN})
		case d.FC != nil && d.ISCSI == nil:
			b.disks = append(b.disks, disk{Volume: d.Volume, Target: d.FC.WWPN, LUN: d.FC.LUN})
		default:
			return nil, h.refuse(fault.Invalid, s.Name, "attach "+d.Volume, "want iscsi or fc")
		}
	}
	return b, nil
}

func (h *host) refuse(k fault.Kind, vm, what, why string) error {
	return &fault.Error{Kind: k, Where: "host " + h.box.machine.name, What: what + " VM " + vm, Evidence: why}
}
