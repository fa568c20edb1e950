// Package libvirt drives a host that exists already and is managed by libvirtd: KVM with QEMU.
//
// What is ours on such a host is marked there. A domain of ours names itself, its UUID and its epoch in
// its <metadata>; any other domain, a clone of ours included, is not ours and is never touched. What must
// outlive a domain is kept in libvirt's secret objects, which hold no secret then and are used because they
// are durable, are listed in one call, and because libvirtd refuses a second one of the same usage:
//
//	rerack epoch NAME EPOCH   the newest act on a name (persistent; of several the highest counts)
//	rerack drain              the host drains (persistent: until somebody undefines it)
//	rerack lock               a change is under way (ephemeral: gone when libvirtd restarts)
//
// libvirt has no compare-and-set, and so every change is made under that lock: whoever defines it first
// has it, also among several processes. One whose holder died is broken after Config.LockBroken, which is
// longer than any change may take.
//
// Protocol facts: https://libvirt.org/formatdomain.html, formatsecret.html and the remote protocol
// (https://libvirt.org/kbase/internals/rpc.html).
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Host is a driver.Host. It holds no connection between calls and is safe for concurrent use.
type Host struct {
	cfg  Config
	turn chan struct{} // full while this Host makes a change, and for what follows

	token uuid.UUID      // of its lock there; the zero one: it has none
	other libvirt.Secret // whose lock it saw last
	since time.Time      // and when first
}

var _ driver.Host = (*Host)(nil)

// New returns a driver for one host. It does not dial.
func New(cfg Config) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Host{cfg: cfg.withDefaults(), turn: make(chan struct{}, 1)}, nil
}

// Close does nothing: every call opens and closes its own connection.
func (h *Host) Close() error { return nil }

// Capacity implements driver.Host. The CPUs are the host's times Config.CPUShare, the memory is the host's
// without Config.ReserveMiB.
func (h *Host) Capacity(ctx context.Context) (driver.Capacity, error) {
	var c driver.Capacity
	err := h.read(ctx, "read capacity", func(_ *session, v *view) error {
		c = v.room
		for _, g := range v.guests {
			c.FreeCPUs -= g.vm.Spec.CPUs
			c.FreeMemory -= g.vm.Spec.MemoryMiB
		}
		c.FreeCPUs, c.FreeMemory = max(c.FreeCPUs, 0), max(c.FreeMemory, 0)
		return nil
	})
	return c, err
}

// VMs implements driver.Host. A domain that is paused counts as running: it has its memory and its disks
// open, and goes on when anybody says so.
func (h *Host) VMs(ctx context.Context) ([]driver.VM, error) {
	var out []driver.VM
	err := h.read(ctx, "list VMs", func(_ *session, v *view) error {
		out = make([]driver.VM, 0, len(v.guests))
		for _, g := range v.guests {
			out = append(out, g.vm)
		}
		slices.SortFunc(out, func(a, b driver.VM) int { return strings.Compare(a.Name, b.Name) })
		return nil
	})
	return out, err
}

// Define implements driver.Host. Beside the errors of the contract it returns fault.Unsupported for a
// Fibre Channel volume on a host for which no device path is configured, and fault.Invalid for CHAP without
// its secret.
func (h *Host) Define(ctx context.Context, spec driver.Spec) error {
	if err := spec.Validate(); err != nil {
		return h.wrap(err, "define VM")
	}
	spec = spec.Clone()
	return h.change(ctx, "define VM", spec.Name, spec.Epoch, func(s *session, v *view) error {
		have, ok := v.guests[spec.Name]
		if ok && have.vm.Spec.Equal(spec) {
			return s.mark(v, spec.Name, spec.Epoch)
		}
		if err := v.mayDefine(have, spec); err != nil {
			return err
		}
		text, err := h.cfg.domain(spec)
		if err != nil {
			return err
		}
		if err := s.mark(v, spec.Name, spec.Epoch); err != nil {
			return err
		}
		// libvirt replaces a definition only by one of the same UUID, and keeps the other firmware's NVRAM.
		if ok && (!strings.EqualFold(have.vm.UUID, spec.UUID) || have.vm.Spec.Firmware != spec.Firmware) {
			if err := s.undefine(have.dom); err != nil {
				return err
			}
		}
		if err := s.logins(v, spec); err != nil {
			return err
		}
		if err := s.do("define domain", func() error {
			_, err := s.lv.DomainDefineXMLFlags(text, 0)
			return err
		}); err != nil {
			return err
		}
		return s.readBack(spec.Name, func(g guest, ok bool) string {
			if !ok {
				return "it is not there"
			}
			return differs(spec, g.vm.Spec)
		})
	})
}

// Start implements driver.Host.
func (h *Host) Start(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "start VM", name, epoch, func(s *session, v *view) error {
		g, ok := v.guests[name]
		switch {
		case !ok:
			return refuse(fault.NotFound, "it is not defined")
		case g.vm.Spec.Epoch != epoch:
			return refuse(fault.Conflict, fmt.Sprintf("it is defined with epoch %d, not %d", g.vm.Spec.Epoch, epoch))
		case g.vm.State == driver.StateRunning:
			return nil
		case v.room.Draining:
			return refuse(fault.Conflict, "the host is draining")
		}
		if err := s.do("start domain", func() error {
			_, err := s.lv.DomainCreateWithFlags(g.dom, 0)
			return err
		}); err != nil {
			return err
		}
		return s.readBack(name, func(g guest, _ bool) string {
			if g.vm.State != driver.StateRunning {
				return "it does not run"
			}
			return ""
		})
	})
}

// Stop implements driver.Host. It is the end of the QEMU process, not a request to the guest.
func (h *Host) Stop(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "stop VM", name, epoch, func(s *session, v *view) error {
		if err := s.mark(v, name, epoch); err != nil {
			return err
		}
		g, ok := v.guests[name]
		if !ok || g.vm.State != driver.StateRunning {
			return nil
		}
		// One that ends by itself meanwhile is what was asked: reading back decides.
		if err := s.do("destroy domain", func() error { return s.lv.DomainDestroyFlags(g.dom, 0) }); err != nil && !retired(err) {
			return err
		}
		return s.readBack(name, func(g guest, _ bool) string {
			if g.vm.State == driver.StateRunning {
				return "it still runs"
			}
			return ""
		})
	})
}

// Undefine implements driver.Host.
func (h *Host) Undefine(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "undefine VM", name, epoch, func(s *session, v *view) error {
		g, ok := v.guests[name]
		if ok && g.vm.State == driver.StateRunning {
			return refuse(fault.Conflict, "it is running")
		}
		if err := s.mark(v, name, epoch); err != nil {
			return err
		}
		if ok {
			if err := s.undefine(g.dom); err != nil {
				return err
			}
		}
		if err := s.forgetLogins(v, name, nil); err != nil {
			return err
		}
		return s.readBack(name, func(_ guest, ok bool) string {
			if ok {
				return "it is still there"
			}
			return ""
		})
	})
}

// Drain implements driver.Host. libvirt does not tell one boot of the host from another, and so it drains
// until somebody there undefines the secret object "rerack drain".
func (h *Host) Drain(ctx context.Context) error {
	return h.locked(ctx, "drain", func(s *session, v *view) error {
		if v.room.Draining {
			return nil
		}
		return s.keep(drainUsage, "This host takes no more VMs from Rerack", true)
	})
}

// retired reports whether a domain was not there, or did not run, when it was to be stopped.
func retired(err error) bool {
	var e libvirt.Error
	return errors.As(err, &e) && (e.Code == uint32(libvirt.ErrNoDomain) || e.Code == uint32(libvirt.ErrOperationInvalid))
}

// read lets f look at the host.
func (h *Host) read(ctx context.Context, what string, f func(*session, *view) error) error {
	s, err := h.dial(ctx)
	if err != nil {
		return h.wrap(err, what)
	}
	defer s.close()
	v, err := s.look()
	if err != nil {
		return h.wrap(err, what)
	}
	return h.wrap(f(s, v), what)
}

// change lets do act on one VM, after what no act is allowed.
func (h *Host) change(ctx context.Context, what, name string, epoch uint64, do func(*session, *view) error) error {
	what += " " + name
	if err := driver.CheckName(name); err != nil {
		return h.wrap(err, what)
	}
	if epoch == 0 {
		return h.wrap(refuse(fault.Invalid, "epoch 0 stands for none"), what)
	}
	return h.locked(ctx, what, func(s *session, v *view) error {
		if g, ok := v.guests[name]; ok && g.vm.Epoch == 0 {
			return &fault.Error{Kind: fault.Unsafe, Evidence: "the domain of this name is not ours", Next: "rename it, or the workload"}
		}
		if have := max(v.marks[name], v.guests[name].vm.Epoch); epoch < have {
			return refuse(fault.Stale, fmt.Sprintf("epoch %d, it has %d", epoch, have))
		}
		return do(s, v)
	})
}

func (h *Host) wrap(err error, what string) error {
	return fault.Wrap(err, what, "host "+h.cfg.Machine)
}

func refuse(k fault.Kind, why string) error { return &fault.Error{Kind: k, Evidence: why} }
