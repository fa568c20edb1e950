// Package sitetest is a small site for tests on real machines: a switch, machines in QEMU, the product's boot
// server, and an array.
package sitetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/dhcp"
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

// Patience is for an emulated machine on a busy one.
const Patience = time.Minute

// VLAN is the machines' first one, where the boot server is.
const VLAN = 10

// Site is a switch with a host of ours on one VLAN.
type Site struct {
	t      testing.TB
	Switch *vswitch.Switch
	Host   *netstack.Host
	Self   netip.Addr // of Host
	ports  map[string]*vswitch.Port
}

// New makes a site, which is there until the test ends.
func New(t testing.TB) *Site {
	s := &Site{t: t, ports: map[string]*vswitch.Port{}, Switch: vswitch.New(nil), Self: netip.MustParseAddr("10.1.255.254")}
	p, err := s.Switch.Add("server", vswitch.Settings{Access: VLAN})
	must(t, err)
	s.Host, err = netstack.New(netstack.Config{Port: p, MAC: vswitch.MAC{2, 0, 0, 0, 0, 1}, Addresses: []netip.Prefix{netip.PrefixFrom(s.Self, 16)}})
	must(t, err)
	t.Cleanup(func() { must(t, s.Host.Close()) })
	return s
}

// port is the one of a machine, which has been on before or not.
func (s *Site) port(name string, set vswitch.Settings) *vswitch.Port {
	s.t.Helper()
	if p := s.ports[name]; p != nil {
		must(s.t, p.Set(set))
		return p
	}
	p, err := s.Switch.Add(name, set)
	must(s.t, err)
	s.ports[name] = p
	return p
}

// Running is a machine that a test turned on.
type Running struct {
	Port    *vswitch.Port
	Console string          // file
	Off     func()          // cuts its power; can be repeated
	Ended   <-chan struct{} // closed when it is off
	lines   chan string
}

// On turns a machine on; i is its number at the boot server.
func (s *Site) On(i int, firmware machine.Firmware, b machine.Boot, disks ...string) *Running {
	s.t.Helper()
	memory := map[machine.Firmware]int64{machine.BIOS: 128, machine.UEFI: 256}[firmware]
	return s.Start(i, b, vswitch.Settings{Access: VLAN}, machine.Config{MemoryMiB: memory, Firmware: firmware, Disks: disks})
}

// Start turns on a machine that is made so, with one network card in a port that is set so.
func (s *Site) Start(i int, b machine.Boot, port vswitch.Settings, c machine.Config) *Running {
	t := s.t
	t.Helper()
	mac := pxetest.MAC(i)
	dir := t.TempDir()
	p := s.port(mac.String(), port)
	ended := make(chan struct{})
	r := &Running{Port: p, Console: filepath.Join(dir, "console"), lines: make(chan string, 4096), Ended: ended}
	c.Name, c.QEMU, c.Dir, c.Console, c.Serial = fmt.Sprint("m", i), qemutest.Emulator(t, c.Arch), dir, r.Console, "RR-1"
	c.NICs = []machine.NIC{{MAC: net.HardwareAddr(mac[:]), Port: p}}
	c.OnLine = func(l string) {
		select {
		case r.lines <- l:
		default: // the test looks for what it waits for, and this is more than any boot says
		}
	}
	m, err := machine.New(c)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(ended)
		if err := m.Run(ctx, b); err != nil {
			t.Error(err)
		}
	}()
	r.Off = func() {
		cancel()
		<-ended
	}
	t.Cleanup(func() {
		r.Off()
		if t.Failed() {
			said, _ := os.ReadFile(r.Console)
			t.Logf("the end of the console:\n%s", said[max(0, len(said)-4000):])
		}
	})
	return r
}

// Says waits for a line on the console.
func (s *Site) Says(r *Running, want string) {
	s.t.Helper()
	late := time.After(Patience)
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

// Ask fetches the page of a workload over the switch.
func (s *Site) Ask(addr string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Second)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, a string) (net.Conn, error) {
		return s.Host.Dial(ctx, netip.MustParseAddrPort(a))
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

// Signed adds shim and GRUBs to the boot server's loaders.
func Signed(t testing.TB, names ...string) func(*bootserver.Config) {
	paths := qemutest.SignedLoaders(t, names...)
	return func(c *bootserver.Config) {
		for name, path := range paths {
			b, err := os.ReadFile(path)
			must(t, err)
			c.Loaders[name], err = c.Images.Import(t.Context(), name, bytes.NewReader(b), "")
			must(t, err)
		}
	}
}

// Serve runs the product's boot server on the site's host, with iPXE and the test system for files.
func (s *Site) Serve(also ...func(*bootserver.Config)) *pxetest.Site {
	t := s.t
	t.Helper()
	loaders := qemutest.Loaders(t)
	packets := func(port uint16) net.PacketConn {
		c, err := s.Host.ListenPacket(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
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
		l, err := s.Host.Listen(netip.AddrPortFrom(s.Self, 80))
		must(t, err)
		c.DHCP = []dhcp.Listener{{Name: "vlan", Conn: packets(67), ServerID: s.Self, Subnets: []netip.Prefix{netip.PrefixFrom(s.Self, 16).Masked()}}}
		c.TFTPConn, c.ListenPacket, c.HTTPListener, c.BaseURL = packets(69), s.Host.ListenPacketName, l, "http://"+s.Self.String()
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
