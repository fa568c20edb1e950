package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/qemu/qmp"
	"rerack.dev/rerack/internal/child"
	"rerack.dev/rerack/internal/fault"
)

// process is one running QEMU.
type process struct {
	cmd  *exec.Cmd
	qmp  *qmp.Client
	said bytes.Buffer  // its last words; read only after gone
	gone chan struct{} // closed when nothing is left of it: its process is over, its network unplugged
	err  error         // how it ended, once it is gone
}

// quitting is how long QEMU has to end by itself, which writes out what it was told to write, before it is
// killed. A volume that does not answer must not keep a machine on.
const quitting = 2 * time.Second

// start starts a machine and returns once it runs, as QEMU says itself. Nothing is left when there is an
// error.
func (h *Host) start(ctx context.Context, s driver.Spec) (*process, error) {
	near, far, err := socketPair()
	if err != nil {
		return nil, fault.Wrap(err, "make a socket", "QMP")
	}
	l := &launch{}
	serial, err := h.console(s.Name)
	if err != nil {
		return nil, errors.Join(err, near.Close(), far.Close())
	}
	l.board(&h.cfg, s, far, serial)
	var ports []Port
	p, err := func() (*process, error) {
		defer func() {
			for _, f := range l.files { // QEMU has its own by now, or never will
				_ = f.Close()
			}
		}()
		if err := errors.Join(l.firmware(&h.cfg, s), l.disks(s)); err != nil {
			return nil, err
		}
		for i, n := range s.NICs {
			port, err := h.cfg.Network.Plug(ctx, s.Name, n)
			if err != nil {
				return nil, fault.Wrap(err, fmt.Sprintf("connect to VLAN %d", n.VLAN), "network card "+n.MAC)
			}
			ports = append(ports, port)
			l.nic(i, n.MAC, port)
		}
		return h.spawn(l, s.Name, ports)
	}()
	if err != nil {
		_ = near.Close()
		return nil, errors.Join(err, h.clean(s.Name, ports))
	}
	if err := p.run(ctx, near); err != nil {
		_ = p.cmd.Process.Kill()
		<-p.gone
		if said := strings.TrimSpace(p.said.String()); said != "" {
			return nil, &fault.Error{Kind: fault.KindOf(err), What: "QEMU", Evidence: fmt.Sprintf("%.1000s", said), Err: err}
		}
		return nil, err
	}
	return p, nil
}

// spawn starts the process. It dies with us, whatever we die of.
func (h *Host) spawn(l *launch, name string, ports []Port) (*process, error) {
	p := &process{gone: make(chan struct{}), cmd: exec.Command(h.cfg.QEMU, l.args...)} //nolint:gosec // the configured emulator
	p.cmd.ExtraFiles, p.cmd.Stderr, p.cmd.Dir, p.cmd.WaitDelay = l.files, &limited{b: &p.said}, h.cfg.Dir, time.Second
	ended, err := child.Start(p.cmd, nil)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, What: "start QEMU", Where: h.cfg.QEMU, Err: err, Next: "install qemu-system-x86"}
	}
	go func() {
		p.err = <-ended
		if err := h.clean(name, ports); err != nil {
			h.cfg.Logger.Error("clean up after a machine", "vm", name, "err", err)
		}
		close(p.gone)
	}()
	return p, nil
}

// clean takes away what a machine had beside its process.
func (h *Host) clean(name string, ports []Port) error {
	var all error
	for _, p := range ports {
		all = errors.Join(all, p.Unplug())
	}
	if err := os.Remove(h.cfg.varsOf(name)); !errors.Is(err, fs.ErrNotExist) {
		all = errors.Join(all, err)
	}
	return all
}

// run lets the machine run, which was started paused, and asks whether it does.
func (p *process) run(ctx context.Context, conn net.Conn) error {
	var err error
	if p.qmp, err = qmp.New(ctx, conn); err != nil {
		return err
	}
	if err := p.qmp.Do(ctx, "cont", nil, nil); err != nil {
		return errors.Join(err, p.qmp.Close())
	}
	var status struct{ Status string }
	if err := p.qmp.Do(ctx, "query-status", nil, &status); err != nil {
		return errors.Join(err, p.qmp.Close())
	}
	if status.Status != "running" {
		return errors.Join(&fault.Error{Kind: fault.Unverified, What: "start", Evidence: "QEMU says " + status.Status}, p.qmp.Close())
	}
	return nil
}

// stop ends the machine and returns when nothing is left of it. It goes on ending when ctx ends first.
func (p *process) stop(ctx context.Context) error {
	if !p.alive() {
		return nil
	}
	asked, cancel := context.WithTimeout(ctx, quitting)
	defer cancel()
	if err := p.qmp.Do(asked, "quit", nil, nil); err == nil {
		select {
		case <-p.gone:
			return nil
		case <-asked.Done():
		}
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fault.Wrap(err, "kill QEMU", fmt.Sprint("process ", p.cmd.Process.Pid))
	}
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
		return &fault.Error{Kind: fault.Timeout, What: "kill QEMU", Where: fmt.Sprint("process ", p.cmd.Process.Pid), Evidence: "it is not gone", Err: ctx.Err()}
	}
}

// alive reports whether anything is left of it.
func (p *process) alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// limited keeps the first of what a process says.
type limited struct{ b *bytes.Buffer }

const maxSaid = 4 << 10

// Write implements io.Writer.
func (l *limited) Write(b []byte) (int, error) {
	l.b.Write(b[:min(len(b), maxSaid-l.b.Len())])
	return len(b), nil
}
