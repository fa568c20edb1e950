package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/hypervisor/qemu"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lan is a switch in this process that network cards are plugged into, each on its VLAN.
type lan struct {
	sw *vswitch.Switch

	mu    sync.Mutex
	ports map[string]*vswitch.Port // by card
}

func newLAN() *lan { return &lan{sw: vswitch.New(nil), ports: map[string]*vswitch.Port{}} }

// Plug implements qemu.Network.
func (l *lan) Plug(_ context.Context, _ string, nic driver.NIC) (qemu.Port, error) {
	p, err := l.port(nic)
	if err != nil {
		return qemu.Port{}, err
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return qemu.Port{}, err
	}
	near := os.NewFile(uintptr(fds[0]), "port")
	c, err := net.FileConn(near)
	if err = errors.Join(err, near.Close()); err != nil {
		return qemu.Port{}, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, c) }()
	return qemu.Port{File: os.NewFile(uintptr(fds[1]), "network card"),
		Netdev: func(fd int) string { return fmt.Sprintf("stream,server=off,addr.type=fd,addr.str=%d", fd) },
		Unplug: sync.OnceValue(func() error { cancel(); return <-done })}, nil
}

func (l *lan) port(nic driver.NIC) (*vswitch.Port, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	set := vswitch.Settings{Access: nic.VLAN}
	if p := l.ports[nic.MAC]; p != nil {
		return p, p.Set(set)
	}
	p, err := l.sw.Add(nic.MAC, set)
	l.ports[nic.MAC] = p
	return p, err
}

// rig is a host, and what is truly on it: every QEMU that was started says so itself, before it is one.
type rig struct {
	t      *testing.T
	host   *qemu.Host
	lan    *lan
	starts string // file; one process a line
	faults *breaker

	mu     sync.Mutex
	theirs []*exec.Cmd
	boast  []driver.VM // theirs, as far as no process can have so much
}

func newRig(t *testing.T) *rig {
	dir := t.TempDir()
	r := &rig{t: t, lan: newLAN(), starts: filepath.Join(dir, "starts")}
	if _, err := os.Stat(qemu.DefaultCode); err != nil {
		t.Skip("UEFI firmware: ", err)
	}
	wrapper := filepath.Join(dir, "qemu")
	must(t, os.WriteFile(wrapper, fmt.Appendf(nil, "#!/bin/sh\necho $$ >>%q\nexec %q \"$@\"\n", r.starts, qemutest.QEMU(t)), 0o700)) //nolint:gosec // it is run
	var err error
	r.host, err = qemu.New(qemu.Config{Name: "b01", Dir: filepath.Join(dir, "run"), Network: r.lan, QEMU: wrapper, CPUs: 8, MemoryMiB: 8192, Others: r.others})
	must(t, err)
	r.faults = &breaker{Host: r.host}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		must(t, r.host.Shutdown(ctx))
		r.boast = nil
		if left := r.running(); len(left) > 0 {
			t.Errorf("still on: %v", left)
		}
		left, err := os.ReadDir(filepath.Join(dir, "run"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return r
}

// pids are all processes that were started as QEMU.
func (r *rig) pids() []string {
	b, err := os.ReadFile(r.starts)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.t.Error(err)
	}
	return strings.Fields(string(b))
}

// running names the machines whose process is there, as the kernel says.
func (r *rig) running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	pids := r.pids()
	var names []string
	for _, c := range r.theirs {
		if !slices.Contains(c.Args, "-S") {
			pids = append(pids, strconv.Itoa(c.Process.Pid))
		}
	}
	for _, vm := range r.boast {
		names = append(names, vm.Name)
	}
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if _, after, ok := strings.Cut(string(b), "-name\x00guest="); ok && err == nil {
			name, _, _ := strings.Cut(after, "\x00")
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// foreign starts a QEMU beside the host. One that nobody could start is only said to be there.
func (r *rig) foreign(t *testing.T, s driver.Spec, running bool) {
	if s.MemoryMiB > 1<<20 {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.boast = append(r.boast, driver.VM{Name: s.Name, UUID: s.UUID, State: driver.StateRunning, Spec: s})
		return
	}
	args := []string{"-name", "guest=" + s.Name, "-uuid", s.UUID, "-m", fmt.Sprint(s.MemoryMiB), "-smp", fmt.Sprint(s.CPUs), "-display", "none", "-nodefaults",
		"-device", "virtio-net-pci,mac=" + s.NICs[0].MAC}
	if !running {
		args = append(args, "-S")
	}
	c := exec.Command(qemutest.QEMU(t), args...) //nolint:gosec // a test
	must(t, c.Start())
	r.mu.Lock()
	r.theirs = append(r.theirs, c)
	r.mu.Unlock()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	// The host sees it once it is QEMU, and no copy of this process any more.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if vms, err := r.others(t.Context()); err == nil && slices.ContainsFunc(vms, func(vm driver.VM) bool { return vm.Name == s.Name }) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the foreign machine is not seen")
		}
	}
}

// others are the foreign machines of this rig: there are more on this computer while other tests run.
func (r *rig) others(ctx context.Context) ([]driver.VM, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.boast)
	for _, c := range r.theirs {
		vms, err := qemu.Process(ctx, c.Process.Pid)
		if err != nil {
			return nil, err
		}
		out = append(out, vms...)
	}
	return out, nil
}

func (r *rig) contract() hypervisortest.Rig {
	return hypervisortest.Rig{
		Open:    func(*testing.T) driver.Host { return r.faults },
		Foreign: r.foreign,
		Running: r.running,
		Starts:  func() int { return len(r.pids()) },
		Fail:    r.faults.fail,
		Heal:    r.faults.heal,
		Whole:   r.whole,
	}
}

// breaker breaks calls on their way to a host.
type breaker struct {
	driver.Host

	mu  sync.Mutex
	n   int // the call from now that breaks; 0: none
	how hypervisortest.Failure
}

func (b *breaker) fail(n int, how hypervisortest.Failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n, b.how = n, how
}

func (b *breaker) heal() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	broke := b.n == 0
	b.n = 0
	return broke
}

func (b *breaker) call(do func() error) error {
	b.mu.Lock()
	hit := b.n == 1
	b.n = max(0, b.n-1)
	how := b.how
	b.mu.Unlock()
	if !hit {
		return do()
	}
	if how == hypervisortest.Lost {
		_ = do() // its answer is what is lost
	}
	kind := fault.Unreachable
	if how == hypervisortest.Refused {
		kind = fault.Busy
	}
	return fault.New(kind, string(how))
}

func (b *breaker) Define(ctx context.Context, s driver.Spec) error {
	return b.call(func() error { return b.Host.Define(ctx, s) })
}

func (b *breaker) Start(ctx context.Context, name string, epoch uint64) error {
	return b.call(func() error { return b.Host.Start(ctx, name, epoch) })
}

func (b *breaker) Stop(ctx context.Context, name string, epoch uint64) error {
	return b.call(func() error { return b.Host.Stop(ctx, name, epoch) })
}

func (b *breaker) Undefine(ctx context.Context, name string, epoch uint64) error {
	return b.call(func() error { return b.Host.Undefine(ctx, name, epoch) })
}
