package policies

import (
	"cmp"
	"fmt"
	"slices"
)

// obstacles counts, in machines, what keeps one work from the targets.
type obstacles struct {
	targets   int // all of them
	fit       int // would do
	important int // would do, but run something as important
	spread    int // would do, but for the spread group
}

func (l *layout) obstacles(w int) obstacles {
	x := &l.works[w]
	var o obstacles
	for c := range l.classes {
		k := &l.classes[c]
		n := len(k.targets)
		o.targets += n
		fits := x.bare && l.bareOn[x.demand][k.hardware] || l.in.BootHosts && x.virt && l.virtOn[x.demand][k.hardware] && x.memory <= l.hw[k.hardware].memory-l.in.HostReserveMiB
		switch {
		case !fits:
		case k.victim >= x.priority:
			o.important += n
		case !l.spreads(w, spot{onBare, int32(c)}):
			o.spread += n
		default:
			o.fit += n
		}
	}
	return o
}

// whyNot names the constraint that binds a work that has no place: among the targets that come
// closest to taking it, what keeps them from it.
func (l *layout) whyNot(w int) LeftOut {
	x := &l.works[w]
	out := func(constraint, format string, args ...any) LeftOut {
		return LeftOut{x.name, constraint, fmt.Sprintf(format, args...)}
	}
	o := l.obstacles(w)
	running := 0
	for h := range l.houses {
		if x.virt && l.virtOn[x.demand][l.houses[h].hardware] {
			running++
		}
	}
	group := l.t.Workloads[x.name].Spec.SpreadGroup
	switch {
	case o.targets == 0 && len(l.houses) == 0:
		return out(ConstraintMachines, "none of the %s may be used: %s", count(len(l.excluded), "machine"), l.exclusions())
	case o.fit > 0:
		return out(ConstraintMachines, "all of the %s that fit are taken by workloads of priority %d and more, or are hosts full of them", count(o.fit, "machine"), x.priority)
	case running > 0:
		return out(ConstraintHosts, "no machine is left for it, and of the %s that suit it each has no room for %s and %d CPUs, or a member of its spread group", count(running, "running host"), gib(x.memory), x.cpus)
	case o.spread > 0:
		return out(ConstraintSpread, "each of the %s that fit stands where its spread group %s has a member", count(o.spread, "machine"), group)
	case o.important > 0:
		return out(ConstraintPriority, "each of the %s that fit runs a workload of its own priority %d or more", count(o.important, "machine"), x.priority)
	case !x.bare && !l.in.BootHosts:
		return out(ConstraintHosts, "it runs only as a VM, none of the %s suits it, and none may be booted", count(len(l.houses), "running host"))
	}
	constraint, n, example := l.commonMisfit(x.demand, x.bare)
	return out(constraint, "none of the %s that may be used fits; %d of them, for example: %s", count(o.targets, "machine"), n, example)
}

// commonMisfit is the constraint that rules out the most targets for a demand, and an example.
func (l *layout) commonMisfit(demand int, bare bool) (constraint string, machines int, example string) {
	type misfit struct {
		constraint, example string
		machines            int
	}
	perBuild := make([]int, len(l.builds))
	for _, c := range l.classes {
		perBuild[l.hw[c.hardware].build] += len(c.targets)
	}
	var found []misfit
	for b, n := range perBuild {
		unfit := l.t.Fits(l.demands[demand].of, l.builds[b])
		if !bare {
			unfit = l.t.FitsVM(l.demands[demand].of, l.builds[b], l.in.HostReserveMiB)
		}
		if n == 0 || len(unfit) == 0 {
			continue
		}
		c := string(unfit[0].Constraint)
		i := slices.IndexFunc(found, func(m misfit) bool { return m.constraint == c })
		if i < 0 {
			i = len(found)
			found = append(found, misfit{constraint: c, example: unfit[0].Reason})
		}
		found[i].machines += n
	}
	if len(found) == 0 {
		return ConstraintHosts, 0, "no host has room for it"
	}
	worst := slices.MaxFunc(found, func(a, b misfit) int {
		return cmp.Or(cmp.Compare(a.machines, b.machines), cmp.Compare(b.constraint, a.constraint))
	})
	return worst.constraint, worst.machines, worst.example
}

// exclusions counts why machines are no targets, the commonest first.
func (l *layout) exclusions() string {
	if len(l.excluded) == 0 {
		return "none is declared"
	}
	machines := map[string]int{}
	for _, why := range l.excluded {
		machines[why]++
	}
	whys := sortedKeys(machines)
	slices.SortStableFunc(whys, func(a, b string) int { return machines[b] - machines[a] })
	for i, why := range whys {
		whys[i] = fmt.Sprintf("%d %s", machines[why], why)
	}
	return few(whys)
}

// count writes a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
