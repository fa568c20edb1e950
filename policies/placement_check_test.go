package policies

import (
	"fmt"
	"slices"

	"rerack.dev/rerack/orchestrator/topology"
)

// audit looks at a placement with nothing but the topology and the input, and returns what is wrong.
// It shares no code with Place.
type audit struct {
	in     PlacementInput
	p      Placement
	wrong  []string
	bare   map[string]string   // machine -> workload
	vms    map[string][]string // machine -> workloads
	booted map[string]bool
	victim map[string]string // machine -> workload that runs there bare
}

func auditPlacement(in PlacementInput, p Placement) []string {
	a := &audit{in: in, p: p, bare: map[string]string{}, vms: map[string][]string{}, booted: map[string]bool{}, victim: map[string]string{}}
	for w, at := range in.Running {
		if !at.VM {
			a.victim[at.Machine] = w
		}
	}
	a.shape()
	a.targets()
	a.capacity()
	a.spreading()
	a.evictions()
	a.inversions()
	return a.wrong
}

func (a *audit) say(format string, args ...any) {
	a.wrong = append(a.wrong, fmt.Sprintf(format, args...))
}

func (a *audit) spec(w string) topology.WorkloadSpec { return a.in.Topology.Workloads[w].Spec }

func (a *audit) shape() {
	seen := map[string]int{}
	for _, h := range a.p.NewHosts {
		if a.booted[h.Machine] || h.Reason == "" {
			a.say("host %+v twice or without reason", h)
		}
		a.booted[h.Machine] = true
	}
	if len(a.p.NewHosts) > 0 && !a.in.BootHosts {
		a.say("hosts are booted although they may not be")
	}
	for _, s := range a.p.Assignments {
		seen[s.Workload]++
		if s.Reason == "" {
			a.say("%s without reason", s.Workload)
		}
		if s.VM {
			a.vms[s.Machine] = append(a.vms[s.Machine], s.Workload)
			continue
		}
		if other := a.bare[s.Machine]; other != "" {
			a.say("%s and %s both bare on %s", other, s.Workload, s.Machine)
		}
		a.bare[s.Machine] = s.Workload
	}
	for _, l := range a.p.LeftOut {
		seen[l.Workload]++
		if l.Reason == "" || l.Constraint == "" {
			a.say("%+v without constraint or reason", l)
		}
	}
	for _, w := range a.in.Pending {
		if seen[w] != 1 {
			a.say("%s is decided %d times", w, seen[w])
		}
		delete(seen, w)
	}
	for w := range seen {
		a.say("%s was not pending", w)
	}
}

// target says whether a machine may be taken at all, apart from who runs there.
func (a *audit) target(m string) bool {
	t := a.in.Topology
	_, unusable := a.in.Unusable[m]
	return !unusable && !t.Machines[m].Spec.Maintenance && len(t.PoolsOf(m)) > 0 && t.UseOf(m) != topology.UseNone
}

// free says whether m, which is no host, may be taken by something of the given priority.
func (a *audit) free(m string, priority int) bool {
	if _, host := a.in.Hosts[m]; host || !a.target(m) {
		return false
	}
	for _, at := range a.in.Running {
		if at.Machine == m && at.VM {
			return false
		}
	}
	v := a.victim[m]
	if v == "" {
		return a.in.Topology.UseOf(m) == topology.UseSpare
	}
	return a.spec(v).Repurposable && a.spec(v).Priority < priority
}

func (a *audit) targets() {
	t := a.in.Topology
	for m, w := range a.bare {
		if a.booted[m] || len(a.vms[m]) > 0 || !a.free(m, a.spec(w).Priority) {
			a.say("%s may not take %s", w, m)
		}
		if unfit := t.Fits(w, m); len(unfit) > 0 {
			a.say("%s does not fit %s: %v", w, m, unfit)
		}
	}
	for m, vms := range a.vms {
		_, running := a.in.Hosts[m]
		if !running && !a.booted[m] || running && (a.booted[m] || !a.target(m)) {
			a.say("%v on %s, which is no host", vms, m)
		}
		for _, w := range vms {
			if unfit := t.FitsVM(w, m, 0); len(unfit) > 0 {
				a.say("%s does not fit host %s: %v", w, m, unfit)
			}
			if a.booted[m] && !a.free(m, a.spec(w).Priority) {
				a.say("%s may not be on host %s", w, m)
			}
		}
	}
	for m := range a.booted {
		if len(a.vms[m]) == 0 {
			a.say("host %s is booted for nothing", m)
		}
	}
}

func (a *audit) room(m string) (cpus int, memory int64) {
	if r, running := a.in.Hosts[m]; running {
		return r.FreeCPUs, r.FreeMemory
	}
	hw := a.in.Topology.HardwareTypes[a.in.Topology.Machines[m].Spec.HardwareType].Spec
	return hw.CPUs, hw.MemoryMiB - a.in.HostReserveMiB
}

// roomBeside is the room on m beside the workloads that keep keeps.
func (a *audit) roomBeside(m string, keep func(string) bool) (cpus int, memory int64, kept int) {
	cpus, memory = a.room(m)
	for _, w := range a.vms[m] {
		if keep(w) {
			cpus, memory, kept = cpus-a.spec(w).CPUs, memory-a.spec(w).MemoryMiB, kept+1
		}
	}
	return cpus, memory, kept
}

func (a *audit) capacity() {
	for m := range a.vms {
		if c, mem, _ := a.roomBeside(m, func(string) bool { return true }); c < 0 || mem < 0 {
			a.say("host %s is overfull by %d CPUs, %d MiB", m, -c, -mem)
		}
	}
}

// shares says whether two members of a spread group on machines m and n break a scope that the group has.
func (a *audit) shares(group, m, n string) bool {
	t := a.in.Topology
	for _, x := range t.Workloads {
		if x.Spec.SpreadGroup != group {
			continue
		}
		scope := x.Spec.SpreadScope
		r, q := t.Machines[m].Spec.Rack, t.Machines[n].Spec.Rack
		switch scope {
		case "machine":
			if m == n {
				return true
			}
		case "powerfeed":
			if r == q {
				return true
			}
			for _, f := range t.Racks[r].Spec.Feeds {
				if slices.Contains(t.Racks[q].Spec.Feeds, f) {
					return true
				}
			}
		default:
			if r == q {
				return true
			}
		}
	}
	return false
}

// clashes says whether w on machine m clashes with a member of its group that skip does not exempt.
func (a *audit) clashes(w, m string, skip func(string) bool) bool {
	group := a.spec(w).SpreadGroup
	if group == "" {
		return false
	}
	clash := func(v, n string) bool { return v != w && a.spec(v).SpreadGroup == group && a.shares(group, n, m) }
	for v, at := range a.in.Running {
		if clash(v, at.Machine) {
			return true
		}
	}
	for _, s := range a.p.Assignments {
		if !skip(s.Workload) && clash(s.Workload, s.Machine) {
			return true
		}
	}
	return false
}

func (a *audit) spreading() {
	for _, s := range a.p.Assignments {
		if a.clashes(s.Workload, s.Machine, func(string) bool { return false }) {
			a.say("%s on %s shares a failure domain with its group %s", s.Workload, s.Machine, a.spec(s.Workload).SpreadGroup)
		}
	}
}

func (a *audit) evictions() {
	evicted := map[string]bool{}
	for _, e := range a.p.Evictions {
		if a.victim[e.Machine] != e.Workload || evicted[e.Machine] || e.Reason == "" {
			a.say("eviction %+v", e)
		}
		evicted[e.Machine] = true
		if want := a.bare[e.Machine]; want != e.For && (want != "" || e.For != "host") {
			a.say("evicted for %q, but %q is there", e.For, want)
		}
		if a.bare[e.Machine] == "" && !a.booted[e.Machine] {
			a.say("%s is evicted for nothing", e.Workload)
		}
	}
	for m, v := range a.victim {
		if (a.bare[m] != "" || a.booted[m]) && !evicted[m] {
			a.say("%s still runs on %s", v, m)
		}
	}
}

// inversions looks for a workload left out that could have a machine or room by itself or instead of
// less important ones only.
func (a *audit) inversions() {
	for _, l := range a.p.LeftOut {
		w, x := l.Workload, a.spec(l.Workload)
		if _, known := a.in.Topology.Workloads[w]; !known || l.Constraint == ConstraintRunning {
			continue
		}
		less := func(v string) bool { return a.spec(v).Priority < x.Priority }
		for m := range a.in.Topology.Machines {
			if a.clashes(w, m, less) {
				continue
			}
			asBare := a.free(m, x.Priority) && len(a.in.Topology.Fits(w, m)) == 0
			asFirst := a.in.BootHosts && a.free(m, x.Priority) && len(a.in.Topology.FitsVM(w, m, a.in.HostReserveMiB)) == 0
			cpus, memory, kept := a.roomBeside(m, func(v string) bool { return !less(v) })
			_, running := a.in.Hosts[m]
			switch occupant := a.bare[m]; {
			case (asBare || asFirst) && occupant == "" && kept == 0:
				a.say("%s (priority %d) is left out, but %s is free or held by less important VMs only", w, x.Priority, m)
			case (asBare || asFirst) && occupant != "" && less(occupant):
				a.say("%s (priority %d) is left out, but less important %s has %s", w, x.Priority, occupant, m)
			case (asFirst && a.booted[m] || running && a.target(m) && len(a.in.Topology.FitsVM(w, m, 0)) == 0) && cpus >= x.CPUs && memory >= x.MemoryMiB:
				a.say("%s (priority %d) is left out, but host %s has room or less important VMs", w, x.Priority, m)
			}
		}
	}
}
