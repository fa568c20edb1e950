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
		return out(ConstraintMachines, "none of %d machines may be used: %s", len(l.excluded), l.exclusions())
	case o.fit > 0:
		return out(ConstraintMachines, "the %d machines that fit are all taken by workloads of priority %d and more or by hosts full of them", o.fit, x.priority)
	case running > 0:
		return out(ConstraintHosts, "no machine is left for it, and the %d running hosts that suit it have no room for %s and %d CPUs or a member of its spread group already", running, gib(x.memory), x.cpus)
	case o.spread > 0:
		return out(ConstraintSpread, "the %d machines that fit stand where its spread group %s has a member already", o.spread, group)
	case o.important > 0:
		return out(ConstraintPriority, "the %d machines that fit run workloads of its own priority %d or more", o.important, x.priority)
	case !x.bare && !l.in.BootHosts:
		return out(ConstraintHosts, "it runs only as a VM, none of %d running hosts suits it, and none may be booted", len(l.houses))
	}
	constraint, n, example := l.commonMisfit(x.demand, x.bare)
	return out(constraint, "none of %d machines fits; %d of them, for example: %s", o.targets, n, example)
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
	count := map[string]int{}
	for _, why := range l.excluded {
		count[why]++
	}
	whys := sortedKeys(count)
	slices.SortStableFunc(whys, func(a, b string) int { return count[b] - count[a] })
	for i, why := range whys {
		whys[i] = fmt.Sprintf("%d %s", count[why], why)
	}
	return few(whys)
}
