package topology_test

import (
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
)

func base(t testing.TB) *topology.Topology {
	t.Helper()
	text, err := os.ReadFile("testdata/base.yaml")
	if err != nil {
		t.Fatal(err)
	}
	top, err := topology.Load([]topology.File{{Name: "base.yaml", Data: text}})
	if err != nil {
		t.Fatal(err)
	}
	return top
}

func TestDomain(t *testing.T) {
	top := base(t).Clone()
	a := top.Arrays["ip"]
	a.Spec.Rack = "r1"
	top.Arrays["ip"] = a
	for name, want := range map[string]topology.Domain{
		"site/hall":        {Kind: "site", Object: "hall", Site: "hall", Racks: []string{"r1"}, Machines: []string{"m1", "m2"}, Switches: []string{"core", "tor"}, Arrays: []string{"fc", "ip"}},
		"site/annex":       {Kind: "site", Object: "annex", Site: "annex", Racks: []string{"r2"}},
		"rack/r1":          {Kind: "rack", Object: "r1", Site: "hall", Racks: []string{"r1"}, Machines: []string{"m1", "m2"}, Switches: []string{"tor"}, Arrays: []string{"ip"}},
		"powerfeed/feed-1": {Kind: "powerfeed", Object: "feed-1", Site: "hall", Racks: []string{"r1"}, Machines: []string{"m1", "m2"}, Switches: []string{"tor"}, Arrays: []string{"ip"}},
		"switch/tor":       {Kind: "switch", Object: "tor", Site: "hall", Switches: []string{"tor"}, Machines: []string{"m1", "m2"}},
		"switch/core":      {Kind: "switch", Object: "core", Site: "hall", Switches: []string{"core"}},
		"machine/m1":       {Kind: "machine", Object: "m1", Site: "hall", Machines: []string{"m1"}},
	} {
		want.Name = name
		got, err := top.Domain(name)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\ngot  %+v (%v)\nwant %+v", name, got, err, want)
		}
	}
	for name, want := range map[string]string{
		"rack/r3": `there is no Rack "r3" (did you mean "r1"?)`,
		"rak/r1":  `"rak" is no kind of failure domain (did you mean "rack"?)`,
		"r1":      `"r1" is not a failure domain (kind/name, e.g. rack/rack-a)`,
		"":        `"" is not a failure domain (kind/name, e.g. rack/rack-a)`,
	} {
		if _, err := top.Domain(name); err == nil || err.Error() != want {
			t.Errorf("%q\ngot  %v\nwant %s", name, err, want)
		}
	}
	if got := strings.Join(top.Domains(), " "); got != "site/annex site/hall powerfeed/feed-1 rack/r1 rack/r2 switch/core switch/tor" {
		t.Errorf("the domains are %s", got)
	}
}

// TestDomainRedundancy checks that a second feed or a second switch keeps a machine out of a domain.
func TestDomainRedundancy(t *testing.T) {
	top := base(t).Clone()
	top.PowerFeeds["feed-2"] = topology.PowerFeed{Kind: topology.KindPowerFeed, Meta: topology.Meta{Name: "feed-2"}, Spec: topology.PowerFeedSpec{Site: "hall"}}
	r := top.Racks["r1"]
	r.Spec.Feeds = []string{"feed-1", "feed-2"}
	top.Racks["r1"] = r
	m := top.Machines["m1"]
	m.Spec.NICs = append(m.Spec.NICs, topology.NIC{Name: "eth1", MAC: "52:54:00:00:01:01", Switch: "core", Port: "c9"})
	top.Machines["m1"] = m
	if err := topology.Validate(top); err != nil {
		t.Fatal(err)
	}
	feed, _ := top.Domain("powerfeed/feed-1")
	sw, _ := top.Domain("switch/tor")
	if len(feed.Machines) != 0 || !slices.Equal(sw.Machines, []string{"m2"}) {
		t.Errorf("feed %v, switch %v", feed.Machines, sw.Machines)
	}
	want := []topology.Port{{Switch: "tor", Port: "p1"}, {Switch: "core", Port: "c9"}}
	if got := top.SwitchPortsOf("m1"); !slices.Equal(got, want) {
		t.Errorf("the ports of m1 are %v", got)
	}
	if got := top.MachinesByPort("tor"); !reflect.DeepEqual(got, map[string]string{"p1": "m1", "p2": "m2"}) {
		t.Errorf("the machines of tor are %v", got)
	}
	if got := top.MachineAtPort(want[1]); got != "m1" {
		t.Errorf("at c9 is %q", got)
	}
}

func TestPools(t *testing.T) {
	top := base(t).Clone()
	pool := func(name string, use topology.PoolUse, selector map[string]string) {
		top.MachinePools[name] = topology.MachinePool{Kind: topology.KindMachinePool, Meta: topology.Meta{Name: name},
			Spec: topology.MachinePoolSpec{Selector: selector, Use: use}}
	}
	pool("everything", topology.UseSpare, nil) // an empty selector selects nothing
	pool("strict", topology.UseProduction, map[string]string{"tier": "gold"})
	pool("other", topology.UseNone, map[string]string{"tier": "gold", "gpu": "yes"})
	for machine, want := range map[string]struct {
		pools []string
		use   topology.PoolUse
	}{
		"m1": {[]string{"gold", "strict"}, topology.UseProduction}, // spare and production: the stricter
		"m2": {nil, topology.UseProduction},                        // in no pool
		"m9": {nil, topology.UseNone},                              // no such machine
	} {
		if got := top.PoolsOf(machine); !slices.Equal(got, want.pools) || top.UseOf(machine) != want.use {
			t.Errorf("%s: pools %v, use %s, want %v", machine, got, top.UseOf(machine), want)
		}
	}
	if w, ok := top.WorkloadAtHome("m1"); w != "db" || !ok {
		t.Errorf("at home on m1 is %q", w)
	}
	if w, ok := top.WorkloadAtHome("m9"); ok {
		t.Errorf("at home on m9 is %q", w)
	}
	if top.SiteOf("m1") != "hall" || top.SiteOfSwitch("tor") != "hall" || top.SiteOfSwitch("core") != "hall" {
		t.Error("a site is wrong")
	}
}

func TestFits(t *testing.T) {
	type edit func(*topology.WorkloadSpec, *topology.MachineSpec, *topology.HardwareTypeSpec)
	for name, c := range map[string]struct {
		edit     edit
		physical string // constraints, in order
		virtual  string
	}{
		"as it is": {func(*topology.WorkloadSpec, *topology.MachineSpec, *topology.HardwareTypeSpec) {}, "", ""},
		"physical": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.RunsOn = topology.Physical
		}, "", "runsOn"},
		"virtual": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.RunsOn = topology.Virtual
		}, "runsOn", ""},
		"arch": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.Arch = topology.ARM64
		}, "arch", "arch"},
		"firmware": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.Firmware = topology.BIOS
		}, "firmware", ""},
		"Secure Boot": {func(_ *topology.WorkloadSpec, _ *topology.MachineSpec, h *topology.HardwareTypeSpec) {
			h.SecureBoot = true
		}, "", ""},
		"Secure Boot from a disk": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, h *topology.HardwareTypeSpec) {
			w.Image, h.SecureBoot = "disk", true
		}, "secureBoot", ""}, // as a virtual machine its firmware is another
		"cpus": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) { w.CPUs = 17 }, "cpus", "cpus"},
		"memory": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.MemoryMiB = 65537
		}, "memory", "memory"},
		"reserve": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.MemoryMiB = 65536
		}, "", "memory"},
		"labels": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.Requires = map[string]string{"tier": "tin"}
		}, "labels", "labels"},
		"labels met": {func(w *topology.WorkloadSpec, _ *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.Requires = map[string]string{"tier": "gold"}
		}, "", ""},
		"network": {func(_ *topology.WorkloadSpec, m *topology.MachineSpec, _ *topology.HardwareTypeSpec) { m.Rack = "r2" }, "network", "network"},
		"fabric": {func(_ *topology.WorkloadSpec, m *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			m.HBAs[0].Fabric = "fab-b"
		}, "volume", "volume"},
		"iscsi": {func(w *topology.WorkloadSpec, m *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.Volumes[0].Volume = "app"
			m.StorageAddress = netip.Addr{}
		}, "volume", "volume"},
		"hypervisor": {func(_ *topology.WorkloadSpec, _ *topology.MachineSpec, h *topology.HardwareTypeSpec) {
			h.Hypervisor = false
		}, "", "hypervisor"},
		"provision": {func(_ *topology.WorkloadSpec, m *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			m.Provisioning = topology.Attachment{}
		}, "", "provisioning"},
		"maintenance": {func(_ *topology.WorkloadSpec, m *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			m.Maintenance = true
		}, "maintenance", "maintenance"},
		"several": {func(w *topology.WorkloadSpec, m *topology.MachineSpec, _ *topology.HardwareTypeSpec) {
			w.CPUs, m.HBAs, m.Maintenance = 99, nil, true
		},
			"cpus volume maintenance", "cpus volume maintenance"},
	} {
		t.Run(name, func(t *testing.T) {
			top := base(t).Clone()
			w, m, h := top.Workloads["db"], top.Machines["m1"], top.HardwareTypes["big"]
			c.edit(&w.Spec, &m.Spec, &h.Spec)
			top.Workloads["db"], top.Machines["m1"], top.HardwareTypes["big"] = w, m, h
			check := func(kind, want string, got []topology.Unfit) {
				names := make([]string, len(got))
				for i, u := range got {
					names[i] = string(u.Constraint)
					if u.Reason == "" {
						t.Errorf("%s: %s has no reason", kind, u.Constraint)
					}
				}
				if s := strings.Join(names, " "); s != want {
					t.Errorf("%s: %q, want %q (%v)", kind, s, want, got)
				}
			}
			check("physical", c.physical, top.Fits("db", "m1"))
			check("virtual", c.virtual, top.FitsVM("db", "m1", 2048))
		})
	}
	top := base(t).Clone()
	for _, pair := range [][2]string{{"x", "m1"}, {"db", "x"}} {
		if got := top.Fits(pair[0], pair[1]); len(got) != 1 || got[0].Constraint != topology.ConstraintUnknown {
			t.Errorf("%v: %v", pair, got)
		}
	}
	if got := top.Fits("db", "m2"); len(got) != 1 || got[0].Reason != "volume db is on fabric fab-a, where the machine has no HBA" {
		t.Errorf("db on m2: %v", got)
	}
}

// TestQueriesAtOnce checks under -race that first queries may come from many places.
func TestQueriesAtOnce(t *testing.T) {
	top := base(t).Clone()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := top.Domain("rack/r1"); err != nil || top.Fits("db", "m1") != nil {
				t.Error("a query fails")
			}
		})
	}
	wg.Wait()
}
