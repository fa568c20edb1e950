package ovs_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	fabric "rerack.dev/rerack/fabric/driver"
	driver "rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/qemu/netstack"
	"rerack.dev/rerack/test/qemu/ovs"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// need looks for Open vSwitch, and in the end for what has been left open.
func need(t *testing.T) {
	t.Helper()
	qemutest.OpenVSwitch(t)
	t.Cleanup(func() {
		if n := tuns(t); n != 0 {
			t.Errorf("%d files keep a device or a namespace", n)
		}
	})
}

// patience is for a busy computer.
const patience = 30 * time.Second

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in time: " + what)
		}
	}
}

func start(t *testing.T, name string, ports ...ovs.PortConfig) (*ovs.Switch, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ovs-") // short enough for a socket
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	at := netip.MustParseAddrPort(l.Addr().String())
	must(t, l.Close())
	s, err := ovs.Start(t.Context(), ovs.Config{Name: name, Dir: dir, Bridge: "br0", Listen: at, Ports: ports})
	t.Cleanup(func() {
		if t.Failed() {
			for _, log := range []string{"ovsdb-server.log", "ovs-vswitchd.log"} {
				b, _ := os.ReadFile(filepath.Join(dir, log))
				t.Logf("%s %s:\n%s", name, log, b[max(0, len(b)-2000):])
			}
		}
		if s != nil {
			must(t, s.Close())
			gone(t, dir, at)
		}
		must(t, os.RemoveAll(dir))
	})
	must(t, err)
	for _, p := range ports {
		must(t, s.Port(p.Name).SetLink(true))
	}
	return s, dir
}

// gone looks for anything that a switch has left.
func gone(t *testing.T, dir string, at netip.AddrPort) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), dir) {
			t.Errorf("still there: %q", b)
		}
	}
	if c, err := net.Dial("tcp", at.String()); err == nil {
		c.Close()
		t.Error("the database still listens")
	}
}

// tuns counts this process's files that keep a device, and with it a namespace.
func tuns(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, f := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && (to == "/dev/net/tun" || strings.HasPrefix(to, "net:[")) {
			n++
		}
	}
	return n
}

// plug cables two plugs until the test ends.
func plug(t *testing.T, a, b ovs.Plug) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ovs.Cable(ctx, a, b) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

// host puts a computer with one address on a port. It says its name to who connects.
func host(t *testing.T, p *ovs.Port, n byte) *netstack.Host {
	t.Helper()
	sw := vswitch.New(nil)
	card, err := sw.Add("card", vswitch.Settings{Access: 1})
	must(t, err)
	cable, err := sw.Add("cable", vswitch.Settings{Access: 1})
	must(t, err)
	plug(t, cable, p)
	h, err := netstack.New(netstack.Config{Port: card, MAC: vswitch.MAC{2, 0, 0, 0, 1, n},
		Addresses: []netip.Prefix{netip.PrefixFrom(address(n).Addr(), 24)}})
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	l, err := h.Listen(address(n))
	must(t, err)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(c, "host %d", n)
			_ = c.Close()
		}
	}()
	return h
}

func address(n byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 7, 0, n}), 80)
}

// talks has a host connect to another and read who it is.
func talks(t *testing.T, from *netstack.Host, to byte, limit time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := from.Dial(ctx, address(to))
	if err != nil {
		return false
	}
	defer c.Close()
	must(t, c.SetReadDeadline(time.Now().Add(limit)))
	b, err := io.ReadAll(c)
	if want := fmt.Sprintf("host %d", to); err == nil && string(b) != want {
		t.Errorf("%q answers, not %q", b, want)
	}
	return err == nil
}

// silence is how long nothing must come: the next packet of a handshake is sent after one second.
const silence = 1500 * time.Millisecond

// TestAWorkloadMoves has the product's driver set VLANs on three real switches, and looks at real packets: who
// is on a network reaches who is on it too, at every place, and nobody else.
func TestAWorkloadMoves(t *testing.T) {
	need(t)
	core, _ := start(t, "core", ovs.PortConfig{Name: "p1", Tagged: []int{10, 20}}, ovs.PortConfig{Name: "p2", Tagged: []int{10, 20}})
	a, _ := start(t, "a", ovs.PortConfig{Name: "up1", Tagged: []int{10, 20}}, ovs.PortConfig{Name: "p1", Untagged: 10}, ovs.PortConfig{Name: "p2", Untagged: 20})
	b, _ := start(t, "b", ovs.PortConfig{Name: "up1", Tagged: []int{10, 20}}, ovs.PortConfig{Name: "p1", Untagged: 1})
	plug(t, a.Port("up1"), core.Port("p1"))
	plug(t, b.Port("up1"), core.Port("p2"))
	web, app, spare := host(t, a.Port("p1"), 1), host(t, a.Port("p2"), 2), host(t, b.Port("p1"), 3)

	set := func(s *ovs.Switch, settings ...fabric.Setting) {
		t.Helper()
		d, err := driver.New(driver.Config{Endpoint: s.Endpoint(), Bridge: "br0"})
		must(t, err)
		defer d.Close()
		_, err = d.Apply(t.Context(), fabric.Change{Owner: "r/1", Settings: settings})
		must(t, err)
	}
	never := func(why string, from *netstack.Host, to byte) {
		t.Helper()
		if talks(t, from, to, silence) {
			t.Errorf("%s: it reaches host %d", why, to)
		}
	}
	reach := func(why string, from *netstack.Host, to byte) {
		t.Helper()
		eventually(t, why, func() bool { return talks(t, from, to, silence) })
	}
	never("web and app are on networks of their own", web, 2)
	never("the spare is on none", spare, 1)

	set(b, fabric.Setting{Port: "p1", Untagged: 20, Epoch: 2})
	reach("app's network goes over two uplinks", spare, 2)
	never("web's is another", spare, 1)

	set(b, fabric.Setting{Port: "p1", Untagged: 10, Epoch: 3})
	reach("the spare moves to web's network", spare, 1)
	never("the spare has left app's", spare, 2)

	set(a, fabric.Setting{Port: "p1", Shut: true, Epoch: 3})
	never("web is fenced", spare, 1)
	never("web is fenced", web, 3)

	b.Kill()
	set(a, fabric.Setting{Port: "p1", Untagged: 10, Epoch: 4})
	never("a switch without power passes nothing", web, 3)
	must(t, b.Revive(t.Context()))
	reach("what was set is kept over a power cut", web, 3)
	never("app's network is still another", app, 3)

	must(t, core.Port("p2").SetLink(false))
	eventually(t, "the driver sees the carrier", func() bool {
		d, err := driver.New(driver.Config{Endpoint: core.Endpoint(), Bridge: "br0"})
		must(t, err)
		defer d.Close()
		ports, err := d.Ports(t.Context())
		must(t, err)
		for _, p := range ports {
			if p.Name == "p2" {
				return p.Link == fabric.LinkDown
			}
		}
		return false
	})
}

func TestAPortIsTaken(t *testing.T) {
	need(t)
	s, _ := start(t, "s", ovs.PortConfig{Name: "p1"})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	for range 2 {
		near, far := net.Pipe()
		defer far.Close()
		go func() { ended <- s.Port("p1").Serve(ctx, near) }()
	}
	if err := <-ended; !fault.Is(err, fault.Busy) {
		t.Errorf("two are plugged in: %v", err)
	}
	cancel()
	must(t, <-ended)
}

func TestConfig(t *testing.T) {
	for key, spoil := range map[string]func(*ovs.Config){
		"Name":     func(c *ovs.Config) { c.Name = "" },
		"Dir":      func(c *ovs.Config) { c.Dir = strings.Repeat("x", 100) },
		"Bridge":   func(c *ovs.Config) { c.Bridge = "-br" },
		"Listen":   func(c *ovs.Config) { c.Listen = netip.MustParseAddrPort("0.0.0.0:6640") },
		"Ports[0]": func(c *ovs.Config) { c.Ports = []ovs.PortConfig{{Name: "Ethernet1/1"}} },
		"Ports[1]": func(c *ovs.Config) { c.Ports = []ovs.PortConfig{{Name: "p1"}, {Name: "p1"}} },
		"VLANs":    func(c *ovs.Config) { c.Ports = []ovs.PortConfig{{Name: "p1", Tagged: []int{5000}}} },
		"external": func(c *ovs.Config) {
			c.Ports = []ovs.PortConfig{{Name: "p1", ExternalIDs: map[string]string{"a": "--"}}}
		},
	} {
		c := ovs.Config{Name: "s", Dir: "/tmp/x", Bridge: "br0", Listen: netip.MustParseAddrPort("127.0.0.1:6640")}
		spoil(&c)
		if _, err := ovs.Start(t.Context(), c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
