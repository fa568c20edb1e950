package workflowtest

import (
	"context"
	"sync"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/test/world"
)

// Host implements workflows.Devices.
func (d *DataCentre) Host(_ context.Context, machine string, _ state.Host) (driver.Host, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.hosts[machine]; h != nil {
		return h, nil
	}
	return nil, silent("host/" + machine)
}

// become makes the present life of a machine a host.
func (d *DataCentre) become(l world.Life) error {
	hw := d.topo.HardwareTypes[d.topo.Machines[l.Machine].Spec.HardwareType].Spec
	h := &host{d: d, life: l}
	sim, err := hypersim.New(hypersim.Config{Name: l.Machine, CPUs: hw.CPUs, MemoryMiB: hw.MemoryMiB, Backend: h})
	if err != nil {
		return err
	}
	h.Host = sim
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hosts[l.Machine] = h
	return nil
}

// host runs VMs in one life of a machine: the simulated host, as far as it is on and connected, with what
// it changes in the journal.
type host struct {
	*hypersim.Host
	d    *DataCentre
	life world.Life
	one  sync.Mutex // held by who makes a change: what is counted meanwhile is theirs
}

var (
	_ driver.Host      = (*host)(nil)
	_ hypersim.Backend = (*host)(nil)
)

func (h *host) key() string { return "host/" + h.life.Machine }

func (h *host) answers() error {
	if l, on := h.d.World.Life(h.life.Machine); !on || l != h.life || !h.d.World.Connected(h.life.Machine) {
		return silent(h.key())
	}
	return nil
}

// change lets the simulated host make a change, and notes it when there was one.
func (h *host) change(ctx context.Context, a Act, change func() error) error {
	a.Device = h.key()
	return h.d.do(ctx, h.key(), func() error {
		if err := h.answers(); err != nil {
			return err
		}
		h.one.Lock()
		defer h.one.Unlock()
		before := h.Counters().Changes
		err := change()
		if h.Counters().Changes != before {
			h.d.note(a)
		}
		return err
	})
}

// Capacity implements driver.Host.
func (h *host) Capacity(ctx context.Context) (driver.Capacity, error) {
	if err := h.answers(); err != nil {
		return driver.Capacity{}, err
	}
	return h.Host.Capacity(ctx)
}

// VMs implements driver.Host.
func (h *host) VMs(ctx context.Context) ([]driver.VM, error) {
	if err := h.answers(); err != nil {
		return nil, err
	}
	return h.Host.VMs(ctx)
}

// Define implements driver.Host.
func (h *host) Define(ctx context.Context, s driver.Spec) error {
	return h.change(ctx, Act{Object: s.Name, Epoch: s.Epoch, State: "defined"}, func() error { return h.Host.Define(ctx, s) })
}

// Start implements driver.Host.
func (h *host) Start(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, Act{Object: name, Epoch: epoch, State: "running"}, func() error { return h.Host.Start(ctx, name, epoch) })
}

// Stop implements driver.Host.
func (h *host) Stop(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, Act{Object: name, Epoch: epoch, State: "stopped"}, func() error { return h.Host.Stop(ctx, name, epoch) })
}

// Undefine implements driver.Host.
func (h *host) Undefine(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, Act{Object: name, Epoch: epoch, State: "undefined"}, func() error { return h.Host.Undefine(ctx, name, epoch) })
}

// Power implements hypersim.Backend. The VM boots before Power returns, as far as it gets.
func (h *host) Power(s driver.Spec) (off func(context.Context) error, err error) {
	vm := world.VM{Name: s.Name, Epoch: s.Epoch}
	for _, n := range s.NICs {
		vm.VLANs = append(vm.VLANs, n.VLAN)
	}
	if err := h.d.World.StartVM(h.life, vm); err != nil {
		return nil, err
	}
	h.d.beside(context.Background(), func(ctx context.Context) { h.d.netBoot(ctx, h.life, s.Name) })
	return func(context.Context) error { return h.d.World.StopVM(h.life, s.Name) }, nil
}
