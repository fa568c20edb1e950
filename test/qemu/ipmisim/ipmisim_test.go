package ipmisim_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/test/qemu/ipmisim"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/sitetest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(sitetest.Patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

// box is a machine in QEMU with buttons: ipmisim.Backend. Its power is the process.
type box struct {
	t *testing.T
	m *machine.Machine

	mu     sync.Mutex
	boot   ipmisim.BootDevice
	off    context.CancelFunc // nil while it is off
	gone   chan struct{}
	booted []machine.Device // what it booted from, in order
}

func (b *box) On() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.off != nil
}

func (b *box) SetPower(on bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case on && b.off == nil:
		device := machine.Disk
		if b.boot == ipmisim.BootPXE {
			device = machine.Network
		}
		b.boot = ipmisim.BootNone // for once
		b.booted = append(b.booted, device)
		var ctx context.Context
		ctx, b.off = context.WithCancel(context.Background())
		b.gone = make(chan struct{})
		go func(gone chan struct{}) {
			defer close(gone)
			if err := b.m.Run(ctx, machine.Boot{Device: device}); err != nil {
				b.t.Error(err)
			}
		}(b.gone)
	case !on && b.off != nil:
		b.off()
		<-b.gone
		b.off = nil
	}
}

func (b *box) ShutDown() { b.SetPower(false) }
func (b *box) Reset()    { b.SetPower(false); b.SetPower(true) }
func (b *box) SetBoot(d ipmisim.BootDevice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.boot = d
}

func need(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("ipmi_sim"); err != nil {
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func config(t *testing.T, m ipmisim.Backend) ipmisim.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "ipmisim-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer c.Close()
	return ipmisim.Config{Name: "m1", Dir: dir, Listen: netip.MustParseAddrPort(c.LocalAddr().String()), User: "admin", Password: "ABCDEFGHIJKLMNOP",
		UUID: "4c4c4544-0051-4810-8052-b4c04f4d3732", Backend: m}
}

func start(t *testing.T, m ipmisim.Backend) *ipmisim.BMC {
	t.Helper()
	need(t)
	c := config(t, m)
	b, err := ipmisim.Start(c)
	must(t, err)
	t.Cleanup(func() {
		must(t, b.Close())
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		must(t, err)
		for _, f := range all {
			if said, err := os.ReadFile(f); err == nil && strings.Contains(string(said), c.Dir) {
				t.Errorf("still there: %q", said)
			}
		}
	})
	return b
}

func open(t *testing.T, b *ipmisim.BMC) driver.BMC {
	t.Helper()
	var d driver.BMC
	eventually(t, "ipmi_sim answers", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var err error
		d, err = ipmi.Opener{Config: ipmi.Config{AttemptTimeout: 500 * time.Millisecond}}.Open(ctx, bmc.Endpoint{Address: b.Addr()},
			bmc.Credential{User: "admin", Password: bmc.NewSecret("ABCDEFGHIJKLMNOP")})
		if err != nil && !fault.Is(err, fault.Unreachable) && !fault.Is(err, fault.Timeout) {
			t.Fatal(err)
		}
		return err == nil
	})
	t.Cleanup(func() { _ = d.Close(context.Background()) }) // the BMC may be without power
	return d
}

func reads(t *testing.T, d driver.BMC, want driver.PowerState) {
	t.Helper()
	eventually(t, "it reads "+string(want), func() bool {
		r, err := d.Power(t.Context())
		must(t, err)
		return r.State == want
	})
}

// TestPXEThroughIPMI has the product's driver choose the network and press the button, and real firmware boot a
// real kernel from the product's boot server.
func TestPXEThroughIPMI(t *testing.T) {
	need(t)
	s := sitetest.New(t)
	boot := s.Serve()
	in := boot.Intent(1, boot.KernelBoot())
	in.Boot.Kernel.Params = []ipxe.Param{{Key: "console", Value: "ttyS0"}, {Key: "quiet"}, {Key: "no_timer_check"},
		{Key: "tsc", Value: "reliable"}, {Key: "rerack.workload", Value: "web1"}, {Key: "rerack.epoch", Value: "3"}}
	in.NICs[0].Gateway = s.Self
	boot.Set(in)
	mac := pxetest.MAC(1)
	p, err := s.Switch.Add("m1", vswitch.Settings{Access: sitetest.VLAN})
	must(t, err)
	dir := t.TempDir()
	m, err := machine.New(machine.Config{Name: "m1", QEMU: qemutest.QEMU(t), Dir: dir, Console: filepath.Join(dir, "console"), MemoryMiB: 128,
		NICs: []machine.NIC{{MAC: net.HardwareAddr(mac[:]), Port: p}}})
	must(t, err)
	b := &box{t: t, m: m}
	t.Cleanup(func() { b.SetPower(false) })
	sim := start(t, b)
	d := open(t, sim)

	id, err := d.Inventory(t.Context())
	must(t, err)
	if id.UUID != "4c4c4544-0051-4810-8052-b4c04f4d3732" {
		t.Errorf("the UUID reads %s", id.UUID)
	}
	reads(t, d, driver.PowerOff)
	must(t, d.SetBoot(t.Context(), driver.BootOverride{Device: driver.BootPXE, Once: true}))
	must(t, d.SetPower(t.Context(), driver.On))
	reads(t, d, driver.PowerOn)
	ctx, cancel := context.WithTimeout(t.Context(), sitetest.Patience)
	defer cancel()
	if _, err := boot.Ledger.Wait(ctx, in.Machine, pxe.KindHealthy); err != nil {
		t.Fatalf("%v; it reached %v", err, boot.Ledger.Kinds(in.Machine))
	}
	addr := in.NICs[0].Address.Addr().String() + ":80"
	if got, err := s.Ask(addr); err != nil || !strings.Contains(got, `"workload":"web1"`) {
		t.Errorf("%q, %v", got, err)
	}

	must(t, d.SetPower(t.Context(), driver.Off))
	reads(t, d, driver.PowerOff)
	if p.Link() {
		t.Error("it reads off, and the process is there")
	}
	must(t, d.SetPower(t.Context(), driver.On))
	reads(t, d, driver.PowerOn)
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.booted) != 2 || b.booted[0] != machine.Network || b.booted[1] != machine.Disk {
		t.Errorf("it booted from %v", b.booted)
	}
}

// lamp is a machine that is only on or off.
type lamp struct {
	mu sync.Mutex
	on bool
}

func (l *lamp) On() bool                   { l.mu.Lock(); defer l.mu.Unlock(); return l.on }
func (l *lamp) SetPower(on bool)           { l.mu.Lock(); defer l.mu.Unlock(); l.on = on }
func (l *lamp) ShutDown()                  { l.SetPower(false) }
func (l *lamp) Reset()                     {}
func (l *lamp) SetBoot(ipmisim.BootDevice) {}

func TestABMCWithoutMains(t *testing.T) {
	l := &lamp{on: true}
	sim := start(t, l)
	reads(t, open(t, sim), driver.PowerOn)
	sim.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := ipmi.Probe(ctx, ipmi.Config{Address: sim.Addr(), AttemptTimeout: 100 * time.Millisecond, Attempts: 2}); err == nil {
		t.Error("a dead BMC answers")
	}
	l.SetPower(false) // with the mains
	must(t, errors.Join(sim.Refresh(), sim.Revive()))
	reads(t, open(t, sim), driver.PowerOff)
}

func TestConfig(t *testing.T) {
	for key, spoil := range map[string]func(*ipmisim.Config){
		"Name":     func(c *ipmisim.Config) { c.Name = "a\nb" },
		"Dir":      func(c *ipmisim.Config) { c.Dir = "/tmp/a b" },
		"Listen":   func(c *ipmisim.Config) { c.Listen = netip.MustParseAddrPort("0.0.0.0:623") },
		"User":     func(c *ipmisim.Config) { c.User = "a\" b" },
		"Password": func(c *ipmisim.Config) { c.Password = strings.Repeat("x", 17) },
		"UUID":     func(c *ipmisim.Config) { c.UUID = "x" },
		"Backend":  func(c *ipmisim.Config) { c.Backend = nil },
	} {
		c := config(t, &lamp{})
		spoil(&c)
		if _, err := ipmisim.Start(c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
