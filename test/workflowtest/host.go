package workflowtest

import (
	"context"
	"slices"
	"strings"
	"sync"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
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
func (d *DataCentre) become(l world.Life) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hosts[l.Machine] = &host{d: d, life: l, vms: map[string]*driver.VM{}}
}

// host runs VMs in one life of a machine.
type host struct {
	d    *DataCentre
	life world.Life

	mu       sync.Mutex
	vms      map[string]*driver.VM
	draining bool
}

var _ driver.Host = (*host)(nil)

func (h *host) key() string { return "host/" + h.life.Machine }

// do makes a change when the machine still lives this life and is connected.
func (h *host) do(ctx context.Context, change func() error) error {
	return h.d.do(ctx, h.key(), func() error {
		if err := h.answers(); err != nil {
			return err
		}
		return change()
	})
}

func (h *host) answers() error {
	if l, on := h.d.World.Life(h.life.Machine); !on || l != h.life || !h.d.World.Connected(h.life.Machine) {
		return silent(h.key())
	}
	return nil
}

// Capacity implements driver.Host.
func (h *host) Capacity(context.Context) (driver.Capacity, error) {
	if err := h.answers(); err != nil {
		return driver.Capacity{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	hw := h.d.topo.HardwareTypes[h.d.topo.Machines[h.life.Machine].Spec.HardwareType].Spec
	c := driver.Capacity{CPUs: hw.CPUs, MemoryMiB: hw.MemoryMiB, FreeCPUs: hw.CPUs, FreeMemory: hw.MemoryMiB, Draining: h.draining}
	for _, vm := range h.vms {
		c.FreeCPUs -= vm.Spec.CPUs
		c.FreeMemory -= vm.Spec.MemoryMiB
	}
	return c, nil
}

// VMs implements driver.Host.
func (h *host) VMs(context.Context) ([]driver.VM, error) {
	if err := h.answers(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []driver.VM
	for _, vm := range h.vms {
		out = append(out, *vm)
	}
	slices.SortFunc(out, func(a, b driver.VM) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Define implements driver.Host.
func (h *host) Define(ctx context.Context, s driver.Spec) error {
	return h.do(ctx, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		have := h.vms[s.Name]
		switch {
		case have != nil && have.Epoch > s.Epoch:
			return stale(h.key(), "define VM "+s.Name, have.Epoch, s.Epoch)
		case have != nil && have.State == driver.StateRunning:
			return &fault.Error{Kind: fault.Conflict, Where: h.key(), What: "define VM " + s.Name, Evidence: "it is running"}
		case have != nil && have.Epoch == s.Epoch:
			return nil
		case h.draining:
			return &fault.Error{Kind: fault.Conflict, Where: h.key(), What: "define VM " + s.Name, Evidence: "the host is draining"}
		}
		h.vms[s.Name] = &driver.VM{Name: s.Name, UUID: s.UUID, State: driver.StateDefined, Epoch: s.Epoch, Spec: s}
		h.d.note(Act{h.key(), s.Name, s.Epoch, "defined"})
		return nil
	})
}

// Start implements driver.Host. The VM boots before Start returns, as far as it gets.
func (h *host) Start(ctx context.Context, name string, epoch uint64) error {
	return h.do(ctx, func() error {
		spec, err := h.starting(name, epoch)
		if err != nil || spec.Name == "" {
			return err
		}
		vm := world.VM{Name: name, Epoch: epoch}
		for _, n := range spec.NICs {
			vm.VLANs = append(vm.VLANs, n.VLAN)
		}
		h.d.note(Act{h.key(), name, epoch, "running"})
		if err := h.d.World.StartVM(h.life, vm); err != nil {
			return err
		}
		h.d.netBoot(ctx, h.life, name)
		return nil
	})
}

// starting marks a VM as running; an empty spec means that it was.
func (h *host) starting(name string, epoch uint64) (driver.Spec, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	vm := h.vms[name]
	switch {
	case vm == nil:
		return driver.Spec{}, &fault.Error{Kind: fault.NotFound, Where: h.key(), What: "start VM " + name, Evidence: "it is not defined"}
	case vm.Epoch > epoch:
		return driver.Spec{}, stale(h.key(), "start VM "+name, vm.Epoch, epoch)
	case vm.Epoch < epoch || h.draining:
		return driver.Spec{}, &fault.Error{Kind: fault.Conflict, Where: h.key(), What: "start VM " + name}
	case vm.State == driver.StateRunning:
		return driver.Spec{}, nil
	}
	vm.State = driver.StateRunning
	return vm.Spec, nil
}

// Stop implements driver.Host.
func (h *host) Stop(ctx context.Context, name string, epoch uint64) error {
	return h.do(ctx, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		vm := h.vms[name]
		switch {
		case vm == nil || vm.State != driver.StateRunning && vm.Epoch <= epoch:
			return nil
		case vm.Epoch > epoch:
			return stale(h.key(), "stop VM "+name, vm.Epoch, epoch)
		}
		vm.State = driver.StateDefined
		h.d.note(Act{h.key(), name, epoch, "stopped"})
		return h.d.World.StopVM(h.life, name)
	})
}

// Undefine implements driver.Host.
func (h *host) Undefine(ctx context.Context, name string, epoch uint64) error {
	return h.do(ctx, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		vm := h.vms[name]
		switch {
		case vm == nil:
			return nil
		case vm.Epoch > epoch:
			return stale(h.key(), "undefine VM "+name, vm.Epoch, epoch)
		case vm.State == driver.StateRunning:
			return &fault.Error{Kind: fault.Conflict, Where: h.key(), What: "undefine VM " + name, Evidence: "it is running"}
		}
		delete(h.vms, name)
		h.d.note(Act{h.key(), name, epoch, "undefined"})
		return nil
	})
}

// Drain implements driver.Host.
func (h *host) Drain(context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
	return nil
}

// Close implements driver.Host. The VMs run on.
func (h *host) Close() error { return nil }
