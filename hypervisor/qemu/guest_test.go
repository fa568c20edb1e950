package qemu_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// small is a definition that starts and boots quickly.
func small(name string, n byte, epoch uint64) driver.Spec {
	s := hypervisortest.Spec(name, n, epoch)
	s.Firmware, s.MemoryMiB = "bios", 16
	return s
}

// until waits for a condition.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// counter is a target with a disk which is an operating system that counts on itself; see
// test/qemu/machine/testdata/counter.S.
func counter(t *testing.T, account ...string) (at *driver.ISCSI, count func() uint16) {
	t.Helper()
	system, err := os.ReadFile("../../test/qemu/machine/testdata/counter.bin")
	must(t, err)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, system, 0o600))
	must(t, os.Truncate(disk, 32<<20))
	san := maskingtest.StartTgtd(t)
	san.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.New, TID: 1, Params: "targetname=" + target})
	san.Must(tgtadm.Request{Mode: tgtadm.Device, Op: tgtadm.New, TID: 1, LUN: 1, Params: "path=" + disk})
	san.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: 1, Params: "initiator-address=ALL"})
	if len(account) == 2 {
		san.Must(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.New, Params: "user=" + account[0] + ",password=" + account[1]})
		san.Must(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.Bind, TID: 1, Params: "user=" + account[0]})
	}
	return &driver.ISCSI{Portal: san.Portal, Target: target, LUN: 1, Initiator: "iqn.2026-01.org.example:host-db1"}, func() uint16 {
		b, err := os.ReadFile(disk)
		must(t, err)
		return binary.LittleEndian.Uint16(b[512:])
	}
}

// A system boots from the workload's volume and writes to it, until it is stopped and no longer.
func TestAGuestOnItsVolume(t *testing.T) {
	const secret = "canary-of-the-target"
	at, count := counter(t, "db1", secret)
	r := newRig(t)
	s := small("db1", 1, 5)
	s.Disks = []driver.Disk{{Volume: "root", Boot: true, ISCSI: at}}
	at.CHAP = &driver.CHAP{Name: "san/db1", User: "db1", Secret: "not the right one"}
	must(t, r.host.Define(t.Context(), s))
	if err := r.host.Start(t.Context(), "db1", 5); err == nil || len(r.running()) > 0 {
		t.Fatalf("it starts without its volume: %v", err)
	}
	at.CHAP.Secret = secret
	must(t, r.host.Define(t.Context(), s))
	must(t, r.host.Start(t.Context(), "db1", 5))
	for _, pid := range r.pids() {
		for _, f := range []string{"cmdline", "environ"} {
			if b, err := os.ReadFile(filepath.Join("/proc", pid, f)); err == nil && bytes.Contains(b, []byte(secret)) {
				t.Errorf("the secret is in %s of QEMU", f)
			}
		}
	}
	until(t, "the disk does not count", func() bool { return count() >= 3 })
	until(t, "its console is silent", func() bool {
		said, err := r.host.Console(t.Context(), "db1")
		return err == nil && strings.Contains(said, "disk: 0001")
	})
	must(t, r.host.Stop(t.Context(), "db1", 5))
	last := count()
	must(t, r.host.Start(t.Context(), "db1", 5))
	until(t, "it does not go on counting", func() bool { return count() > last })
	must(t, r.host.Stop(t.Context(), "db1", 5))
	if _, err := r.host.Console(t.Context(), "db1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the console of a machine that is off: %v", err)
	}
}

// A machine that ends by itself, here because something kills it, is off, and can be started again.
func TestAMachineThatEndsByItself(t *testing.T) {
	r := newRig(t)
	s := small("db1", 1, 5)
	must(t, r.host.Define(t.Context(), s))
	must(t, r.host.Start(t.Context(), "db1", 5))
	pid, err := strconv.Atoi(r.pids()[0])
	must(t, err)
	p, err := os.FindProcess(pid)
	must(t, err)
	must(t, p.Kill())
	until(t, "it is said to run", func() bool {
		vms, err := r.host.VMs(t.Context())
		must(t, err)
		return vms[0].State == driver.StateDefined
	})
	must(t, r.host.Start(t.Context(), "db1", 5))
	if on := r.running(); len(on) != 1 {
		t.Errorf("on: %v", on)
	}
}

// An order to stop does not wait for a start that waits for a volume which does not answer.
func TestStopOvertakesAStart(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	must(t, err)
	defer l.Close()
	r := newRig(t)
	s := small("db1", 1, 5)
	s.Disks = []driver.Disk{{Volume: "root", ISCSI: &driver.ISCSI{Portal: l.Addr().String(), Target: target, LUN: 1}}}
	must(t, r.host.Define(t.Context(), s))
	started := make(chan error, 1)
	go func() { started <- r.host.Start(t.Context(), "db1", 5) }()
	c, err := l.Accept()
	must(t, err)
	defer c.Close()
	must(t, r.host.Stop(t.Context(), "db1", 6))
	if err := <-started; err == nil {
		t.Error("it started")
	}
	if on := r.running(); len(on) > 0 {
		t.Errorf("on: %v", on)
	}
	if err := r.host.Start(t.Context(), "db1", 5); !fault.Is(err, fault.Stale) {
		t.Errorf("start of what a newer run stopped: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	s.Epoch = 6
	must(t, r.host.Define(t.Context(), s))
	if err := r.host.Start(ctx, "db1", 6); !fault.Is(err, fault.Timeout) || len(r.running()) > 0 {
		t.Errorf("a start whose time is up: %v", err)
	}
}

// A machine without a disk to boot from asks for its system on its VLAN and is heard on no other.
func TestNetworkCards(t *testing.T) {
	r := newRig(t)
	listen := func(vlan int) *vswitch.Wire {
		p, err := r.lan.sw.Add("listener of "+string(rune('0'+vlan%10)), vswitch.Settings{Access: vlan})
		must(t, err)
		w, err := p.Connect()
		must(t, err)
		t.Cleanup(w.Close)
		return w
	}
	own, other := listen(120), listen(121)
	s := small("db1", 7, 5)
	s.MemoryMiB = 64 // iPXE needs more than a boot sector
	must(t, r.host.Define(t.Context(), s))
	must(t, r.host.Start(t.Context(), "db1", 5))
	select {
	case f := <-own.Frames():
		if !bytes.Equal(f[6:12], []byte{2, 0, 0, 0, 0, 7}) {
			t.Errorf("the first frame is from %x", f[6:12])
		}
	case <-time.After(time.Minute):
		t.Fatal("nothing is heard")
	}
	must(t, r.host.Stop(t.Context(), "db1", 5))
	if n := len(other.Frames()); n > 0 {
		t.Errorf("%d frames on another VLAN", n)
	}
	if p, err := r.lan.port(s.NICs[0]); err != nil || p.Link() {
		t.Errorf("the card of a machine that is off has a link; %v", err)
	}
}

func TestUnsupported(t *testing.T) {
	r := newRig(t)
	for what, change := range map[string]func(*driver.Spec){
		"another architecture": func(s *driver.Spec) { s.Arch = "arm64" },
		"Fibre Channel": func(s *driver.Spec) {
			s.Disks = []driver.Disk{{Volume: "root", FC: &driver.FC{WWPN: "50:06:01:60:3b:20:11:aa"}}}
		},
	} {
		s := small("db1", 1, 5)
		change(&s)
		if err := r.host.Define(t.Context(), s); !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
