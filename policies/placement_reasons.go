package policies

import (
	"cmp"
	"fmt"
	"slices"
)

// explain names the machines and gives every decision its sentence.
func (l *layout) explain() Placement {
	var p Placement
	next := make([]int, len(l.classes)) // machines of each class named so far
	name := func(c int) target {
		t := l.classes[c].targets[next[c]]
		next[c]++
		return t
	}
	evict := func(t target, taker, who string) {
		if t.victim == "" {
			return
		}
		p.Evictions = append(p.Evictions, Eviction{Workload: t.victim, Machine: t.machine, For: taker,
			Reason: fmt.Sprintf("repurposable with priority %d; %s", l.t.Workloads[t.victim].Spec.Priority, who)})
	}
	for w, s := range l.at {
		if s.kind != onBare {
			continue
		}
		t := name(int(s.index))
		p.Assignments = append(p.Assignments, Assignment{l.works[w].name, Where{Machine: t.machine}, l.whyBare(w, int(s.index), t)})
		evict(t, l.works[w].name, fmt.Sprintf("%s with priority %d needs the machine", l.works[w].name, l.works[w].priority))
	}
	for i := range l.hosts {
		v := &l.hosts[i]
		if len(v.vms) == 0 {
			continue
		}
		machine := ""
		if v.class < 0 {
			machine = l.houses[v.house].machine
		} else {
			t := name(v.class)
			machine = t.machine
			least := l.works[slices.MinFunc(v.vms, func(a, b int) int { return cmp.Compare(l.works[a].priority, l.works[b].priority) })].priority
			p.NewHosts = append(p.NewHosts, NewHost{machine, l.whyHost(v, t)})
			evict(t, "host", fmt.Sprintf("its machine becomes a host for %s of priority %d and more", count(len(v.vms), "workload"), least))
		}
		for _, w := range v.vms {
			p.Assignments = append(p.Assignments, Assignment{l.works[w].name, Where{machine, true}, l.whyVM(w, v, machine)})
		}
	}
	p.LeftOut = append(p.LeftOut, l.refused...)
	for _, w := range l.missing() {
		p.LeftOut = append(p.LeftOut, l.whyNot(w))
	}
	slices.SortFunc(p.Assignments, func(a, b Assignment) int { return cmp.Compare(a.Workload, b.Workload) })
	slices.SortFunc(p.NewHosts, func(a, b NewHost) int { return cmp.Compare(a.Machine, b.Machine) })
	slices.SortFunc(p.Evictions, func(a, b Eviction) int { return cmp.Compare(a.Workload, b.Workload) })
	slices.SortFunc(p.LeftOut, func(a, b LeftOut) int { return cmp.Compare(a.Workload, b.Workload) })
	return p
}

func (l *layout) whyBare(w, c int, t target) string {
	x, h := &l.works[w], &l.hw[l.classes[c].hardware]
	sizes := fmt.Sprintf("%s and %d CPUs for %s and %d CPUs wanted", gib(h.memory), h.cpus, gib(x.memory), x.cpus)
	spares, free, tighter, tighterFree := 0, 0, 0, 0
	for _, i := range l.bareClasses[x.demand] {
		k := &l.classes[i]
		if k.victim >= 0 {
			continue
		}
		spares += len(k.targets)
		free += l.left[i]
		if l.hw[k.hardware].memory < h.memory {
			tighter += len(k.targets)
			tighterFree += l.left[i]
		}
	}
	blocked := fmt.Sprintf("ruled out by its spread group %s", l.t.Workloads[x.name].Spec.SpreadGroup)
	switch {
	case t.victim != "" && spares == 0:
		return fmt.Sprintf("no spare fits; machine of the repurposable %s, priority %d below %d: %s", t.victim, l.classes[c].victim, x.priority, sizes)
	case t.victim != "" && free == 0:
		return fmt.Sprintf("all %d spares that fit are taken; machine of the repurposable %s, priority %d below %d: %s", spares, t.victim, l.classes[c].victim, x.priority, sizes)
	case t.victim != "":
		return fmt.Sprintf("the %d spares left that fit are %s; machine of the repurposable %s, priority %d below %d: %s", free, blocked, t.victim, l.classes[c].victim, x.priority, sizes)
	case spares == 1:
		return "the only spare that fits: " + sizes
	case tighter == 0:
		return fmt.Sprintf("tightest fit of %d spares: %s", spares, sizes)
	case tighterFree == 0:
		return fmt.Sprintf("tightest fit left of %d spares, %d tighter ones are taken: %s", spares, tighter, sizes)
	default:
		return fmt.Sprintf("of %d spares the %d tighter ones left are %s: %s", spares, tighterFree, blocked, sizes)
	}
}

func (l *layout) whyHost(v *host, t target) string {
	h := &l.hw[v.hardware]
	memory, cpus := int64(0), 0
	for _, w := range v.vms {
		memory += l.works[w].memory
		cpus += l.works[w].cpus
	}
	sort := "spare"
	if t.victim != "" {
		sort = fmt.Sprintf("machine of the repurposable %s", t.victim)
	}
	return fmt.Sprintf("%s booted as a host for %s that would have no machine: %s and %d CPUs used of %s and %d CPUs, %s kept for the hypervisor",
		sort, count(len(v.vms), "workload"), gib(memory), cpus, gib(h.memory), h.cpus, gib(l.in.HostReserveMiB))
}

func (l *layout) whyVM(w int, v *host, machine string) string {
	d := &l.demands[l.works[w].demand]
	why := "runs only as a VM"
	if l.works[w].bare {
		why = "no machine of its own is left"
	}
	kind := "running"
	if v.class >= 0 {
		kind = "newly booted"
	}
	return fmt.Sprintf("%s; one of %d placed on the %s host %s: %s and %d CPUs wanted, %s and %d CPUs stay free there",
		why, len(v.vms), kind, machine, gib(d.memory), d.cpus, gib(v.memory), v.cpus)
}
