package placementbench

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// instance is what the generator made: machines in classes, workloads in groups, both with counts.
type instance struct {
	Classes []struct {
		Rack  int      `json:"rack"`
		Arch  string   `json:"arch"`
		Cores int      `json:"cores"`
		Mem   int      `json:"mem"` // GiB
		Nets  []int    `json:"nets"`
		Fab   []string `json:"fab"`
		FW    string   `json:"fw"`
		Vict  int      `json:"vict"` // priority of the workload that runs there, 0 when free
		N     int      `json:"n"`
	} `json:"classes"`
	Groups []struct {
		Count int    `json:"count"`
		VM    bool   `json:"vm"`
		Arch  string `json:"arch"`
		Cores int    `json:"cores"`
		Mem   int    `json:"mem"`
		Nets  []int  `json:"nets"`
		Fab   string `json:"fab"`
		FW    string `json:"fw"`
		Prio  int    `json:"prio"`
		Cap   int    `json:"cap"` // at most so many of the group in one rack
	} `json:"groups"`
	Weights map[string]float64 `json:"weights"`
	Greedy  []struct {
		Net float64 `json:"net"`
	} `json:"greedy"`
}

// reserveMiB is what a host keeps. The generator takes 6 % of each machine instead; with the machine's
// memory declared as 94 % of it plus this constant both agree for every size that occurs: a VM finds
// exactly the 94 %, and 31 GiB are enough for the bare workloads that fit and too little for others.
const reserveMiB = 31 << 10

// hostable is the memory VMs find on a machine, as the generator rounds it.
func hostable(mem int) int { return int(float64(mem) * 0.94) }

var emulates = map[string][]string{"bios": {"bios", "uefi"}, "uefi": {"uefi", "uefi-sb"}, "uefi-sb": {"uefi-sb"}}

func (inst *instance) weight(prio int) float64 { return inst.Weights[strconv.Itoa(prio)] }

// input says the instance in the words of a topology. What a rack's network, storage and firmware can
// do are labels, since the generator has them per rack.
func (inst *instance) input() policies.PlacementInput {
	t := topology.New()
	t.Sites["s"] = topology.Site{Meta: topology.Meta{Name: "s"}}
	t.Networks["n"] = topology.Network{Meta: topology.Meta{Name: "n"}, Spec: topology.NetworkSpec{Site: "s", VLAN: 1}}
	for _, use := range []topology.PoolUse{topology.UseSpare, topology.UseProduction} {
		t.MachinePools[string(use)] = topology.MachinePool{Meta: topology.Meta{Name: string(use)},
			Spec: topology.MachinePoolSpec{Selector: map[string]string{"use": string(use)}, Use: use}}
	}
	in := policies.PlacementInput{Topology: t, Running: map[string]policies.Where{}, BootHosts: true, HostReserveMiB: reserveMiB}
	arch := map[string]topology.Arch{"x86": topology.X86_64, "arm": topology.ARM64}
	for i, k := range inst.Classes {
		rack := fmt.Sprintf("r%d", k.Rack)
		t.Racks[rack] = topology.Rack{Meta: topology.Meta{Name: rack}, Spec: topology.RackSpec{Site: "s"}}
		hw := fmt.Sprintf("%s-%d-%d", k.Arch, k.Cores, k.Mem)
		t.HardwareTypes[hw] = topology.HardwareType{Meta: topology.Meta{Name: hw}, Spec: topology.HardwareTypeSpec{Arch: arch[k.Arch],
			CPUs: k.Cores, MemoryMiB: int64(hostable(k.Mem))<<10 + reserveMiB, Firmware: []topology.Firmware{topology.UEFI}, Hypervisor: true}}
		labels := map[string]string{"use": string(topology.UseSpare), "fw": k.FW}
		for _, n := range k.Nets {
			labels[fmt.Sprintf("net-%d", n)] = "yes"
		}
		for _, f := range k.Fab {
			labels["fab-"+f] = "yes"
		}
		for _, fw := range []string{"bios", "uefi", "uefi-sb"} {
			if slices.Contains(emulates[fw], k.FW) {
				labels["boots-"+fw] = "yes"
			}
		}
		if k.Vict > 0 {
			labels["use"] = string(topology.UseProduction)
		}
		for j := range k.N {
			name := fmt.Sprintf("m%d-%d", i, j)
			t.Machines[name] = topology.Machine{Meta: topology.Meta{Name: name, Labels: labels}, Spec: topology.MachineSpec{Rack: rack, HardwareType: hw,
				Provisioning:   topology.Attachment{Network: "n"},
				StorageAddress: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(j)})}}
			if k.Vict > 0 {
				victim := "v-" + name
				t.Workloads[victim] = topology.Workload{Meta: topology.Meta{Name: victim}, Spec: topology.WorkloadSpec{RunsOn: topology.Physical,
					Arch: arch[k.Arch], CPUs: 1, MemoryMiB: 1, Priority: k.Vict, Repurposable: true}}
				in.Running[victim] = policies.Where{Machine: name}
			}
		}
	}
	for i, g := range inst.Groups {
		requires := map[string]string{}
		for _, n := range g.Nets {
			requires[fmt.Sprintf("net-%d", n)] = "yes"
		}
		if g.Fab != "" {
			requires["fab-"+g.Fab] = "yes"
		}
		if g.FW != "" && !g.VM {
			requires["boots-"+g.FW] = "yes"
		}
		runsOn := topology.Physical
		if g.VM {
			runsOn = topology.Virtual
		}
		for j := range g.Count {
			w := topology.WorkloadSpec{RunsOn: runsOn, Arch: arch[g.Arch], CPUs: g.Cores, MemoryMiB: int64(g.Mem) << 10, Priority: g.Prio,
				Requires: requires, Networks: []topology.Attachment{{Network: "n"}}}
			if g.Cap < g.Count { // at most cap in a rack: dealt to cap groups of which no rack has two of one
				w.SpreadGroup = fmt.Sprintf("g%d-%d", i, j%g.Cap)
			}
			name := fmt.Sprintf("w%d-%d", i, j)
			t.Workloads[name] = topology.Workload{Meta: topology.Meta{Name: name}, Spec: w}
			in.Pending = append(in.Pending, name)
		}
	}
	return in
}

// check verifies a placement in the generator's own terms and returns its value.
func (inst *instance) check(t testing.TB, in policies.PlacementInput, p policies.Placement) float64 {
	t.Helper()
	ids := func(name string) (class int) {
		var j int
		if _, err := fmt.Sscanf(name, "m%d-%d", &class, &j); err != nil {
			t.Fatal(err)
		}
		return class
	}
	value := 0.0
	evicted := map[string]bool{}
	for _, e := range p.Evictions {
		evicted[e.Machine] = true
		value -= inst.weight(inst.Classes[ids(e.Machine)].Vict)
	}
	hosts, bare := map[string][2]int{}, map[string]bool{}
	perRack := map[[2]int]int{}
	for _, h := range p.NewHosts {
		k := inst.Classes[ids(h.Machine)]
		hosts[h.Machine] = [2]int{k.Cores, hostable(k.Mem)}
	}
	for _, a := range p.Assignments {
		var gi, j int
		if _, err := fmt.Sscanf(a.Workload, "w%d-%d", &gi, &j); err != nil {
			t.Fatal(err)
		}
		g, k := inst.Groups[gi], inst.Classes[ids(a.Machine)]
		value += inst.weight(g.Prio)
		ok := g.Arch == k.Arch && g.Cores <= k.Cores && g.Mem <= k.Mem && g.Prio > k.Vict && a.VM == g.VM && evicted[a.Machine] == (k.Vict > 0) &&
			(g.Fab == "" || slices.Contains(k.Fab, g.Fab)) && (g.VM || g.FW == "" || slices.Contains(emulates[g.FW], k.FW))
		for _, n := range g.Nets {
			ok = ok && slices.Contains(k.Nets, n)
		}
		if !ok {
			t.Fatalf("%s must not be on %s: %+v on %+v", a.Workload, a.Machine, g, k)
		}
		if a.VM {
			left, there := hosts[a.Machine]
			left[0], left[1] = left[0]-g.Cores, left[1]-g.Mem
			if hosts[a.Machine] = left; !there || left[0] < 0 || left[1] < 0 {
				t.Fatalf("host %s is overfull or none: %v", a.Machine, left)
			}
		} else if _, host := hosts[a.Machine]; bare[a.Machine] || host {
			t.Fatalf("machine %s is used twice", a.Machine)
		}
		bare[a.Machine] = bare[a.Machine] || !a.VM
		if perRack[[2]int{gi, k.Rack}]++; perRack[[2]int{gi, k.Rack}] > g.Cap {
			t.Fatalf("group %d has more than %d in rack %d", gi, g.Cap, k.Rack)
		}
	}
	if len(p.Assignments)+len(p.LeftOut) != len(in.Pending) {
		t.Fatalf("%d placed and %d left out of %d", len(p.Assignments), len(p.LeftOut), len(in.Pending))
	}
	return value
}

// profile counts what was placed of each priority, bare and as VMs, and what was evicted.
func (inst *instance) profile(p policies.Placement) string {
	var bare, vms, bareWanted, vmsWanted, evicted [5]int
	for _, g := range inst.Groups {
		if g.VM {
			vmsWanted[g.Prio] += g.Count
		} else {
			bareWanted[g.Prio] += g.Count
		}
	}
	for _, a := range p.Assignments {
		var g, j int
		if _, err := fmt.Sscanf(a.Workload, "w%d-%d", &g, &j); err == nil && a.VM {
			vms[inst.Groups[g].Prio]++
		} else if err == nil {
			bare[inst.Groups[g].Prio]++
		}
	}
	for _, e := range p.Evictions {
		var c, j int
		if _, err := fmt.Sscanf(e.Machine, "m%d-%d", &c, &j); err == nil {
			evicted[inst.Classes[c].Vict]++
		}
	}
	return fmt.Sprintf("by priority from 1: bare %v of %v, VMs %v of %v, evicted %v", bare[1:], bareWanted[1:], vms[1:], vmsWanted[1:], evicted[1:])
}
