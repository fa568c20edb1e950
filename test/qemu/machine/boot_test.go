package machine_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/netstack"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience is for an emulated machine on a busy one.
const patience = time.Minute

const vlan = 10

// site is a switch with a host of ours on one VLAN.
type site struct {
	t    *testing.T
	sw   *vswitch.Switch
	host *netstack.Host
	self netip.Addr
}

func newSite(t *testing.T) *site {
	s := &site{t: t, sw: vswitch.New(nil), self: netip.MustParseAddr("10.1.255.254")}
	p, err := s.sw.Add("server", vswitch.Settings{Access: vlan})
	must(t, err)
	s.host, err = netstack.New(netstack.Config{Port: p, MAC: vswitch.MAC{2, 0, 0, 0, 0, 1}, Addresses: []netip.Prefix{netip.PrefixFrom(s.self, 16)}})
	must(t, err)
	t.Cleanup(func() { must(t, s.host.Close()) })
	return s
}

// running is a machine that a test turned on.
type running struct {
	port    *vswitch.Port
	console string
	lines   chan string
	off     func()
	ended   chan error
}

// on turns a machine on; i is its number at the boot server.
func (s *site) on(i int, firmware machine.Firmware, b machine.Boot, disks ...string) *running {
	t := s.t
	t.Helper()
	mac := pxetest.MAC(i)
	dir := t.TempDir()
	p, err := s.sw.Add(mac.String(), vswitch.Settings{Access: vlan})
	must(t, err)
	r := &running{port: p, console: filepath.Join(dir, "console"), lines: make(chan string, 4096), ended: make(chan error, 1)}
	m, err := machine.New(machine.Config{Name: "m" + string(rune('0'+i)), QEMU: qemutest.QEMU(t), Dir: dir, Console: r.console,
		MemoryMiB: map[machine.Firmware]int64{machine.BIOS: 128, machine.UEFI: 256}[firmware], Firmware: firmware, Serial: "RR-1", Disks: disks,
		NICs: []machine.NIC{{MAC: net.HardwareAddr(mac[:]), Port: p}},
		OnLine: func(l string) {
			select {
			case r.lines <- l:
			default: // the test looks for what it waits for, and this is more than any boot says
			}
		}})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { r.ended <- m.Run(ctx, b) }()
	r.off = sync.OnceFunc(func() {
		cancel()
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		r.off()
		if t.Failed() {
			said, _ := os.ReadFile(r.console)
			t.Logf("the end of the console:\n%s", said[max(0, len(said)-4000):])
		}
	})
	return r
}

// says waits for a line on the console.
func (s *site) says(r *running, want string) {
	s.t.Helper()
	late := time.After(patience)
	for {
		select {
		case l := <-r.lines:
			if strings.Contains(l, want) {
				return
			}
		case <-late:
			s.t.Fatalf("the machine does not say %q", want)
		}
	}
}

// ask fetches the page of a workload over the switch.
func (s *site) ask(addr string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Second)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, a string) (net.Conn, error) {
		return s.host.Dial(ctx, netip.MustParseAddrPort(a))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	must(s.t, err)
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// system writes the test system into files.
func system(t *testing.T) (kernel, initrd string) {
	t.Helper()
	k, i, err := image.Build(qemutest.Sources(t))
	must(t, err)
	dir := t.TempDir()
	kernel, initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	must(t, errors.Join(os.WriteFile(kernel, k, 0o600), os.WriteFile(initrd, i, 0o600)))
	return kernel, initrd
}

const quietly = "console=ttyS0 quiet no_timer_check tsc=reliable "

func TestAnInstalledSystemOnItsVLAN(t *testing.T) {
	s := newSite(t)
	kernel, initrd := system(t)
	r := s.on(1, machine.BIOS, machine.Boot{Device: machine.Disk, Kernel: &machine.Kernel{Path: kernel, Initrd: initrd,
		Cmdline: quietly + "rerack.workload=web1 rerack.epoch=7 lab.address=10.1.0.1/255.255.0.0"}})
	s.says(r, "rerack: start workload=web1 epoch=7")
	s.says(r, "rerack: serving")
	page, err := s.ask("10.1.0.1:80")
	if err != nil || !strings.Contains(page, `"workload":"web1","epoch":7,"address":"10.1.0.1"`) {
		t.Fatalf("%q, %v", page, err)
	}
	must(t, r.port.Set(vswitch.Settings{Access: vlan + 1}))
	if page, err := s.ask("10.1.0.1:80"); err == nil {
		t.Errorf("it answers from another VLAN: %q", page)
	}
	must(t, r.port.Set(vswitch.Settings{Access: vlan, Shut: true}))
	if _, err := s.ask("10.1.0.1:80"); err == nil {
		t.Error("it answers from a shut port")
	}
	must(t, r.port.Set(vswitch.Settings{Access: vlan}))
	if _, err := s.ask("10.1.0.1:80"); err != nil {
		t.Errorf("back on its VLAN: %v", err)
	}
	r.off()
	if r.port.Link() {
		t.Error("the port of a machine without power has a link")
	}
	if _, err := s.ask("10.1.0.1:80"); err == nil {
		t.Error("it answers without power")
	}
}

// TestNetworkBoot has real firmware boot a real kernel from the product's boot server.
func TestNetworkBoot(t *testing.T) {
	for i, c := range []struct {
		firmware machine.Firmware
		device   machine.Device
		tftp     bool
	}{{machine.BIOS, machine.Network, false}, {machine.UEFI, machine.Network, true}, {machine.UEFI, machine.HTTP, false}} {
		t.Run(string(c.firmware)+" "+string(c.device), func(t *testing.T) {
			s := newSite(t)
			boot := s.serve()
			in := boot.Intent(i+1, boot.KernelBoot())
			in.Boot.Kernel.Params = []ipxe.Param{{Key: "console", Value: "ttyS0"}, {Key: "quiet"}, {Key: "no_timer_check"},
				{Key: "tsc", Value: "reliable"}, {Key: "rerack.workload", Value: "web1"}, {Key: "rerack.epoch", Value: "3"}}
			in.NICs[0].Gateway = s.self
			boot.Set(in)
			begin := time.Now()
			s.on(i+1, c.firmware, machine.Boot{Device: c.device})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := boot.Ledger.Wait(ctx, in.Machine, pxe.KindHealthy); err != nil {
				t.Fatalf("%v; it reached %v", err, boot.Ledger.Kinds(in.Machine))
			}
			t.Logf("power-on to healthy: %s", time.Since(begin).Round(time.Millisecond))
			kinds := boot.Ledger.Kinds(in.Machine)
			for _, k := range []pxe.Kind{pxe.KindDHCP, pxe.KindBootFile, pxe.KindScript, pxe.KindKernel, pxe.KindPhoneHome} {
				if !slices.Contains(kinds, k) {
					t.Errorf("no %s: it reached %v", k, kinds)
				}
			}
			if sent := boot.Server.Stats().TFTP.Done; (sent > 0) != c.tftp {
				t.Errorf("%d files by TFTP", sent)
			}
			addr := in.NICs[0].Address.Addr().String()
			if page, err := s.ask(addr + ":80"); err != nil || !strings.Contains(page, `"workload":"web1","epoch":3,"address":"`+addr+`"`) {
				t.Errorf("%q, %v", page, err)
			}
		})
	}
}

// serve runs the product's boot server on the site's host, with iPXE and the test system for files.
func (s *site) serve(also ...func(*bootserver.Config)) *pxetest.Site {
	t := s.t
	t.Helper()
	loaders := qemutest.Loaders(t)
	packets := func(port uint16) net.PacketConn {
		c, err := s.host.ListenPacket(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		must(t, err)
		return c
	}
	boot := pxetest.Start(t, nil, func(c *bootserver.Config) {
		must(t, errors.Join(c.DHCP[0].Conn.Close(), c.TFTPConn.Close(), c.HTTPListener.Close()))
		for _, name := range []string{"undionly.kpxe", "snponly.efi"} {
			b, err := os.ReadFile(filepath.Join(loaders, name))
			must(t, err)
			c.Loaders[name], err = c.Images.Import(t.Context(), name, bytes.NewReader(b), "")
			must(t, err)
		}
		l, err := s.host.Listen(netip.AddrPortFrom(s.self, 80))
		must(t, err)
		c.DHCP = []dhcp.Listener{{Name: "vlan", Conn: packets(67), ServerID: s.self, Subnets: []netip.Prefix{netip.PrefixFrom(s.self, 16).Masked()}}}
		c.TFTPConn, c.ListenPacket, c.HTTPListener, c.BaseURL = packets(69), s.host.ListenPacketName, l, "http://"+s.self.String()
		for _, f := range also {
			f(c)
		}
	})
	kernel, initrd, err := image.Build(qemutest.Sources(t))
	must(t, err)
	boot.Kernel, err = boot.Images.Import(t.Context(), "vmlinuz", bytes.NewReader(kernel), "")
	must(t, err)
	boot.Initrd, err = boot.Images.Import(t.Context(), "initrd", bytes.NewReader(initrd), "")
	must(t, err)
	return boot
}

func TestARunThatFailsSaysWhy(t *testing.T) {
	dir := t.TempDir()
	m, err := machine.New(machine.Config{Name: "m", QEMU: qemutest.QEMU(t), Dir: dir, Console: filepath.Join(dir, "console"), MemoryMiB: 128,
		Disks: []string{filepath.Join(dir, "no, such, disk")}})
	must(t, err)
	if err := m.Run(t.Context(), machine.Boot{Device: machine.Disk}); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "no, such, disk") {
		t.Errorf("a missing disk: %v", err)
	}
	if err := m.Run(t.Context(), machine.Boot{Device: machine.HTTP}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("HTTP boot by BIOS: %v", err)
	}
}

func TestConfig(t *testing.T) {
	p, err := vswitch.New(nil).Add("p", vswitch.Settings{})
	must(t, err)
	for key, spoil := range map[string]func(*machine.Config){
		"Name":      func(c *machine.Config) { c.Name = "a,b" },
		"Dir":       func(c *machine.Config) { c.Dir = "" },
		"Firmware":  func(c *machine.Config) { c.Firmware = "openfirmware" },
		"MemoryMiB": func(c *machine.Config) { c.MemoryMiB = 32 },
		"CPUs":      func(c *machine.Config) { c.CPUs = -1 },
		"UUID":      func(c *machine.Config) { c.UUID = "x" },
		"Serial":    func(c *machine.Config) { c.Serial = "a,file=/etc/passwd" },
		"NICs[0]":   func(c *machine.Config) { c.NICs = []machine.NIC{{Port: p}} },
	} {
		c := machine.Config{Name: "m", Dir: t.TempDir(), Console: "console", MemoryMiB: 128}
		spoil(&c)
		if _, err := machine.New(c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
