package policies

import (
	"fmt"
	"slices"
)

// whyNot names the constraint that binds a work that has no place: among the targets that come
// closest to taking it, what keeps them from it.
func (l *layout) whyNot(w int) LeftOut {
	x := &l.works[w]
	out := func(constraint, format string, args ...any) LeftOut {
		return LeftOut{x.name, constraint, fmt.Sprintf(format, args...)}
	}
	d := &l.demands[x.demand]
	bad := map[string]int{}     // constraint -> machines
	what := map[string]string{} // constraint -> in words
	targets, fit, important, spread := 0, 0, 0, 0
	for c := range l.classes {
		k := &l.classes[c]
		n := len(k.targets)
		targets += n
		h := &l.hw[k.hardware]
		constraint, detail := "", ""
		switch {
		case x.bare:
			constraint, detail = l.misfit(d, h, true)
			if constraint != "" && x.virt && l.in.BootHosts && l.virtOn[x.demand][k.hardware] {
				constraint = ""
			}
		case !l.in.BootHosts:
			constraint, detail = ConstraintHosts, "a running host"
		default:
			constraint, detail = l.misfit(d, h, false)
		}
		switch {
		case constraint != "":
			bad[constraint] += n
			what[constraint] = detail
		case k.victim >= x.priority:
			important += n
		case !l.spreads(w, spot{onBare, int32(c)}):
			spread += n
		default:
			fit += n
		}
	}
	houses, room := l.houseRoom(w)
	switch {
	case targets == 0 && len(l.houses) == 0:
		return out(ConstraintMachines, "no machine may be used: %s", l.exclusions())
	case fit > 0 || houses > 0 && !room:
		if houses > 0 && fit == 0 {
			return out(ConstraintHosts, "the %d running hosts that fit have no room left for %s and %d CPUs, and no other machine fits", houses, gib(x.memory), x.cpus)
		}
		return out(ConstraintMachines, "all %d machines that fit are taken by workloads of priority %d and more", fit, x.priority)
	case spread > 0:
		return out(ConstraintSpread, "the %d machines that fit stand where its spread group %s has a member already", spread, l.t.Workloads[x.name].Spec.SpreadGroup)
	case important > 0:
		return out(ConstraintPriority, "the %d machines that fit run workloads of priority %d or more, not below its own", important, x.priority)
	}
	worst := ""
	for _, c := range sortedKeys(bad) {
		if worst == "" || bad[c] > bad[worst] {
			worst = c
		}
	}
	if worst == "" {
		return out(ConstraintHosts, "no host has room for it, and none may be booted")
	}
	return out(worst, "none of %d machines fits; of %d, for example: %s", targets, bad[worst], what[worst])
}

// houseRoom counts the running hosts whose hardware suits w, and says whether one would take it.
func (l *layout) houseRoom(w int) (suit int, room bool) {
	if !l.works[w].virt {
		return 0, false
	}
	for h := range l.hosts {
		v := &l.hosts[h]
		if v.class < 0 && l.virtOn[l.works[w].demand][v.hardware] {
			suit++
			room = room || l.canJoin(w, h)
		}
	}
	return suit, room
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
