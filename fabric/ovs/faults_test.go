package ovs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/fabric/ovssim"
	"rerack.dev/rerack/internal/fault"
)

func start(t *testing.T, cfg ovssim.Config) *ovssim.Switch {
	t.Helper()
	if cfg.Ports == nil {
		cfg.Ports = []ovssim.Port{{Name: "p1", Untagged: 1}, {Name: "p2", Untagged: 2}, {Name: "p3", Untagged: 3}, {Name: "uplink"}}
	}
	sim, err := ovssim.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	return sim
}

func open(t *testing.T, sim *ovssim.Switch, change ...func(*ovs.Config)) *ovs.Switch {
	t.Helper()
	cfg := ovs.Config{Endpoint: sim.Endpoint(), Bridge: "br0"}
	for _, c := range change {
		c(&cfg)
	}
	d, err := ovs.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func states(t *testing.T, sim *ovssim.Switch, ports ...string) []ovssim.PortState {
	t.Helper()
	var out []ovssim.PortState
	for _, p := range ports {
		s, ok := sim.Port(p)
		if !ok {
			t.Fatalf("no port %s", p)
		}
		out = append(out, s)
	}
	return out
}

// TestEveryRequestFails breaks each request of a change in each way. After it the switch is as before or
// as asked, never between, and the same change again converges.
func TestEveryRequestFails(t *testing.T) {
	change := driver.Change{Owner: "run", Settings: []driver.Setting{
		{Port: "p1", Shut: true, Epoch: 5}, {Port: "p2", Untagged: 20, Tagged: []int{30, 40}, Epoch: 5}, {Port: "p3", Untagged: 10, Epoch: 6}}}
	done := []ovssim.PortState{{Quarantined: true, Epoch: 5, Owner: "run"},
		{Untagged: 20, Tagged: []int{30, 40}, Epoch: 5, Owner: "run"}, {Untagged: 10, Epoch: 6, Owner: "run"}}
	for _, how := range []ovssim.Failure{ovssim.Refused, ovssim.LostTail, ovssim.Dropped} {
		t.Run(string(how), func(t *testing.T) {
			tried := 0
			for n := 1; ; n++ {
				sim := start(t, ovssim.Config{})
				drv := open(t, sim)
				before := states(t, sim, "p1", "p2", "p3")
				sim.SetFaults(func(f *ovssim.Faults) { f.FailAt = &ovssim.FailPoint{N: n, How: how} })
				_, err := drv.Apply(within(t, 20*time.Second), change)
				if sim.Faults().FailAt != nil { // there is no nth request
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				tried++
				if err == nil {
					t.Fatalf("request %d failed and nobody noticed", n)
				}
				if !fault.KindOf(err).Retryable() {
					t.Errorf("request %d: %v is of kind %s, which is not tried again", n, err, fault.KindOf(err))
				}
				if now := states(t, sim, "p1", "p2", "p3"); !reflect.DeepEqual(now, before) && !reflect.DeepEqual(now, done) {
					t.Errorf("request %d left the switch between old and new: %+v", n, now)
				}
				if _, err := drv.Apply(within(t, 20*time.Second), change); err != nil {
					t.Errorf("request %d: the change repeated: %v", n, err)
				}
				if now := states(t, sim, "p1", "p2", "p3"); !reflect.DeepEqual(now, done) {
					t.Errorf("request %d: the change repeated left %+v, want %+v", n, now, done)
				}
				sim.Close()
			}
			if tried < 3 { // read, write, read back
				t.Errorf("only %d requests were broken", tried)
			}
		})
	}
}

func TestSilentAndDeadSwitch(t *testing.T) {
	sim := start(t, ovssim.Config{})
	drv := open(t, sim)
	set := driver.Change{Settings: []driver.Setting{{Port: "p1", Shut: true, Epoch: 1}}}

	sim.SetFaults(func(f *ovssim.Faults) { f.Hang = true })
	if _, err := drv.Apply(within(t, 50*time.Millisecond), set); !fault.Is(err, fault.Timeout) {
		t.Errorf("hanging: %v, want a timeout", err)
	}
	sim.SetFaults(func(f *ovssim.Faults) { f.Hang = false })

	sim.Kill()
	if _, err := drv.Ports(within(t, 20*time.Second)); !fault.Is(err, fault.Unreachable) {
		t.Errorf("dead: %v, want unreachable", err)
	}
	if err := sim.Revive(); err != nil {
		t.Fatal(err)
	}
	if _, err := drv.Apply(within(t, 20*time.Second), set); err != nil {
		t.Errorf("revived: %v", err)
	}
}

// TestStalledDaemon: the database taking a fence is not the switch acting on it.
func TestStalledDaemon(t *testing.T) {
	sim := start(t, ovssim.Config{})
	drv := open(t, sim, func(c *ovs.Config) { c.Settle = 30 * time.Millisecond })
	set := driver.Change{Owner: "run", Settings: []driver.Setting{{Port: "p1", Shut: true, Epoch: 1}}}
	sim.SetFaults(func(f *ovssim.Faults) { f.Stalled = true })
	for range 2 { // the second time the database has it already
		if _, err := drv.Apply(within(t, 20*time.Second), set); !fault.Is(err, fault.Unverified) {
			t.Fatalf("apply: %v, want unverified", err)
		}
	}
	if _, err := drv.Ports(within(t, 20*time.Second)); !fault.Is(err, fault.Unverified) {
		t.Fatalf("ports: %v, want unverified", err)
	}
	if s := states(t, sim, "p1")[0]; s.Quarantined {
		t.Fatal("a stalled daemon shut the port")
	}
	sim.SetFaults(func(f *ovssim.Faults) { f.Stalled = false })
	if _, err := drv.Apply(within(t, 20*time.Second), set); err != nil {
		t.Fatal(err)
	}
	if s := states(t, sim, "p1")[0]; !s.Quarantined {
		t.Fatal("the port is not shut")
	}
}

// TestSomebodyElseWrites puts another writer between our read and our write.
func TestSomebodyElseWrites(t *testing.T) {
	set := driver.Change{Owner: "late", Settings: []driver.Setting{{Port: "p2", Untagged: 22, Epoch: 4}, {Port: "p1", Untagged: 10, Epoch: 4}}}
	for _, c := range []struct {
		name      string
		interfere func(*ovssim.Switch, *ovs.Switch)
		want      fault.Kind
		ok        bool
	}{
		{"a note of a stranger", func(s *ovssim.Switch, _ *ovs.Switch) { s.SetExternalID("p1", "who", "somebody") }, 0, true},
		{"an older run", func(_ *ovssim.Switch, d *ovs.Switch) { mustShut(t, d, "p1", 3) }, 0, true},
		{"a newer run", func(_ *ovssim.Switch, d *ovs.Switch) { mustShut(t, d, "p1", 9) }, fault.Stale, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			sim := start(t, ovssim.Config{})
			drv := open(t, sim)
			p2 := states(t, sim, "p2")
			sim.SetFaults(func(f *ovssim.Faults) { f.Interfere = func() { c.interfere(sim, drv) } })
			_, err := drv.Apply(within(t, 20*time.Second), set)
			switch {
			case c.ok && err != nil:
				t.Fatal(err)
			case !c.ok && !fault.Is(err, c.want):
				t.Fatalf("error %v, want %s", err, c.want)
			case !c.ok && !reflect.DeepEqual(states(t, sim, "p2"), p2):
				t.Error("the refused change changed another port")
			}
			if sim.Counters().Failed == 0 {
				t.Error("the first try was not refused by the database")
			}
		})
	}
}

// TestEndlessInterference: after one more try it is the caller's turn.
func TestEndlessInterference(t *testing.T) {
	sim := start(t, ovssim.Config{})
	before := states(t, sim, "p1")
	n := 0
	var disturb func()
	disturb = func() {
		n++
		sim.SetExternalID("p1", "n", fmt.Sprint(n))
		sim.SetFaults(func(f *ovssim.Faults) { f.Interfere = disturb })
	}
	sim.SetFaults(func(f *ovssim.Faults) { f.Interfere = disturb })
	_, err := open(t, sim).Apply(within(t, 20*time.Second), driver.Change{Settings: []driver.Setting{{Port: "p1", Shut: true, Epoch: 1}}})
	if !fault.Is(err, fault.Conflict) || n != 2 {
		t.Fatalf("error %v after %d tries, want a conflict after 2", err, n)
	}
	if !reflect.DeepEqual(states(t, sim, "p1"), before) {
		t.Fatal("a conflict changed the port")
	}
}

func mustShut(t *testing.T, d *ovs.Switch, port string, epoch uint64) {
	if _, err := d.Apply(context.WithoutCancel(t.Context()), driver.Change{Owner: "other", Settings: []driver.Setting{{Port: port, Shut: true, Epoch: epoch}}}); err != nil {
		t.Error(err)
	}
}

func TestWarnsOfLeakyQuarantine(t *testing.T) {
	var log bytes.Buffer
	sim := start(t, ovssim.Config{})
	drv := open(t, sim, func(c *ovs.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	mustShut(t, drv, "p1", 1)
	if got := log.String(); !strings.Contains(got, `ports="[uplink br0]"`) {
		t.Errorf("log: %q", got)
	}
}

func TestUnknownBridge(t *testing.T) {
	drv := open(t, start(t, ovssim.Config{}), func(c *ovs.Config) { c.Bridge = "br9" })
	if _, err := drv.Ports(within(t, 20*time.Second)); !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
}

func TestTrunkOfEverythingIsNotClosed(t *testing.T) {
	ports, err := open(t, start(t, ovssim.Config{})).Ports(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		if p.AllVLANs != (p.Name == "uplink") {
			t.Errorf("port %+v", p)
		}
	}
}

func TestTLS(t *testing.T) {
	cert, pool := selfSigned(t)
	sim := start(t, ovssim.Config{TLS: &tls.Config{Certificates: []tls.Certificate{cert}}})
	if !strings.HasPrefix(sim.Endpoint(), "ssl:") {
		t.Fatal(sim.Endpoint())
	}
	good := open(t, sim, func(c *ovs.Config) { c.TLS = &tls.Config{RootCAs: pool} })
	if _, err := good.Ports(within(t, 20*time.Second)); err != nil {
		t.Fatal(err)
	}
	bad := open(t, sim, func(c *ovs.Config) { c.TLS = &tls.Config{RootCAs: x509.NewCertPool()} })
	if _, err := bad.Ports(within(t, 20*time.Second)); !fault.Is(err, fault.Unauthorized) {
		t.Fatalf("with no root: %v", err)
	}
	if sim.Counters().Transactions != 1 {
		t.Error("something was asked of a switch that was not verified")
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg ovs.Config
		key string
	}{
		{ovs.Config{Bridge: "br0"}, "endpoint"},
		{ovs.Config{Endpoint: "http:1.2.3.4:80", Bridge: "br0"}, "endpoint"},
		{ovs.Config{Endpoint: "tcp:nowhere", Bridge: "br0"}, "endpoint"},
		{ovs.Config{Endpoint: "tcp::6640", Bridge: "br0"}, "endpoint"},
		{ovs.Config{Endpoint: "unix:", Bridge: "br0"}, "endpoint"},
		{ovs.Config{Endpoint: "unix:/run/db.sock"}, "bridge"},
		{ovs.Config{Endpoint: "unix:/run/db.sock", Bridge: "br0", QuarantineVLAN: 4095}, "quarantineVLAN"},
		{ovs.Config{Endpoint: "ssl:h:6640", Bridge: "br0"}, "tls"},
		{ovs.Config{Endpoint: "ssl:h:6640", Bridge: "br0", TLS: &tls.Config{InsecureSkipVerify: true}}, "tls"},
		{ovs.Config{Endpoint: "unix:/x", Bridge: "br0", Settle: -1}, "settle"},
		{ovs.Config{Endpoint: "unix:/x", Bridge: "br0", MaxBytes: -1}, "maxBytes"},
	} {
		if _, err := ovs.New(c.cfg); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.key) {
			t.Errorf("%+v: %v, want one about %s", c.cfg, err, c.key)
		}
	}
	for _, e := range []string{"tcp:[::1]:6640", "tcp:switch.example:6640", "unix:/run/openvswitch/db.sock"} {
		if _, err := ovs.New(ovs.Config{Endpoint: e, Bridge: "br0"}); err != nil {
			t.Errorf("%s: %v", e, err)
		}
	}
}
