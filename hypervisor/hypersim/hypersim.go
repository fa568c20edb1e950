// Package hypersim is a simulated host: a driver.Host that keeps the state of virtual machines, lets a
// Backend run them, and can be told to fail while it works. Behind the server of package agent it speaks
// the protocol of a real one.
//
// A Host is one boot of a machine: a machine that boots again gets a new one.
package hypersim

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Config is one simulated host.
type Config struct {
	Name      string // for messages
	CPUs      int
	MemoryMiB int64
	Backend   Backend // nil: a VM is its state and nothing else
}

// Validate names the first wrong key.
func (c Config) Validate() error {
	bad := func(key string, v any) error {
		return &fault.Error{Kind: fault.Invalid, What: "simulated host: " + key, Evidence: fmt.Sprint(v)}
	}
	switch {
	case c.Name == "":
		return bad("name", "missing")
	case c.CPUs < 1 || c.CPUs > driver.MaxCPUs:
		return bad("cpus", c.CPUs)
	case c.MemoryMiB < 1 || c.MemoryMiB > driver.MaxMemoryMiB:
		return bad("memoryMiB", c.MemoryMiB)
	}
	return nil
}

// Backend makes the VMs do something.
type Backend interface {
	// Power turns a VM on. It returns as soon as the VM is powered, and what turns it off again: that
	// returns when the VM does nothing any more, or its context ends, after which it is called again. A VM
	// for which Power returns an error stays off.
	Power(s driver.Spec) (off func(context.Context) error, err error)
}

// Host is a running simulated host. It is safe for concurrent use.
type Host struct {
	cfg    Config
	faults *faultState
	lines  *lines
	turn   chan struct{} // full while a change is made, so that none is made under mu

	mu       sync.Mutex // guards what follows
	vms      map[string]*guest
	epochs   map[string]uint64 // the newest act on each name; stays when the VM is gone
	draining bool
	counters Counters
}

// guest is one defined VM.
type guest struct {
	spec    driver.Spec
	foreign bool
	off     func(context.Context) error // nil while it is off
}

var _ driver.Host = (*Host)(nil)

// New returns a host without VMs.
func New(c Config) (*Host, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Backend == nil {
		c.Backend = inert{}
	}
	return &Host{cfg: c, faults: newFaultState(), lines: newLines(), turn: make(chan struct{}, 1),
		vms: map[string]*guest{}, epochs: map[string]uint64{}}, nil
}

// inert is a backend whose VMs do nothing.
type inert struct{}

// Power implements Backend.
func (inert) Power(driver.Spec) (func(context.Context) error, error) {
	return func(context.Context) error { return nil }, nil
}

// Capacity implements driver.Host.
func (h *Host) Capacity(ctx context.Context) (driver.Capacity, error) {
	var c driver.Capacity
	err := h.answer(ctx, "read capacity", func() error {
		cpus, memory := h.room("")
		c = driver.Capacity{CPUs: h.cfg.CPUs, MemoryMiB: h.cfg.MemoryMiB, FreeCPUs: max(cpus, 0), FreeMemory: max(memory, 0), Draining: h.draining}
		return nil
	})
	return c, err
}

// VMs implements driver.Host.
func (h *Host) VMs(ctx context.Context) ([]driver.VM, error) {
	var out []driver.VM
	err := h.answer(ctx, "list VMs", func() error {
		out = make([]driver.VM, 0, len(h.vms))
		for name, g := range h.vms {
			vm := driver.VM{Name: name, UUID: g.spec.UUID, State: driver.StateDefined, Epoch: h.epochs[name], Spec: g.spec.Public()}
			if g.off != nil {
				vm.State = driver.StateRunning
			}
			out = append(out, vm)
		}
		slices.SortFunc(out, func(a, b driver.VM) int { return strings.Compare(a.Name, b.Name) })
		out = h.faults.get().Lie.about(out)
		return nil
	})
	return out, err
}

// Define implements driver.Host.
func (h *Host) Define(ctx context.Context, s driver.Spec) error {
	if err := s.Validate(); err != nil {
		return fault.Wrap(err, "define", "host "+h.cfg.Name)
	}
	s = s.Clone()
	return h.change(ctx, "define VM "+s.Name, func() error {
		have, err := h.admit(s.Name, s.Epoch)
		if err != nil || have != nil && have.spec.Equal(s) {
			return err
		}
		if err := h.strict(h.mayDefine(have, s)); err != nil {
			return err
		}
		g := &guest{spec: s}
		if have != nil {
			g.off = have.off
		}
		h.vms[s.Name] = g
		h.done(s.Name, s.Epoch)
		return nil
	})
}

// mayDefine says why a VM cannot be defined so; have is what there is of its name. The caller holds mu.
func (h *Host) mayDefine(have *guest, s driver.Spec) error {
	if have != nil && have.off != nil {
		return refuse(fault.Conflict, "it is running with another definition")
	}
	if h.draining {
		return refuse(fault.Conflict, "the host is draining")
	}
	for name, g := range h.vms {
		what := s.Shares(driver.VM{UUID: g.spec.UUID, Spec: g.spec})
		if name != s.Name && what != "" {
			return refuse(fault.Conflict, "VM "+name+" has "+what)
		}
	}
	if cpus, memory := h.room(s.Name); s.CPUs > cpus || s.MemoryMiB > memory {
		return refuse(fault.Conflict, fmt.Sprintf("no room: %d CPUs and %d MiB, and %d and %d are free", s.CPUs, s.MemoryMiB, cpus, memory))
	}
	return nil
}

// Start implements driver.Host.
func (h *Host) Start(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "start VM "+name, func() error {
		g, err := h.admit(name, epoch)
		switch {
		case err != nil:
			return err
		case g == nil:
			return refuse(fault.NotFound, "it is not defined")
		case g.spec.Epoch != epoch && !h.faults.get().Lax:
			return refuse(fault.Conflict, fmt.Sprintf("it is defined with epoch %d, not %d", g.spec.Epoch, epoch))
		case g.off != nil:
			return nil
		case h.draining:
			return refuse(fault.Conflict, "the host is draining")
		}
		h.mu.Unlock()
		off, err := h.cfg.Backend.Power(g.spec.Clone())
		h.mu.Lock()
		if err != nil {
			return err
		}
		g.off = off
		h.counters.Starts++
		h.done(name, epoch)
		return nil
	})
}

// Stop implements driver.Host.
func (h *Host) Stop(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "stop VM "+name, func() error {
		g, err := h.admit(name, epoch)
		if err != nil {
			return err
		}
		if g == nil || g.off == nil {
			h.epochs[name] = epoch
			return nil
		}
		h.mu.Unlock()
		err = g.off(ctx)
		h.mu.Lock()
		if err != nil {
			return err
		}
		g.off = nil
		h.done(name, epoch)
		return nil
	})
}

// Undefine implements driver.Host.
func (h *Host) Undefine(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "undefine VM "+name, func() error {
		g, err := h.admit(name, epoch)
		switch {
		case err != nil:
			return err
		case g == nil:
			h.epochs[name] = epoch
			return nil
		case g.off != nil:
			return refuse(fault.Conflict, "it is running")
		}
		delete(h.vms, name)
		h.done(name, epoch)
		return nil
	})
}

// Drain implements driver.Host.
func (h *Host) Drain(ctx context.Context) error {
	return h.change(ctx, "drain", func() error {
		h.draining = true
		return nil
	})
}

// Close implements driver.Host. The VMs run on.
func (h *Host) Close() error { return nil }

// Foreign puts a VM on the host that somebody else defined: it is in no epoch, and takes its room whether
// the host has it or not.
func (h *Host) Foreign(s driver.Spec, running bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := &guest{spec: s.Clone(), foreign: true}
	if running {
		g.off = func(context.Context) error { return nil }
	}
	h.vms[s.Name] = g
}

// Running lists the names of the VMs that are powered on, whatever Faults make the host say.
func (h *Host) Running() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for name, g := range h.vms {
		if g.off != nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// admit returns the VM that an act is about, nil when there is none. The caller holds mu.
func (h *Host) admit(name string, epoch uint64) (*guest, error) {
	if err := driver.CheckName(name); err != nil {
		return nil, err
	}
	g := h.vms[name]
	switch {
	case epoch == 0:
		return nil, refuse(fault.Invalid, "epoch 0 stands for none")
	case g != nil && g.foreign:
		return g, h.strict(refuse(fault.Unsafe, "the VM of this name is not ours"))
	case epoch < h.epochs[name]:
		return g, h.strict(refuse(fault.Stale, fmt.Sprintf("epoch %d, it has %d", epoch, h.epochs[name])))
	}
	return g, nil
}

// strict lets a refusal pass, or nothing when the host is lax.
func (h *Host) strict(err error) error {
	if h.faults.get().Lax {
		return nil
	}
	return err
}

// done notes a change. The caller holds mu.
func (h *Host) done(name string, epoch uint64) {
	h.epochs[name] = epoch
	h.counters.Changes++
}

// room is what is left beside all VMs but one. The caller holds mu.
func (h *Host) room(but string) (cpus int, memory int64) {
	if h.faults.get().Full {
		return 0, 0
	}
	cpus, memory = h.cfg.CPUs, h.cfg.MemoryMiB
	for name, g := range h.vms {
		if name != but {
			cpus, memory = cpus-g.spec.CPUs, memory-g.spec.MemoryMiB
		}
	}
	return cpus, memory
}

func refuse(k fault.Kind, why string) error { return &fault.Error{Kind: k, Evidence: why} }
