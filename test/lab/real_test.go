package lab_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	bmcdriver "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/lab"
	"rerack.dev/rerack/test/qemu/qemutest"
)

// small is the example whose machines can be real.
func small(t testing.TB) *topology.Topology {
	t.Helper()
	topo, err := topology.LoadFS(os.DirFS("../../examples"), "real")
	must(t, err)
	return topo
}

func TestTheRealExampleCanBeSimulated(t *testing.T) {
	l := start(t, small(t), nil)
	eventually(t, "web1 serves", func() bool { return l.Status().Serving == 1 })
	if status := probe(t, l, "10.2.10.11:80"); status != 200 {
		t.Errorf("web1 answers %d", status)
	}
	clean(t, l)
}

// TestARealMachineFollowsTheWorld starts the installed system of a machine in QEMU, and closes and opens its
// port at the switch with the product's driver.
func TestARealMachineFollowsTheWorld(t *testing.T) {
	t.Run("simulated switches", func(t *testing.T) { followsTheWorld(t, "") })
	t.Run("Open vSwitch", func(t *testing.T) {
		qemutest.OpenVSwitch(t)
		followsTheWorld(t, lab.SwitchesOVS)
	})
}

func followsTheWorld(t *testing.T, switches string) {
	t.Helper()
	qemutest.QEMU(t)
	qemutest.IPMISim(t)
	src := qemutest.Sources(t)
	dir := t.TempDir()
	l := start(t, small(t), func(c *lab.Config) {
		c.Dir = dir
		c.QEMU = &lab.QEMU{Kernel: []string{filepath.Dir(filepath.Dir(src.Kernel))}, Loaders: qemutest.Loaders(t), HTTP: netip.MustParseAddrPort("127.0.0.1:9"), Switches: switches}
	})
	defer func() {
		if t.Failed() {
			said, _ := os.ReadFile(filepath.Join(dir, "qemu", "a01.console"))
			t.Logf("console of a01:\n%s", said)
		}
	}()
	eventually(t, "web1 serves", func() bool { return l.Status().Serving == 1 })
	h := l.World().Holders("web1")
	if len(h) != 1 || h[0].Machine != "a01" || h[0].Epoch != 1 {
		t.Errorf("holders of web1: %+v", h)
	}
	const at = "10.2.10.11:80"
	if status := probe(t, l, at); status != 200 {
		t.Errorf("web1 answers %d", status)
	}
	tor := switchOf(t, l, "tor-a")
	for _, c := range []struct {
		set  driver.Setting
		want bool
	}{{driver.Setting{Port: "p1", Shut: true, Epoch: 2}, false}, {driver.Setting{Port: "p1", Untagged: 120, Epoch: 3}, false},
		{driver.Setting{Port: "p1", Untagged: 110, Epoch: 4}, true}} {
		_, err := tor.Apply(t.Context(), driver.Change{Owner: "r/1", Settings: []driver.Setting{c.set}})
		must(t, err)
		// The world learns of a real switch when it looks next; packets are blocked or not at once.
		reached := func() bool { return probe(t, l, at) == 200 }
		if c.want {
			eventually(t, "web1 is reached", reached)
		} else if reached() {
			t.Errorf("with the port at %+v web1 answers", c.set)
		}
	}
	if err := l.Fault("machine", "a01", "panic", ""); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a fault that real machines have not: %v", err)
	}
	a01 := ipmiOf(t, l, "a01")
	if r, err := a01.Power(t.Context()); err != nil || r.State != bmcdriver.PowerOn || r.Source != "ipmi" {
		t.Errorf("ipmi_sim says %+v, %v", r, err)
	}
	must(t, a01.SetPower(t.Context(), bmcdriver.Off))
	eventually(t, "ipmi_sim says off", func() bool {
		r, err := a01.Power(t.Context())
		must(t, err)
		return r.State == bmcdriver.PowerOff
	})
	if h := l.World().Holders("web1"); len(h) != 0 {
		t.Errorf("ipmi_sim says off, and web1 has %+v", h)
	}
	must(t, a01.SetPower(t.Context(), bmcdriver.On))
	eventually(t, "web1 is back", func() bool { return l.Status().Serving == 1 })
	if err := l.Fault("bmc", "a01", "hang", ""); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a fault that ipmi_sim has not: %v", err)
	}
	must(t, l.Burn("rack-a"))
	if r, err := a01.Power(t.Context()); err == nil {
		t.Errorf("a BMC without mains says %+v", r)
	}
	eventually(t, "web1 is gone", func() bool { return len(l.World().Holders("web1")) == 0 })
	if status := probe(t, l, at); status == 200 {
		t.Error("web1 answers from the ashes")
	}
	must(t, l.RestorePower("rack-a"))
	eventually(t, "the old system is back", func() bool { return l.Status().Serving == 1 })
}

// ipmiOf is the product's driver for a machine's ipmi_sim.
func ipmiOf(t *testing.T, l *lab.Lab, machine string) bmcdriver.BMC {
	t.Helper()
	at := l.Topology().Machines[machine].Spec.BMC
	if at.Protocol != string(bmc.IPMI) {
		t.Fatalf("the BMC of %s is %+v", machine, at)
	}
	c := l.Secrets()[at.Credentials]
	var d bmcdriver.BMC
	eventually(t, "ipmi_sim answers", func() (ok bool) {
		var err error
		d, err = ipmi.Opener{Config: ipmi.Config{AttemptTimeout: 500 * time.Millisecond}}.Open(t.Context(), bmc.Endpoint{Address: at.Address},
			bmc.Credential{User: c.Username, Password: bmc.NewSecret(c.Password)})
		return err == nil
	})
	t.Cleanup(func() { _ = d.Close(context.Background()) }) // its BMC may be gone
	return d
}

func TestQEMUConfig(t *testing.T) {
	for key, q := range map[string]lab.QEMU{
		"QEMU.Kernel":  {Loaders: "/x", HTTP: netip.MustParseAddrPort("127.0.0.1:1")},
		"QEMU.Loaders": {Kernel: []string{"/"}, HTTP: netip.MustParseAddrPort("127.0.0.1:1")},
		"QEMU.HTTP":    {Kernel: []string{"/"}, Loaders: "/x"},
	} {
		_, err := lab.Start(t.Context(), lab.Config{Topology: small(t), Dir: t.TempDir(), QEMU: &q})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
