package world_test

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/world"
)

// small is two racks with two machines each, a top-of-rack switch per rack under one core switch, two
// fabrics and one array. Every machine is the home of one workload on VLAN 10 and 20 with an FC and an
// iSCSI volume; w-b2 is repurposable.
func small() *topology.Topology {
	t := topology.New()
	t.Sites["s"] = topology.Site{}
	t.PowerFeeds["f1"] = topology.PowerFeed{}
	t.PowerFeeds["f2"] = topology.PowerFeed{}
	for i, vlan := range []int{10, 20} {
		t.Networks[fmt.Sprintf("n%d", vlan)] = topology.Network{Spec: topology.NetworkSpec{Site: "s", VLAN: vlan,
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)}}
	}
	t.Switches["core"] = topology.Switch{Spec: topology.SwitchSpec{Site: "s"}}
	t.Fabrics["fa"] = topology.Fabric{Spec: topology.FabricSpec{Site: "s"}}
	t.Fabrics["fb"] = topology.Fabric{Spec: topology.FabricSpec{Site: "s"}}
	t.Arrays["arr"] = topology.Array{Spec: topology.ArraySpec{Site: "s", Targets: []topology.ArrayTarget{
		{WWPN: "50:00:00:00:00:00:00:0a", Fabric: "fa"}, {WWPN: "50:00:00:00:00:00:00:0b", Fabric: "fb"}}}}
	for i, r := range []string{"a", "b"} {
		t.Racks["rack-"+r] = topology.Rack{Spec: topology.RackSpec{Site: "s", Feeds: []string{"f1", "f2"}[i : i+1]}}
		tor := "tor-" + r
		t.Switches[tor] = topology.Switch{Spec: topology.SwitchSpec{Rack: "rack-" + r,
			Uplinks: []topology.Uplink{{Port: "up", Switch: "core", PeerPort: "down-" + r}}}}
		for j := 1; j <= 2; j++ {
			m, w := fmt.Sprintf("%s%d", r, j), fmt.Sprintf("w-%s%d", r, j)
			t.Machines[m] = topology.Machine{Spec: topology.MachineSpec{Rack: "rack-" + r,
				NICs:           []topology.NIC{{Name: "eth0", MAC: topology.MAC(fmt.Sprintf("52:54:00:00:0%d:0%d", i, j)), Switch: tor, Port: fmt.Sprintf("p%d", j)}},
				HBAs:           []topology.HBA{{Name: "hba0", WWPN: wwpn(m), Fabric: "fa"}},
				StorageAddress: netip.MustParseAddr(addr(m))}}
			t.Volumes["fc-"+m] = topology.Volume{Spec: topology.VolumeSpec{Array: "arr", Protocol: topology.FC, ArrayRef: "/vol/" + m}}
			t.Volumes["is-"+m] = topology.Volume{Spec: topology.VolumeSpec{Array: "arr", Protocol: topology.ISCSI, Target: topology.IQN("iqn.2026-01.org.example:" + m)}}
			t.Workloads[w] = topology.Workload{Spec: topology.WorkloadSpec{Home: m, Repurposable: m == "b2",
				Networks: []topology.Attachment{{Network: "n10"}, {Network: "n20"}},
				Volumes:  []topology.VolumeUse{{Volume: "fc-" + m}, {Volume: "is-" + m}}}}
		}
	}
	return t
}

func wwpn(m string) topology.WWPN {
	return topology.WWPN(fmt.Sprintf("20:00:00:00:00:00:%02x:0%c", m[0]-'a'+1, m[1]))
}
func addr(m string) string { return fmt.Sprintf("10.9.%d.%c", m[0]-'a', m[1]) }

// running is small with every machine on, wired and serving its workload at epoch 1.
func running(t testing.TB) *world.World {
	t.Helper()
	var tick atomic.Int64
	w, err := world.New(world.Config{Topology: small(), KeepLog: 4, Now: func() time.Time {
		return time.Unix(tick.Add(1), 0)
	}})
	must(t, err)
	var zones []world.Zone
	for _, m := range []string{"a1", "a2", "b1", "b2"} {
		must(t, w.SetPort("tor-"+m[:1], "p"+m[1:], world.Port{Untagged: 10, Tagged: []int{20}, Epoch: 1}))
		mask(t, w, m, 1, m)
		zones = append(zones, zone(m, 1, m))
		must(t, w.Press(m, true, "test"))
		must(t, w.Start(life(t, w, m), "", "w-"+m, 1))
		must(t, w.Serve(life(t, w, m), "", true))
	}
	must(t, w.SetZones("fa", zones))
	clean(t, w)
	return w
}

func zone(volume string, epoch uint64, machines ...string) world.Zone {
	z := world.Zone{Name: "vol-fc-" + volume, Epoch: epoch, Members: []string{"50:00:00:00:00:00:00:0a"}}
	for _, m := range machines {
		z.Members = append(z.Members, string(wwpn(m)))
	}
	return z
}

// mask lets exactly these machines in to both volumes that m's workload has.
func mask(t testing.TB, w *world.World, m string, epoch uint64, machines ...string) {
	t.Helper()
	fc, is := world.Mask{Epoch: epoch}, world.Mask{Epoch: epoch}
	for _, o := range machines {
		fc.Initiators = append(fc.Initiators, string(wwpn(o)))
		is.Initiators = append(is.Initiators, addr(o))
	}
	must(t, w.SetMask("arr", "/vol/"+m, fc))
	must(t, w.SetMask("arr", "iqn.2026-01.org.example:"+m, is))
}

func life(t testing.TB, w *world.World, m string) world.Life {
	t.Helper()
	l, ok := w.Life(m)
	if !ok {
		t.Fatalf("machine %s is off", m)
	}
	return l
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func clean(t testing.TB, w *world.World) {
	t.Helper()
	for _, v := range w.Check() {
		t.Errorf("unexpected violation: %+v", v)
	}
}

func TestReachAndCanWriteFollowEveryLink(t *testing.T) {
	for name, c := range map[string]struct {
		cut                func(*testing.T, *world.World)
		v10, v20, fc, iscs bool
	}{
		"untouched":        {func(*testing.T, *world.World) {}, true, true, true, true},
		"machine off":      {func(t *testing.T, w *world.World) { must(t, w.Halt("a1")) }, false, false, false, false},
		"port shut":        {port(world.Port{Untagged: 10, Tagged: []int{20}, Shut: true}), false, false, true, false},
		"vlan gone":        {port(world.Port{Untagged: 10}), true, false, true, true},
		"port carries 0":   {port(world.Port{}), false, false, true, false},
		"trunk":            {port(world.Port{Trunk: true}), true, true, true, true},
		"far end shut":     {far(world.Port{Trunk: true, Shut: true}), false, false, true, false},
		"far end one vlan": {far(world.Port{Untagged: 20}), false, true, true, true},
		"tor dead":         {burn("switch/tor-a"), false, false, true, false},
		"core dead":        {burn("switch/core"), false, false, true, false},
		"array dead":       {burn("array/arr"), true, true, false, false},
		"feed dead":        {burn("powerfeed/f1"), false, false, false, false},
		"rack dead":        {burn("rack-a"), false, false, false, false},
		"other rack dead":  {burn("rack/rack-b"), true, true, true, true},
		"site dead":        {burn("site/s"), false, false, false, false},
		"management cut":   {func(t *testing.T, w *world.World) { must(t, w.SetManagement("rack-a", false)) }, true, true, true, true},
		"unmasked":         {func(t *testing.T, w *world.World) { mask(t, w, "a1", 2) }, true, true, false, false},
		"unzoned":          {func(t *testing.T, w *world.World) { must(t, w.SetZones("fa", nil)) }, true, true, false, true},
		"unmasked, session lives": {func(t *testing.T, w *world.World) {
			must(t, w.SetSession("arr", "iqn.2026-01.org.example:a1", addr("a1"), true))
			mask(t, w, "a1", 2)
		}, true, true, false, true},
		"unmasked, session ended": {func(t *testing.T, w *world.World) {
			must(t, w.SetSession("arr", "iqn.2026-01.org.example:a1", addr("a1"), true))
			mask(t, w, "a1", 2)
			must(t, w.SetSession("arr", "iqn.2026-01.org.example:a1", addr("a1"), false))
		}, true, true, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := running(t)
			c.cut(t, w)
			got := []bool{w.Reach("a1", 10), w.Reach("a1", 20), w.CanWrite("a1", "fc-a1"), w.CanWrite("a1", "is-a1")}
			if want := []bool{c.v10, c.v20, c.fc, c.iscs}; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("vlan 10, vlan 20, FC, iSCSI: got %v, want %v", got, want)
			}
		})
	}
}

func port(p world.Port) func(*testing.T, *world.World) {
	return func(t *testing.T, w *world.World) { must(t, w.SetPort("tor-a", "p1", p)) }
}

func far(p world.Port) func(*testing.T, *world.World) {
	return func(t *testing.T, w *world.World) { must(t, w.SetPort("core", "down-a", p)) }
}

func burn(domain string) func(*testing.T, *world.World) {
	return func(t *testing.T, w *world.World) { must(t, w.Burn(domain)) }
}

func TestBurnAndRestore(t *testing.T) {
	w := running(t)
	must(t, w.SetRestore("a2", world.RestoreOff))
	must(t, w.Burn("rack-a"))
	for _, m := range []string{"a1", "a2"} {
		if p := w.Power(m); p.On || p.Mains || p.Reachable {
			t.Errorf("%s after the fire: %+v", m, p)
		}
		if err := w.Press(m, true, "test"); err == nil {
			t.Errorf("%s took a press without mains", m)
		}
	}
	if w.Carrier("core", "down-a") || w.Carrier("tor-a", "p1") || !w.Carrier("core", "down-b") || !w.Carrier("tor-b", "p1") {
		t.Error("carrier does not follow power")
	}
	if alive, reachable := w.SwitchState("tor-a"); alive || reachable {
		t.Error("tor-a outlived its rack")
	}
	if l := w.Logins("fa"); fmt.Sprint(l) != fmt.Sprintf("[%s %s 50:00:00:00:00:00:00:0a]", wwpn("b1"), wwpn("b2")) {
		t.Errorf("logins %v", l)
	}
	if h := w.Holders("w-a1"); len(h) != 0 {
		t.Errorf("a dead machine still runs %v", h)
	}
	must(t, w.RestorePower("rack-a"))
	if p := w.Power("a1"); !p.On || p.Boot != 2 {
		t.Errorf("a1 was on and shall be on again: %+v", p)
	}
	if p := w.Power("a2"); p.On || !p.Mains {
		t.Errorf("a2 shall stay off: %+v", p)
	}
	if p, _ := w.PortState("tor-a", "p1"); p.Untagged != 10 {
		t.Errorf("the switch lost its configuration: %+v", p)
	}
	clean(t, w)
}

func TestAMachineOnTwoFeedsOutlivesOne(t *testing.T) {
	topo := small()
	rack := topo.Racks["rack-a"]
	rack.Spec.Feeds = []string{"f1", "f2"}
	topo.Racks["rack-a"] = rack
	w, err := world.New(world.Config{Topology: topo, Now: time.Now})
	must(t, err)
	must(t, w.Press("a1", true, "test"))
	must(t, w.Burn("powerfeed/f1"))
	if !w.Power("a1").On {
		t.Error("a1 died with one of two feeds")
	}
	must(t, w.Burn("powerfeed/f2"))
	if w.Power("a1").On {
		t.Error("a1 lives without a feed")
	}
}

func TestHalfBurnLies(t *testing.T) {
	w := running(t)
	must(t, w.HalfBurn("rack-a", "a1"))
	if p := w.Power("a1"); !p.On || p.Reported || !p.Reachable {
		t.Errorf("a1 runs and its BMC says off: %+v", p)
	}
	must(t, w.Press("a2", true, "test"))
	if p := w.Power("a2"); p.On || p.Reported || !p.Reachable {
		t.Errorf("a2 has no power supply left: %+v", p)
	}
	if err := w.HalfBurn("rack-a", "b1"); err == nil {
		t.Error("b1 does not stand in rack-a")
	}
	clean(t, w)
}

func TestALifeEndsWithThePower(t *testing.T) {
	w := running(t)
	old := life(t, w, "a1")
	must(t, w.Press("a1", false, "person"))
	must(t, w.Press("a1", true, "person"))
	if err := w.Start(old, "", "w-a1", 1); err == nil {
		t.Error("a run of the former life started")
	}
	if n := len(w.Holders("w-a1")); n != 0 {
		t.Errorf("%d holders", n)
	}
}

func TestWriteLog(t *testing.T) {
	w := running(t)
	for range 20 {
		must(t, w.Write(life(t, w, "a1"), "", "fc-a1", "w-a1", 1))
	}
	if err := w.Write(life(t, w, "a2"), "", "fc-a1", "w-a1", 1); err == nil {
		t.Error("a2 is not masked for fc-a1")
	}
	log, totals := w.Log("fc-a1")
	if len(log) != 4 || len(totals) != 1 || totals[0].Writes != 20 || totals[0].Machines[0] != "a1" {
		t.Errorf("log %v, totals %+v", log, totals)
	}
	clean(t, w)
}
