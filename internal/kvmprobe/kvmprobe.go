// Package kvmprobe finds out whether KVM runs guests on this machine, by running one. A /dev/kvm that can
// be opened proves nothing: without hardware support below it firmware crawls and a Linux kernel hangs,
// where QEMU's own emulation boots it in two seconds.
package kvmprobe

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// Accelerators, as QEMU names them.
const (
	KVM = "kvm"
	TCG = "tcg" // QEMU's own emulation
)

// DefaultLimit is how long the guest may take to speak. Where KVM works that is a fraction of a second, and
// under emulation 0.1 s; on a KVM which hangs Linux it was 3.4 s, of which the firmware's real mode took 2.7 s.
// A wrong no costs speed and a wrong yes the machine, so the limit is well below that.
const DefaultLimit = 1500 * time.Millisecond

// Config of a Probe. The zero value is good.
type Config struct {
	QEMU        string        // the emulator of this machine's architecture; default qemu-system-x86_64
	Limit       time.Duration // default DefaultLimit
	Accelerator string        // what is probed; default KVM
}

// Result says whether guests run, and why not.
type Result struct {
	OK  bool
	Why string // empty when OK
}

// Probe boots its guest at most once and keeps the answer: make one for a process. It is safe for
// concurrent use.
type Probe struct {
	cfg Config

	mu   sync.Mutex
	done bool
	last Result
}

// New returns a Probe that has not probed yet.
func New(c Config) *Probe {
	if c.QEMU == "" {
		c.QEMU = "qemu-system-x86_64"
	}
	if c.Limit <= 0 {
		c.Limit = DefaultLimit
	}
	if c.Accelerator == "" {
		c.Accelerator = KVM
	}
	return &Probe{cfg: c}
}

// Result boots the guest unless that has been done, and says what came of it. It takes Limit at the most,
// plus the time to end the guest. An answer that only ctx cut short is not kept.
func (p *Probe) Result(ctx context.Context) Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return p.last
	}
	var r Result
	if err := p.boot(ctx); err != nil {
		r.Why = err.Error()
	} else {
		r.OK = true
	}
	p.done, p.last = ctx.Err() == nil, r
	return r
}

// Best is the accelerator to start machines with: the probed one when guests run on it, else TCG.
func (p *Probe) Best(ctx context.Context) string {
	if p.Result(ctx).OK {
		return p.cfg.Accelerator
	}
	return TCG
}

// sector is the guest's disk; see sector.S.
//
//go:embed sector.bin
var sector []byte

const hello = "kvm ok"

// boot runs the guest until it has spoken.
func (p *Probe) boot(ctx context.Context) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("the guest runs on amd64 only, and this is %s", runtime.GOARCH)
	}
	if p.cfg.Accelerator == KVM {
		// QEMU says less clearly what is wrong.
		f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "kvmprobe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	disk := filepath.Join(dir, "sector")
	if err := os.WriteFile(disk, sector, 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Limit)
	defer cancel()
	return p.run(ctx, disk)
}

// killed is how long a killed guest may take to be gone.
const killed = 5 * time.Second

func (p *Probe) run(ctx context.Context, disk string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.cfg.QEMU, "-M", "pc", "-accel", p.cfg.Accelerator, "-m", "16", "-nodefaults", "-no-user-config",
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-boot", "order=c", "-drive", "if=ide,format=raw,snapshot=on,file="+strings.ReplaceAll(disk, ",", ",,"))
	var failure strings.Builder
	cmd.Stderr, cmd.WaitDelay = &failure, killed
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	// On Linux a child that dies with us dies with the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	diesWithUs(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	spoke := false
	for s := bufio.NewScanner(said); !spoke && s.Scan(); { // ends with the process, which ends with ctx
		spoke = strings.Contains(s.Text(), hello)
	}
	late := errors.Is(ctx.Err(), context.DeadlineExceeded)
	cancel()
	err = cmd.Wait()
	switch {
	case spoke:
		return nil
	case late:
		return fmt.Errorf("a guest on %s says nothing for %s", p.cfg.Accelerator, p.cfg.Limit)
	case failure.Len() > 0:
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(failure.String()))
	}
	return fmt.Errorf("the guest ended without a word: %w", err)
}
