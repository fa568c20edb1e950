package qemu

import (
	"context"
	"os"
	"sync"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Host runs virtual machines on this machine. It is safe for concurrent use.
type Host struct {
	cfg Config

	mu    sync.Mutex // guards what follows, and is not held while QEMU is waited for
	book  book
	turns map[string]*turn // by name; one act on a machine at a time
}

// turn lets one act on a machine be made at a time.
type turn struct {
	full chan struct{}
	// starting ends a start that is under way, nil when none is. An order to stop does not wait until a
	// volume that does not answer has timed out.
	starting context.CancelFunc
	epoch    uint64 // of that start
}

var _ driver.Host = (*Host)(nil)

// New returns a host on which nothing runs.
func New(c Config) (*Host, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fault.Wrap(err, "make the folder for running machines", c.Dir)
	}
	return &Host{cfg: c, book: newBook(c.CPUs, c.MemoryMiB), turns: map[string]*turn{}}, nil
}

// Capacity implements driver.Host.
func (h *Host) Capacity(ctx context.Context) (driver.Capacity, error) {
	others, err := h.others(ctx)
	if err != nil {
		return driver.Capacity{}, h.wrap(err, "read capacity")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	cpus, memory := h.book.room("", others)
	return driver.Capacity{CPUs: h.cfg.CPUs, MemoryMiB: h.cfg.MemoryMiB, FreeCPUs: max(cpus, 0), FreeMemory: max(memory, 0), Draining: h.book.draining}, nil
}

// VMs implements driver.Host.
func (h *Host) VMs(ctx context.Context) ([]driver.VM, error) {
	others, err := h.others(ctx)
	if err != nil {
		return nil, h.wrap(err, "list VMs")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.book.list(others), nil
}

// Define implements driver.Host.
func (h *Host) Define(ctx context.Context, s driver.Spec) error {
	what := "define VM " + s.Name
	if err := s.Validate(); err != nil {
		return h.wrap(err, what)
	}
	return h.act(ctx, what, s.Name, s.Epoch, func(_ context.Context, have *machine, others []driver.VM) error {
		if have != nil && have.spec.Equal(s) {
			have.spec = s.Clone() // a secret may have changed
			return nil
		}
		if err := h.book.mayDefine(have, s, others); err != nil {
			return err
		}
		if err := h.cfg.supports(s); err != nil {
			return err
		}
		h.book.machines[s.Name] = &machine{spec: s.Clone()}
		return nil
	})
}

// Start implements driver.Host.
func (h *Host) Start(ctx context.Context, name string, epoch uint64) error {
	return h.act(ctx, "start VM "+name, name, epoch, func(ctx context.Context, have *machine, _ []driver.VM) error {
		if err := h.book.mayStart(have, epoch); err != nil || have.on() {
			return err
		}
		overtaken, cancel := context.WithCancel(ctx)
		defer cancel()
		t, spec := h.turns[name], have.spec.Clone()
		t.starting, t.epoch = cancel, epoch
		h.mu.Unlock()
		p, err := h.start(overtaken, spec)
		h.mu.Lock()
		t.starting = nil
		switch {
		case err != nil && overtaken.Err() != nil && ctx.Err() == nil:
			return refuse(fault.Conflict, "it was stopped while it was started")
		case err != nil:
			return err
		}
		have.process = p
		h.cfg.Logger.Info("VM is on", "vm", name, "epoch", epoch, "pid", p.cmd.Process.Pid)
		go h.watch(name, p)
		return nil
	})
}

// watch says when a machine goes off, which its system may have done by itself.
func (h *Host) watch(name string, p *process) {
	<-p.gone
	_ = p.qmp.Close() // QEMU is gone
	h.cfg.Logger.Info("VM is off", "vm", name, "err", p.err, "said", p.said.String())
}

// Stop implements driver.Host.
func (h *Host) Stop(ctx context.Context, name string, epoch uint64) error {
	h.mu.Lock()
	if t := h.turns[name]; t != nil && t.starting != nil && t.epoch <= epoch {
		t.starting()
	}
	h.mu.Unlock()
	return h.act(ctx, "stop VM "+name, name, epoch, func(ctx context.Context, have *machine, _ []driver.VM) error {
		if !have.on() {
			return nil
		}
		h.mu.Unlock()
		err := have.process.stop(ctx)
		h.mu.Lock()
		return err
	})
}

// Undefine implements driver.Host.
func (h *Host) Undefine(ctx context.Context, name string, epoch uint64) error {
	return h.act(ctx, "undefine VM "+name, name, epoch, func(_ context.Context, have *machine, _ []driver.VM) error {
		if have.on() {
			return refuse(fault.Conflict, "it is running")
		}
		delete(h.book.machines, name)
		return nil
	})
}

// Drain implements driver.Host.
func (h *Host) Drain(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return h.wrap(err, "drain")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.book.draining = true
	return nil
}

// Close implements driver.Host. The machines run on.
func (h *Host) Close() error { return nil }

// Shutdown turns every machine off, when the host itself is about to go. Nothing can be started any more.
func (h *Host) Shutdown(ctx context.Context) error {
	if err := h.Drain(ctx); err != nil {
		return err
	}
	h.mu.Lock()
	var on []*process
	for name, m := range h.book.machines {
		if t := h.turns[name]; t != nil && t.starting != nil {
			t.starting()
		}
		if m.on() {
			on = append(on, m.process)
		}
	}
	h.mu.Unlock()
	errs := make(chan error)
	for _, p := range on {
		go func() { errs <- p.stop(ctx) }()
	}
	var first error
	for range on {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return h.wrap(first, "turn all machines off")
}

// Console is the end of what a running machine has said on its serial console.
func (h *Host) Console(ctx context.Context, name string) (string, error) {
	h.mu.Lock()
	m := h.book.machines[name]
	h.mu.Unlock()
	if !m.on() {
		return "", h.wrap(refuse(fault.NotFound, "it is not on"), "read console of VM "+name)
	}
	var said string
	err := m.process.qmp.Do(ctx, "ringbuf-read", map[string]any{"device": "console", "size": console}, &said)
	return said, h.wrap(err, "read console of VM "+name)
}

// act makes one act on a machine when it is its turn, unless it may not be made. do is called with mu held.
func (h *Host) act(ctx context.Context, what, name string, epoch uint64, do func(context.Context, *machine, []driver.VM) error) error {
	others, err := h.others(ctx)
	if err != nil {
		return h.wrap(err, what)
	}
	h.mu.Lock()
	t := h.turns[name]
	if t == nil {
		if err := driver.CheckName(name); err != nil {
			h.mu.Unlock()
			return h.wrap(err, what)
		}
		t = &turn{full: make(chan struct{}, 1)}
		h.turns[name] = t
	}
	h.mu.Unlock()
	select {
	case t.full <- struct{}{}:
		defer func() { <-t.full }()
	case <-ctx.Done():
		return h.wrap(ctx.Err(), what)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return h.wrap(err, what)
	}
	have, err := h.book.admit(name, epoch, others)
	if err == nil {
		err = do(ctx, have, others)
	}
	if err == nil {
		h.book.epochs[name] = epoch
	}
	return h.wrap(err, what)
}

func (h *Host) others(ctx context.Context) ([]driver.VM, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return h.cfg.Others(ctx)
}

func (h *Host) wrap(err error, what string) error {
	return fault.Wrap(err, what, "host "+h.cfg.Name)
}

func refuse(k fault.Kind, why string) error { return &fault.Error{Kind: k, Evidence: why} }
