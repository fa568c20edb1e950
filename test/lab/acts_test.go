package lab_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	bmcdriver "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/redfish"
	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/lab"
)

// bmcOf is the product's way to a machine's BMC: address, login and pinned certificate from the lab's
// own topology and secrets.
func bmcOf(t testing.TB, l *lab.Lab, machine string) *bmc.Client {
	t.Helper()
	fleet, err := bmc.NewFleet(bmc.Config{
		Openers: map[bmc.Protocol]bmc.Opener{bmc.Redfish: redfish.Opener{}},
		Credentials: func(_ context.Context, ref string) (bmc.Credential, error) {
			c := l.Secrets()[ref]
			return bmc.Credential{User: c.Username, Password: bmc.NewSecret(c.Password)}, nil
		}, CallTimeout: 5 * time.Second, BreakerThreshold: 1000})
	must(t, err)
	t.Cleanup(func() { _ = fleet.Close(context.Background()) }) // its BMCs may be dead by then
	m := l.Topology().Machines[machine].Spec
	return fleet.Client(bmc.Endpoint{Machine: machine, Address: m.BMC.Address, Protocol: bmc.Redfish, CredentialRef: m.BMC.Credentials,
		Fingerprint: m.BMC.Fingerprint, ExpectUUID: m.UUID, ExpectSerial: m.Serial})
}

func switchOf(t testing.TB, l *lab.Lab, name string) *ovs.Switch {
	t.Helper()
	s, err := ovs.New(ovs.Config{Endpoint: l.Topology().Switches[name].Spec.Address, Bridge: "br0"})
	must(t, err)
	return s
}

func TestTheBMCControlsItsMachine(t *testing.T) {
	l := start(t, story(t), nil)
	c, ctx := bmcOf(t, l, "b01"), t.Context()
	read := func(want bmcdriver.PowerState) {
		t.Helper()
		if r, err := c.Power(ctx); err != nil || r.State != want {
			t.Errorf("power %v, %v; want %s", r.State, err, want)
		}
	}
	must(t, c.VerifyIdentity(ctx))
	read(bmcdriver.PowerOff)
	_, _, err := c.EnsureBoot(ctx, bmcdriver.BootOverride{Device: bmcdriver.BootPXE, Once: true})
	must(t, err)
	must(t, c.SetPower(ctx, bmcdriver.On))
	read(bmcdriver.PowerOn)
	if !l.World().Power("b01").On {
		t.Error("the machine is off")
	}
	eventually(t, "the override is used up", func() bool {
		b, err := c.Boot(ctx)
		return err == nil && b.Device == bmcdriver.BootDefault
	})
	must(t, c.SetPowerRestore(ctx, true))
	must(t, l.CutManagement("rack-b"))
	if r, err := c.Power(ctx); err == nil || !l.World().Power("b01").On {
		t.Errorf("without management: %v, %v", r, err)
	}
	must(t, l.RestoreManagement("rack-b"))
	read(bmcdriver.PowerOn)
	must(t, l.Burn("rack-b"))
	if _, err := c.Power(ctx); err == nil {
		t.Error("the BMC outlived its rack")
	}
	must(t, l.RestorePower("rack-b"))
	read(bmcdriver.PowerOff)
	if n := l.Counters()["bmc/b01"]["press.on"]; n != 1 {
		t.Errorf("%d presses", n)
	}
	clean(t, l)
}

func TestHalfBurnedMachinesRunOn(t *testing.T) {
	l := start(t, story(t), nil)
	eventually(t, "a01 and a02 serve", func() bool { return serves(l, "db1") && serves(l, "db2") })
	must(t, l.HalfBurn("rack-a", "a01"))
	for _, m := range []string{"a01", "a02"} {
		if r, err := bmcOf(t, l, m).Power(t.Context()); err != nil || r.State != bmcdriver.PowerOff {
			t.Errorf("BMC of %s says %v, %v", m, r.State, err)
		}
	}
	if !serves(l, "db1") || serves(l, "db2") {
		t.Error("db1 runs on, db2 does not")
	}
	clean(t, l)
}

func serves(l *lab.Lab, workload string) bool {
	h := l.World().Holders(workload)
	return len(h) == 1 && h[0].Serving
}

func TestSwitchesShowTheWorldAndChangeIt(t *testing.T) {
	l := start(t, story(t), nil)
	eventually(t, "db1 and edge2 serve", func() bool { return serves(l, "db1") && serves(l, "edge2") })
	tor, core, ctx := switchOf(t, l, "tor-a"), switchOf(t, l, "spine1"), t.Context()
	nic := l.Topology().Machines["a01"].Spec.NICs[0]
	link := func(s *ovs.Switch, port string) driver.LinkState {
		t.Helper()
		ports, err := s.Ports(ctx)
		must(t, err)
		for _, p := range ports {
			if p.Name == port {
				return p.Link
			}
		}
		return "no such port"
	}
	if got := link(tor, nic.Port); got != driver.LinkUp {
		t.Errorf("link of a01: %q", got)
	}
	if status := probe(t, l, "10.1.30.11:80"); status != 200 {
		t.Errorf("db1 answers %d", status)
	}
	_, err := tor.Apply(ctx, driver.Change{Owner: "test", Settings: []driver.Setting{{Port: nic.Port, Shut: true, Epoch: 2}}})
	must(t, err)
	if status := probe(t, l, "10.1.30.11:80"); status != 0 {
		t.Errorf("db1 answers %d behind a shut port", status)
	}
	_, err = tor.Apply(ctx, driver.Change{Owner: "late", Settings: []driver.Setting{{Port: nic.Port, Untagged: 130, Epoch: 1}}})
	if !fault.Is(err, fault.Stale) {
		t.Errorf("a stale change: %v", err)
	}
	v := l.CheckInvariants().Violations
	if len(v) != 1 || v[0].Rule != "S3" || v[0].Subject != "machine a01" {
		t.Errorf("shutting the port of a workload that is needed: %+v", v)
	}
	_, err = tor.Apply(ctx, driver.Change{Owner: "test", Settings: []driver.Setting{{Port: "foreign1", Untagged: 7, Epoch: 3}}})
	must(t, err)
	if v := l.CheckInvariants().Violations; len(v) != 2 || v[1].Rule != "S6" {
		t.Errorf("touching a foreign port: %+v", v)
	}
	must(t, l.Burn("rack-a"))
	if got := link(core, "p1"); got != driver.LinkDown {
		t.Errorf("the spine sees %q towards the dead rack", got)
	}
	if _, err := tor.Ports(ctx); !fault.Is(err, fault.Unreachable) {
		t.Errorf("the dead switch: %v", err)
	}
	must(t, l.RestorePower("rack-a"))
	if got := link(core, "p1"); got != driver.LinkUp {
		t.Errorf("the spine sees %q towards the rack that is back", got)
	}
	eventually(t, "edge2 is back", func() bool { return serves(l, "edge2") })
	if status := probe(t, l, "10.1.30.11:80"); status != 0 {
		t.Error("the fence of a01 did not outlive the power cut")
	}
}

func TestMachineFaults(t *testing.T) {
	topo, dir := story(t), t.TempDir()
	onProvisioning(topo, "b01", "app")
	l := start(t, topo, func(c *lab.Config) { c.Dir = dir })
	p := serveBoot(t, l, dir)
	p.boots(t, l, "b01", string(topo.Machines["b01"].Spec.NICs[0].MAC), "10.1.20.200/24", "linux-x86", 2)
	for _, c := range []struct{ fault, phase string }{{"no-boot", "post"}, {"panic", "panic"}, {"no-phone-home", "running"}} {
		must(t, l.Fault("machine", "b01", c.fault, ""))
		must(t, l.Power("b01", true))
		eventually(t, c.fault+" ends in "+c.phase, func() bool { return phase(l, "b01") == c.phase })
		must(t, l.Power("b01", false))
		must(t, l.ClearFault("machine", "b01", c.fault))
	}
	for _, k := range p.ledger.Kinds("b01") {
		if k.String() == "phone-home" {
			t.Error("a machine that cannot phone home did")
		}
	}
	must(t, l.Power("b01", true))
	eventually(t, "it runs without faults", func() bool { return phase(l, "b01") == "running" })
	for _, bad := range [][4]string{{"machine", "b01", "gravity", ""}, {"machine", "x", "panic", ""}, {"bmc", "b01", "delay", "soon"},
		{"toaster", "b01", "hang", ""}, {"switch", "x", "hang", ""}, {"switch", "tor-a", "gravity", ""}} {
		if err := l.Fault(bad[0], bad[1], bad[2], bad[3]); err == nil {
			t.Errorf("fault %v was taken", bad)
		}
	}
}

func TestControlSocketDrivesTheLab(t *testing.T) {
	l := start(t, story(t), nil)
	path := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.ServeControl(ctx, path) }()
	c := lab.Dial(path)
	defer func() { must(t, c.Close()) }()
	eventually(t, "the socket answers", func() bool { _, err := c.Status(ctx); return err == nil })
	must(t, c.Burn(ctx, "rack-a"))
	must(t, c.Fault(ctx, "switch", "tor-b", "refuse", "3"))
	must(t, c.ClearFault(ctx, "switch", "tor-b", ""))
	must(t, c.Power(ctx, "b01", true))
	must(t, c.CutManagement(ctx, "rack-b"))
	must(t, c.RestoreManagement(ctx, "rack/rack-b"))
	must(t, c.Attest(ctx, "b03"))
	s, err := c.Status(ctx)
	must(t, err)
	if s.NoMains != 20 || len(s.Machines) != 30 {
		t.Errorf("%d of %d machines without mains", s.NoMains, len(s.Machines))
	}
	must(t, c.RestorePower(ctx, "rack-a"))
	must(t, c.HalfBurn(ctx, "rack-a", "a01", "a02"))
	r, err := c.CheckInvariants(ctx)
	must(t, err)
	if len(r.Violations) != 0 || r.Machines != 30 {
		t.Errorf("%+v", r)
	}
	n, err := c.Counters(ctx)
	must(t, err)
	if n["machine/b01"]["press-on"] != 1 {
		t.Errorf("counters of b01: %v", n["machine/b01"])
	}
	if err := c.Burn(ctx, "rack-z"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "rack-z") {
		t.Errorf("burning a rack that is not there: %v", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v", info, err)
	}
	cancel()
	must(t, <-done)
	if err := c.Burn(context.Background(), "rack-b"); !fault.Is(err, fault.Unreachable) {
		t.Errorf("a lab that is gone: %v", err)
	}
}

func TestWhatStartLeavesInItsDirectory(t *testing.T) {
	dir := t.TempDir()
	l := start(t, story(t), func(c *lab.Config) { c.Dir = dir })
	raw, err := os.ReadFile(filepath.Join(dir, "secrets.json"))
	must(t, err)
	var secrets map[string]lab.Credential
	must(t, json.Unmarshal(raw, &secrets))
	if secrets["bmc"].Password == "" || secrets["bmc"] != l.Secrets()["bmc"] {
		t.Errorf("secrets %d", len(secrets))
	}
	for _, f := range []string{"secrets.json", "ca.pem", "topology/lab.yaml"} {
		if info, err := os.Stat(filepath.Join(dir, f)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info, err)
		}
	}
	written, err := topology.LoadFS(os.DirFS(dir), "topology")
	must(t, err)
	if !topology.Equal(written, l.Topology()) {
		t.Error("the written topology is not the lab's")
	}
	if topology.Equal(written, story(t)) {
		t.Error("no address was rewritten")
	}
}

func TestStartRefuses(t *testing.T) {
	for name, c := range map[string]lab.Config{
		"no topology":  {Dir: t.TempDir()},
		"no directory": {Topology: topology.New()},
		"tiny images":  {Topology: topology.New(), Dir: t.TempDir(), ImageBytes: 5},
		"negative":     {Topology: topology.New(), Dir: t.TempDir(), Post: -1},
	} {
		if l, err := lab.Start(t.Context(), c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
}
