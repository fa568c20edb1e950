// Package hypervisor runs virtual machines on hosts: the part that is the same for every hypervisor.
//
// Host takes a driver and adds what must hold for all of them: definitions are checked before they reach
// the host, VMs that are not ours are out of reach, no two VMs of a host share an identity, one change at
// a time is in flight, every call has a deadline, and what was asked is read back from the host's own list
// of VMs. A list that cannot be read, or makes no sense, is an error and never an empty list.
package hypervisor

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Config says what is known of a host beyond its driver.
type Config struct {
	Machine string // the machine that is the host, for messages
	// ReadTimeout bounds Capacity and VMs; 10 s when 0.
	ReadTimeout time.Duration
	// ChangeTimeout bounds a change, its turn and its read-back included; 30 s when 0.
	ChangeTimeout time.Duration
	// Logger gets changes and refusals; discarded when nil.
	Logger *slog.Logger
}

// Validate names the first wrong key.
func (c Config) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, What: "host config " + key, Evidence: why}
	}
	switch {
	case c.Machine == "":
		return bad("machine", "missing")
	case c.ReadTimeout < 0:
		return bad("readTimeout", "negative")
	case c.ChangeTimeout < 0:
		return bad("changeTimeout", "negative")
	}
	return nil
}

// Host is one host. It is safe for concurrent use, and a driver.Host itself.
type Host struct {
	drv  driver.Host
	cfg  Config
	turn chan struct{} // full while somebody changes the host
}

var _ driver.Host = (*Host)(nil)

// New puts a host on top of its driver, which it closes with Close.
func New(drv driver.Host, cfg Config) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = 10 * time.Second
	}
	if cfg.ChangeTimeout == 0 {
		cfg.ChangeTimeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Host{drv: drv, cfg: cfg, turn: make(chan struct{}, 1)}, nil
}

// Close frees the driver's session. The VMs run on.
func (h *Host) Close() error { return h.wrap(h.drv.Close(), "close") }

// Capacity reads the room of the host; fault.Internal for one that no host has.
func (h *Host) Capacity(ctx context.Context) (driver.Capacity, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.ReadTimeout)
	defer cancel()
	c, err := h.drv.Capacity(ctx)
	if err == nil {
		err = plausible(c)
	}
	if err != nil {
		return driver.Capacity{}, h.wrap(err, "read capacity")
	}
	return c, nil
}

// VMs reads every VM of the host. On error nothing is known, least of all that a VM is off.
func (h *Host) VMs(ctx context.Context) ([]driver.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.ReadTimeout)
	defer cancel()
	l, err := h.list(ctx)
	return l, h.wrap(err, "list VMs")
}

// Define creates the VM or replaces its definition, and reads it back.
//
// Errors of Define, Start, Stop, Undefine and Drain, beside those of the transport: fault.Invalid,
// NotFound, Conflict, Stale and Unsafe as driver.Host has them, of which nothing was changed; Busy when
// other changes of the host did not end in time; Unverified when it reads back differently. After any
// other error the effect is unknown until the same call succeeds.
func (h *Host) Define(ctx context.Context, s driver.Spec) error {
	a := act{verb: "define", name: s.Name, epoch: s.Epoch}
	if err := s.Validate(); err != nil {
		return h.wrap(err, a.String())
	}
	return h.change(ctx, a, func(ctx context.Context, before list) (bool, error) {
		have, ok := before.find(s.Name)
		switch {
		case ok && have.Spec.Equal(s):
			return false, nil
		case ok && have.State != driver.StateDefined:
			return false, refuse(fault.Conflict, "it is "+string(have.State)+" with another definition")
		}
		if err := before.unique(s); err != nil {
			return false, err
		}
		return true, h.drv.Define(ctx, s)
	}, func(after list) string { return after.defined(s) })
}

// Start powers on the VM as it was defined with this epoch, and reads back that exactly that one runs.
func (h *Host) Start(ctx context.Context, name string, epoch uint64) error {
	var want driver.Spec
	return h.change(ctx, act{"start", name, epoch}, func(ctx context.Context, before list) (bool, error) {
		have, ok := before.find(name)
		switch {
		case !ok:
			return false, refuse(fault.NotFound, "it is not defined")
		case have.Spec.Epoch != epoch:
			return false, refuse(fault.Conflict, fmt.Sprintf("it is defined with epoch %d, not %d", have.Spec.Epoch, epoch))
		}
		want = have.Spec
		if have.State == driver.StateRunning {
			return false, nil
		}
		if err := before.unique(want); err != nil {
			return false, err
		}
		return true, h.drv.Start(ctx, name, epoch)
	}, func(after list) string {
		if why := after.defined(want); why != "" {
			return why
		}
		if vm, _ := after.find(name); vm.State != driver.StateRunning {
			return "it is " + string(vm.State)
		}
		return ""
	})
}

// Stop powers a VM off at once, and reads back that it does not run. An absent VM is success, after the
// host has been told all the same: it remembers the epoch.
func (h *Host) Stop(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, act{"stop", name, epoch}, func(ctx context.Context, _ list) (bool, error) {
		return true, h.drv.Stop(ctx, name, epoch)
	}, func(after list) string {
		if vm, ok := after.find(name); ok && vm.State != driver.StateDefined {
			return "it is " + string(vm.State)
		}
		return ""
	})
}

// Undefine removes a VM that does not run, and reads back that it is gone. An absent VM is success, after
// the host has been told all the same: it remembers the epoch.
func (h *Host) Undefine(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, act{"undefine", name, epoch}, func(ctx context.Context, before list) (bool, error) {
		if vm, ok := before.find(name); ok && vm.State != driver.StateDefined {
			return false, refuse(fault.Conflict, "it is "+string(vm.State))
		}
		return true, h.drv.Undefine(ctx, name, epoch)
	}, func(after list) string {
		if _, ok := after.find(name); ok {
			return "it is still there"
		}
		return ""
	})
}

// Drain makes the host refuse new definitions and starts until it is booted again.
func (h *Host) Drain(ctx context.Context) error {
	return h.inTurn(ctx, "drain", func(ctx context.Context) error {
		if err := h.drv.Drain(ctx); err != nil {
			return err
		}
		c, err := h.drv.Capacity(ctx)
		if err == nil && !c.Draining {
			err = refuse(fault.Unverified, "it does not say that it drains")
		}
		return err
	})
}

// act is a change of one VM.
type act struct {
	verb, name string
	epoch      uint64
}

func (a act) String() string { return a.verb + " VM " + a.name }

// change looks at the host's VMs, lets do act on them, which reports whether it told the host anything,
// and looks again. check says what is wrong then.
func (h *Host) change(ctx context.Context, a act, do func(context.Context, list) (bool, error), check func(list) string) error {
	if err := driver.CheckName(a.name); err != nil {
		return h.wrap(err, a.verb)
	}
	if a.epoch == 0 {
		return h.wrap(refuse(fault.Invalid, "epoch 0 stands for none"), a.String())
	}
	return h.inTurn(ctx, a.String(), func(ctx context.Context) error {
		before, err := h.list(ctx)
		if err != nil {
			return err
		}
		if err := before.allows(a); err != nil {
			return err
		}
		told, err := do(ctx, before)
		if err != nil || !told {
			return err
		}
		after, err := h.list(ctx)
		if err != nil {
			return err
		}
		if err := after.allows(a); err != nil { // a newer run came in between
			return err
		}
		if why := check(after); why != "" {
			return refuse(fault.Unverified, why)
		}
		return nil
	})
}

func (h *Host) inTurn(ctx context.Context, what string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.ChangeTimeout)
	defer cancel()
	began := time.Now()
	var err error
	select {
	case h.turn <- struct{}{}:
		err = func() error {
			defer func() { <-h.turn }()
			return do(ctx)
		}()
	case <-ctx.Done():
		err = &fault.Error{Kind: fault.Busy, What: "wait for the turn", Evidence: "another change of this host is still under way", Err: ctx.Err()}
	}
	if err != nil {
		h.cfg.Logger.WarnContext(ctx, "host not changed as asked", "host", h.cfg.Machine, "act", what, "err", err)
		return h.wrap(err, what)
	}
	h.cfg.Logger.InfoContext(ctx, "host is as asked", "host", h.cfg.Machine, "act", what, "took", time.Since(began))
	return nil
}

func (h *Host) list(ctx context.Context) (list, error) {
	vms, err := h.drv.VMs(ctx)
	if err != nil {
		return nil, err
	}
	if err := list(vms).check(); err != nil {
		return nil, err
	}
	return vms, nil
}

func (h *Host) wrap(err error, what string) error {
	return fault.Wrap(err, what, "host "+h.cfg.Machine)
}

func refuse(k fault.Kind, why string) error { return &fault.Error{Kind: k, Evidence: why} }
