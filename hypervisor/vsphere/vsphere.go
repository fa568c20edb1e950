// Package vsphere drives a host that exists already and is managed by VMware vCenter, or an ESXi host by
// itself.
//
// What is ours is marked there. A VM of ours names itself, its UUID and its epoch in its extraConfig; any
// other VM, a clone of ours included, is not ours and is never touched. In vCenter our VMs are in a folder
// "rerack.HOST", and stay this host's when somebody moves them to another. What must outlive a VM is in the
// extraConfig of a VM "rerack.marks" that never runs.
//
// vSphere has no compare-and-set over several objects, and so every change is made under a lock: a folder
// (or, on a host by itself, a resource pool) "rerack.lock", of which there is at most one. That of a dead
// holder is broken after Config.LockBroken, which is longer than any change may take.
//
// A NIC is on the port group of its VLAN. A volume is a raw device mapping, in physical mode, of a LUN that
// the host sees at the volume's target: the host logs in with its own initiator and CHAP secret, and those
// of the definition are recorded and not used.
//
// Facts: vSphere Web Services API reference (VirtualMachineConfigSpec, HostScsiTopology, HostPortGroup).
package vsphere

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Host is a driver.Host. It keeps one login and is safe for concurrent use.
type Host struct {
	cfg  Config
	turn chan struct{} // full while this Host makes a change, and for what follows

	other types.ManagedObjectReference // the lock it saw last
	since time.Time                    // and when first

	mu sync.Mutex // guards what follows
	at *place     // nil: not logged in
}

var _ driver.Host = (*Host)(nil)

// New returns a driver for one host. It does not dial.
func New(cfg Config) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Host{cfg: cfg.withDefaults(), turn: make(chan struct{}, 1)}, nil
}

// Close logs out. The VMs run on.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at == nil {
		return nil
	}
	ctx, end := background(context.Background())
	defer end()
	err := h.at.sessions.Logout(ctx)
	h.at.vim.CloseIdleConnections()
	h.at = nil
	return h.wrap(kinded(ctx, "log out", err), "close")
}

// Capacity implements driver.Host. The CPUs are the host's threads times Config.CPUShare, the memory is the
// host's without Config.ReserveMiB.
func (h *Host) Capacity(ctx context.Context) (driver.Capacity, error) {
	s, err := h.read(ctx)
	if err != nil {
		return driver.Capacity{}, h.wrap(err, "read capacity")
	}
	c := s.room
	for _, g := range s.guests {
		c.FreeCPUs -= g.vm.Spec.CPUs
		c.FreeMemory -= g.vm.Spec.MemoryMiB
	}
	c.FreeCPUs, c.FreeMemory = max(c.FreeCPUs, 0), max(c.FreeMemory, 0)
	return c, nil
}

// VMs implements driver.Host. A VM that is suspended counts as running.
func (h *Host) VMs(ctx context.Context) ([]driver.VM, error) {
	s, err := h.read(ctx)
	if err != nil {
		return nil, h.wrap(err, "list VMs")
	}
	out := make([]driver.VM, 0, len(s.guests))
	for _, g := range s.guests {
		out = append(out, g.vm)
	}
	slices.SortFunc(out, func(a, b driver.VM) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (h *Host) read(ctx context.Context) (*snapshot, error) {
	ctx, end := context.WithTimeout(ctx, h.cfg.ReadTimeout)
	defer end()
	p, err := h.place(ctx)
	if err != nil {
		return nil, err
	}
	s, err := p.look(ctx, h.cfg)
	return s, kinded(ctx, "read the host", err)
}

// Define implements driver.Host. Beside the errors of the contract it returns fault.Unsupported for a VLAN
// without a port group, and fault.Conflict for a volume that the host does not see.
func (h *Host) Define(ctx context.Context, spec driver.Spec) error {
	if err := spec.Validate(); err != nil {
		return h.wrap(err, "define VM")
	}
	spec = spec.Clone()
	return h.change(ctx, "define VM", spec.Name, spec.Epoch, func(ctx context.Context, p *place, s *snapshot) error {
		have, ok := s.guests[spec.Name]
		if ok && have.vm.Spec.Equal(spec) {
			return h.mark(ctx, p, s, spec.Name, spec.Epoch)
		}
		if err := s.mayDefine(have, spec); err != nil {
			return err
		}
		c, err := h.config(ctx, p, s, spec)
		if err != nil {
			return err
		}
		if err := h.mark(ctx, p, s, spec.Name, spec.Epoch); err != nil {
			return err
		}
		// A VM is made anew and not changed: destroying one removes the mappings of its LUNs, not the LUNs.
		if ok {
			if err := p.destroy(ctx, have.ref); err != nil {
				return err
			}
		}
		f, err := p.ownFolder(ctx)
		if err != nil {
			return err
		}
		task, err := f.CreateVM(ctx, c, p.pool, p.host)
		if err != nil {
			return err
		}
		if err := task.Wait(ctx); err != nil {
			return err
		}
		return h.readBack(ctx, p, spec.Name, func(g guest, ok bool) string {
			if !ok || g.vm.Spec.Equal(spec) {
				return map[bool]string{false: "it is not there"}[ok]
			}
			asked, _ := json.Marshal(spec.Public()) // plain structs
			got, _ := json.Marshal(g.vm.Spec.Public())
			return fmt.Sprintf("%s was asked, %s reads back", asked, got)
		})
	})
}

// Start implements driver.Host.
func (h *Host) Start(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "start VM", name, epoch, func(ctx context.Context, p *place, s *snapshot) error {
		g, ok := s.guests[name]
		switch {
		case !ok:
			return refuse(fault.NotFound, "it is not defined")
		case g.vm.Spec.Epoch != epoch:
			return refuse(fault.Conflict, fmt.Sprintf("it is defined with epoch %d, not %d", g.vm.Spec.Epoch, epoch))
		case g.vm.State == driver.StateRunning:
			return nil
		case s.room.Draining:
			return refuse(fault.Conflict, "the host is draining")
		}
		task, err := object.NewVirtualMachine(p.vim, g.ref).PowerOn(ctx)
		if err != nil {
			return err
		}
		if err := task.Wait(ctx); err != nil {
			return err
		}
		return h.readBack(ctx, p, name, func(g guest, _ bool) string {
			return map[bool]string{false: "it does not run"}[g.vm.State == driver.StateRunning]
		})
	})
}

// Stop implements driver.Host. It is power off, not a request to the guest.
func (h *Host) Stop(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "stop VM", name, epoch, func(ctx context.Context, p *place, s *snapshot) error {
		if err := h.mark(ctx, p, s, name, epoch); err != nil {
			return err
		}
		g, ok := s.guests[name]
		if !ok || g.vm.State != driver.StateRunning {
			return nil
		}
		task, err := object.NewVirtualMachine(p.vim, g.ref).PowerOff(ctx)
		if err != nil {
			return err
		}
		if err := task.Wait(ctx); err != nil {
			return err
		}
		return h.readBack(ctx, p, name, func(g guest, _ bool) string {
			return map[bool]string{true: "it still runs"}[g.vm.State == driver.StateRunning]
		})
	})
}

// Undefine implements driver.Host.
func (h *Host) Undefine(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "undefine VM", name, epoch, func(ctx context.Context, p *place, s *snapshot) error {
		g, ok := s.guests[name]
		if ok && g.vm.State == driver.StateRunning {
			return refuse(fault.Conflict, "it is running")
		}
		if err := h.mark(ctx, p, s, name, epoch); err != nil {
			return err
		}
		if !ok {
			return nil
		}
		if err := p.destroy(ctx, g.ref); err != nil {
			return err
		}
		return h.readBack(ctx, p, name, func(_ guest, ok bool) string {
			return map[bool]string{true: "it is still there"}[ok]
		})
	})
}

// Drain implements driver.Host. The host drains until somebody removes rerack.drain from the extraConfig of
// the VM rerack.marks: that outlives its boots.
func (h *Host) Drain(ctx context.Context) error {
	return h.locked(ctx, "drain", func(ctx context.Context, p *place, s *snapshot) error {
		if s.room.Draining {
			return nil
		}
		return h.remember(ctx, p, s, keyDrain, "true")
	})
}

func (h *Host) readBack(ctx context.Context, p *place, name string, check func(g guest, ok bool) string) error {
	s, err := p.look(ctx, h.cfg)
	if err != nil {
		return err
	}
	g, ok := s.guests[name]
	if why := check(g, ok); why != "" {
		return refuse(fault.Unverified, why)
	}
	return nil
}

type act func(context.Context, *place, *snapshot) error

// change lets do act on one VM, after what no act is allowed.
func (h *Host) change(ctx context.Context, what, name string, epoch uint64, do act) error {
	what += " " + name
	if err := driver.CheckName(name); err != nil {
		return h.wrap(err, what)
	}
	if epoch == 0 {
		return h.wrap(refuse(fault.Invalid, "epoch 0 stands for none"), what)
	}
	return h.locked(ctx, what, func(ctx context.Context, p *place, s *snapshot) error {
		g, ok := s.guests[name]
		if ok && g.vm.Epoch == 0 {
			return &fault.Error{Kind: fault.Unsafe, Evidence: "the VM of this name is not ours", Next: "rename it, or the workload"}
		}
		if have := max(s.marks[name], g.vm.Epoch); epoch < have {
			return refuse(fault.Stale, fmt.Sprintf("epoch %d, it has %d", epoch, have))
		}
		return do(ctx, p, s)
	})
}

// locked lets do change the host, alone.
func (h *Host) locked(ctx context.Context, what string, do act) error {
	ctx, end := context.WithTimeout(ctx, h.cfg.ChangeTimeout)
	defer end()
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return h.wrap(&fault.Error{Kind: fault.Busy, Evidence: "another change is still under way", Err: ctx.Err()}, what)
	}
	if ctx.Err() != nil {
		return h.wrap(kinded(ctx, "begin", ctx.Err()), what)
	}
	p, err := h.place(ctx)
	if err != nil {
		return h.wrap(err, what)
	}
	lock, err := h.lock(ctx, p)
	if err != nil {
		return h.wrap(kinded(ctx, "lock", err), what)
	}
	defer h.unlock(ctx, lock)
	s, err := p.look(ctx, h.cfg)
	if err == nil {
		err = do(ctx, p, s)
	}
	return h.wrap(kinded(ctx, "change the host", err), what)
}

func (h *Host) wrap(err error, what string) error {
	return fault.Wrap(err, what, "host "+h.cfg.Machine)
}

func refuse(k fault.Kind, why string) error { return &fault.Error{Kind: k, Evidence: why} }
