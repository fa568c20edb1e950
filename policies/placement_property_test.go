package policies

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"rerack.dev/rerack/orchestrator/topology"
)

// drawPlacement makes a small data centre in which everything is short and every rule bites.
func drawPlacement(t *rapid.T) PlacementInput {
	s := newSite()
	in := PlacementInput{Topology: s.Topology, Running: map[string]Where{}, Unusable: map[string]string{}, Hosts: map[string]HostRoom{},
		BootHosts: rapid.IntRange(0, 4).Draw(t, "boot hosts") > 0, HostReserveMiB: 2048}
	types := []string{s.hardware(4, 16), s.hardware(8, 32), s.hardware(16, 64)}
	bios := s.HardwareTypes[types[0]]
	bios.Spec.Firmware, bios.Spec.Hypervisor = []topology.Firmware{topology.BIOS}, false
	s.HardwareTypes[types[0]] = bios
	groups := []string{"", "", "", "g1", "g2"}
	scopes := []string{"", "machine", "rack", "powerfeed"}
	for i := range rapid.IntRange(0, 8).Draw(t, "machines") {
		name := fmt.Sprintf("m%d", i)
		use := rapid.SampledFrom([]string{"spares", "spares", "spares", "production", "production", "never", ""}).Draw(t, "use")
		s.machine(name, fmt.Sprintf("r%d", rapid.IntRange(0, 2).Draw(t, "rack")), rapid.SampledFrom(types).Draw(t, "type"), use)
		if rapid.IntRange(0, 3).Draw(t, "labelled") == 0 {
			s.Machines[name].Meta.Labels["gpu"] = "yes"
		}
		mach := s.Machines[name]
		for _, f := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"fab-a", "fab-b", "fab-c"}), rapid.ID[string]).Draw(t, "fabrics") {
			mach.Spec.HBAs = append(mach.Spec.HBAs, topology.HBA{Name: f, Fabric: f})
		}
		switch rapid.IntRange(0, 9).Draw(t, "lacks") {
		case 0:
			mach.Spec.StorageAddress = netip.Addr{}
		case 1:
			mach.Spec.Provisioning = topology.Attachment{}
		}
		s.Machines[name] = mach
		switch rapid.IntRange(0, 7).Draw(t, "state") {
		case 0:
			in.Unusable[name] = "BMC silent"
		case 1:
			in.Hosts[name] = HostRoom{FreeCPUs: rapid.IntRange(0, 8).Draw(t, "free cpus"), FreeMemory: int64(rapid.IntRange(0, 32).Draw(t, "free GiB")) << 10}
		case 2, 3, 4:
			victim := "v" + name
			s.workload(victim, rapid.IntRange(0, 4).Draw(t, "victim"), 1, 1, func(w *topology.WorkloadSpec) {
				w.Repurposable = rapid.IntRange(0, 3).Draw(t, "repurposable") > 0
				w.SpreadGroup = rapid.SampledFrom(groups).Draw(t, "victim group")
			})
			in.Running[victim] = Where{Machine: name, VM: rapid.IntRange(0, 9).Draw(t, "vm") == 0}
		case 5:
			m := s.Machines[name]
			m.Spec.Maintenance = true
			s.Machines[name] = m
		}
	}
	for _, r := range sortedKeys(s.Racks) {
		rack := s.Racks[r]
		rack.Spec.Feeds = rapid.SliceOfDistinct(rapid.SampledFrom([]string{"f1", "f2", "f3"}), rapid.ID[string]).Draw(t, "feeds")
		if rapid.IntRange(0, 5).Draw(t, "other site") == 0 {
			rack.Spec.Site = "s2"
		}
		s.Racks[r] = rack
	}
	for i := range rapid.IntRange(0, 10).Draw(t, "workloads") {
		name := fmt.Sprintf("w%d", i)
		s.workload(name, rapid.IntRange(0, 5).Draw(t, "priority"), rapid.SampledFrom([]int{1, 2, 3, 6, 12}).Draw(t, "cpus"),
			rapid.SampledFrom([]int{1, 4, 9, 14, 30}).Draw(t, "memory"), func(w *topology.WorkloadSpec) {
				w.RunsOn = rapid.SampledFrom([]topology.RunsOn{topology.Any, topology.Any, topology.Physical, topology.Virtual}).Draw(t, "runs on")
				w.SpreadGroup = rapid.SampledFrom(groups).Draw(t, "group")
				w.SpreadScope = rapid.SampledFrom(scopes).Draw(t, "scope")
				w.Firmware = rapid.SampledFrom([]topology.Firmware{"", "", topology.UEFI}).Draw(t, "firmware")
				w.Image = rapid.SampledFrom([]string{"any", "any", "any", "bios-only"}).Draw(t, "image")
				w.Networks[0].Network = rapid.SampledFrom([]string{"n1", "n1", "n1", "n1", "n2"}).Draw(t, "network")
				if v := rapid.SampledFrom([]string{"", "", "", "", "on-ip", "on-ip2", "on-fc", "on-fc2"}).Draw(t, "volume"); v != "" {
					w.Volumes = []topology.VolumeUse{{Volume: v}}
				}
				if rapid.IntRange(0, 5).Draw(t, "gpu") == 0 {
					w.Requires = map[string]string{"gpu": "yes"}
				}
			})
		in.Pending = append(in.Pending, name)
	}
	return in
}

func TestPlaceProperties(t *testing.T) {
	var placed, left, evicted, hosts int
	rapid.Check(t, func(t *rapid.T) {
		in := drawPlacement(t)
		p := Place(in)
		if wrong := auditPlacement(in, p); len(wrong) > 0 {
			t.Fatalf("%q\n%+v", wrong, p)
		}
		placed, left, evicted, hosts = placed+len(p.Assignments), left+len(p.LeftOut), evicted+len(p.Evictions), hosts+len(p.NewHosts)

		again := in
		again.Pending = slices.Clone(in.Pending)
		slices.Reverse(again.Pending)
		again.Topology = &topology.Topology{Images: in.Topology.Images, Arrays: in.Topology.Arrays, Volumes: in.Topology.Volumes, Sites: in.Topology.Sites, Racks: maps.Clone(in.Topology.Racks), HardwareTypes: in.Topology.HardwareTypes,
			Machines: maps.Clone(in.Topology.Machines), MachinePools: in.Topology.MachinePools, Switches: in.Topology.Switches,
			Networks: in.Topology.Networks, Workloads: maps.Clone(in.Topology.Workloads)}
		if q := Place(again); !reflect.DeepEqual(p, q) {
			t.Fatalf("the order of the input matters:\n%+v\n%+v", p, q)
		}
	})
	if placed == 0 || left == 0 || evicted == 0 || hosts == 0 {
		t.Errorf("%d placed, %d left out, %d evicted, %d hosts: the properties were not tried on all of it", placed, left, evicted, hosts)
	}
}

// The auditor itself has to notice what it is there for.
func TestAuditNotices(t *testing.T) {
	good := story()
	p := Place(good)
	if wrong := auditPlacement(good, p); len(wrong) > 0 {
		t.Fatalf("%q", wrong)
	}
	for name, spoil := range map[string]func(*Placement){
		"nothing placed": func(p *Placement) {
			for _, a := range p.Assignments {
				p.LeftOut = append(p.LeftOut, LeftOut{a.Workload, "x", "1"})
			}
			*p = Placement{LeftOut: p.LeftOut}
		},
		"eviction forgotten":  func(p *Placement) { p.Evictions = nil },
		"host forgotten":      func(p *Placement) { p.NewHosts = nil },
		"workload forgotten":  func(p *Placement) { p.Assignments = p.Assignments[1:] },
		"burned machine used": func(p *Placement) { p.Assignments[0].Machine = "a00" },
		"all on one host": func(p *Placement) {
			for i := range p.Assignments {
				p.Assignments[i].Where = Where{p.NewHosts[0].Machine, true}
			}
		},
		"important left out": func(p *Placement) {
			p.LeftOut = append(p.LeftOut, LeftOut{"work-19", "machines", "1"})
			p.Assignments = slices.DeleteFunc(p.Assignments, func(a Assignment) bool { return a.Workload == "work-19" })
		},
	} {
		bad := Place(good)
		spoil(&bad)
		if len(auditPlacement(good, bad)) == 0 {
			t.Errorf("%s goes unnoticed", name)
		}
	}
}
