package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"rerack.dev/rerack/internal/child"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/kvmprobe"
)

// Machine is one machine. It is off while Run is not running.
type Machine struct{ cfg Config }

// New checks the configuration. Nothing is started.
func New(c Config) (*Machine, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Machine{cfg: c}, nil
}

// killed is how long a killed process may take to be gone.
const killed = 10 * time.Second

// Run is one life of the machine: it turns it on and returns when it is off, with nothing left of it.
// That is when ctx ends, which is a power cut and no shutdown; or when the system in it turned it off.
// Both are nil. A machine that could not be turned on, or whose emulator failed, is fault.Internal with
// what the emulator said. Two lives at once are not possible: the ports are taken.
func (m *Machine) Run(ctx context.Context, b Boot) error {
	c := &m.cfg
	if b.Device == HTTP && c.Firmware != UEFI {
		return &fault.Error{Kind: fault.Unsupported, Where: "machine " + c.Name, What: "HTTP boot", Evidence: "its firmware is BIOS"}
	}
	if err := m.prepare(); err != nil {
		return err
	}
	console, err := os.OpenFile(c.Console, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.Wrap(err, "open console", c.Console)
	}
	defer console.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	far, wires, err := m.plug(ctx)
	defer func() {
		cancel()
		wires.Wait()
	}()
	defer closeAll(far)
	if err != nil {
		return err
	}
	said := &tail{}
	cmd := exec.CommandContext(ctx, c.QEMU, c.args(b, m.accelerator(ctx))...) // killed when ctx ends
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &lines{file: console, use: c.OnLine}, said, far
	cmd.WaitDelay = killed
	ended, err := child.Start(cmd, nil)
	if err == nil {
		err = <-ended
	}
	if ctx.Err() != nil || err == nil {
		return nil
	}
	return &fault.Error{Kind: fault.Internal, Where: "machine " + c.Name, What: "run QEMU", Evidence: said.String(), Err: err}
}

// accelerator is KVM where that has been seen to run a guest of the machine's kind.
func (m *Machine) accelerator(ctx context.Context) string {
	if m.cfg.KVM == nil || (m.cfg.Arch == ARM64) != (runtime.GOARCH == "arm64") {
		return kvmprobe.TCG
	}
	return m.cfg.KVM.Best(ctx)
}

// prepare makes UEFI's variables when the machine has none yet; they outlive its lives.
func (m *Machine) prepare() error {
	if m.cfg.Firmware != UEFI {
		return nil
	}
	to := m.cfg.vars()
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	b, err := os.ReadFile(m.cfg.Vars)
	if err != nil {
		return fault.Wrap(err, "read UEFI variables", m.cfg.Vars)
	}
	return fault.Wrap(os.WriteFile(to, b, 0o600), "write UEFI variables", to)
}

// plug connects every network card: its port gets one end of a socket pair, far has the ends for QEMU,
// which must be closed here once it has them. The wires end with ctx. far and wires are good also when
// there is an error.
func (m *Machine) plug(ctx context.Context) (far []*os.File, wires *sync.WaitGroup, err error) {
	wires = &sync.WaitGroup{}
	for i, n := range m.cfg.NICs {
		near, end, err := socketPair()
		if err != nil {
			return far, wires, fault.Wrap(err, "plug in", fmt.Sprintf("machine %s, network card %d", m.cfg.Name, i))
		}
		far = append(far, end)
		wires.Go(func() {
			if err := n.Port.Serve(ctx, near); err != nil {
				m.cfg.Logger.Warn("network card unplugged", "machine", m.cfg.Name, "card", i, "err", err)
			}
		})
	}
	return far, wires, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // QEMU has its own by now, or will never have one
	}
}

// lines passes a console on: all of it to a file, up to a limit, and line by line to a function.
type lines struct {
	file    io.Writer
	use     func(string)
	line    []byte
	written int
}

const (
	maxLine    = 1 << 10
	maxConsole = 16 << 20 // of one life, in bytes
)

// Write implements io.Writer. What the file does not take is lost; the machine runs on.
func (l *lines) Write(b []byte) (int, error) {
	if l.written < maxConsole {
		n, _ := l.file.Write(b)
		l.written += n
	}
	for _, c := range b {
		switch {
		case c == '\n':
			l.use(string(l.line))
			l.line = l.line[:0]
		case c != '\r' && len(l.line) < maxLine:
			l.line = append(l.line, c)
		}
	}
	return len(b), nil
}

// tail keeps the end of what a process says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 2 << 10

// Write implements io.Writer.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-maxTail):]
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// connOf makes a connection of a file that is a socket, and closes the file.
func connOf(f *os.File) (net.Conn, error) {
	c, err := net.FileConn(f)
	return c, errors.Join(err, f.Close())
}
