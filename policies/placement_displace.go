package policies

import "slices"

// displace sees to invariant I11 at the end: a work without a place takes any machine or host that it
// can take by dropping nothing but less important works there, at the least weight dropped. What is
// dropped looks for another place in its turn. Each success places something more important than all it
// drops, so it comes to an end. It reports whether anything changed.
func (l *layout) displace() (changed bool) {
	for again := true; again; {
		again = false
		failed := map[[2]int]bool{}
		for _, w := range l.missing() {
			x := &l.works[w]
			k := [2]int{x.demand, x.priority}
			if l.at[w].kind != nowhere || x.group < 0 && failed[k] {
				continue
			}
			if l.insert(w) || l.takeOver(w) {
				again, changed = true, true
				clear(failed)
			} else {
				failed[k] = true
			}
		}
	}
	return changed
}

// seat is something in use that another work might take over: the machine of a bare work, a host, or
// the place in a failure domain that a member of the same spread group takes up.
type seat struct {
	work, host int // -1 for none
	group      bool
}

func (l *layout) takeOver(w int) bool {
	best, bestLoss, found := seat{}, 0.0, false
	consider := func(s seat) {
		mark := len(l.journal)
		loss, ok := l.take(w, s)
		l.rollback(mark)
		if ok && (!found || loss < bestLoss) {
			best, bestLoss, found = s, loss, true
		}
	}
	tried := map[[3]int]bool{}
	for v, s := range l.at {
		if g := l.works[w].group; g >= 0 && s.kind != nowhere && l.works[v].group == g && l.works[v].priority < l.works[w].priority {
			consider(seat{v, -1, true})
		}
		if s.kind != onBare || l.works[v].priority >= l.works[w].priority || !l.suits(w, int(s.index)) {
			continue
		}
		k := [3]int{int(s.index), l.works[v].priority, l.works[v].group}
		if !tried[k] {
			tried[k] = true
			consider(seat{v, -1, false})
		}
	}
	for h := range l.hosts {
		if len(l.hosts[h].vms) > 0 {
			consider(seat{-1, h, false})
		}
	}
	if found {
		l.take(w, best)
	}
	return found
}

// suits says whether w may have a machine of class c in any way.
func (l *layout) suits(w, c int) bool {
	return l.allowsBare(w, c) || l.in.BootHosts && l.allowsHost(w, c)
}

// take puts w on the seat, dropping less important works there; without success the caller rolls back.
func (l *layout) take(w int, s seat) (loss float64, ok bool) {
	if s.group {
		l.remove(s.work)
		return l.works[s.work].weight, l.insert(w)
	}
	if s.host < 0 {
		c := int(l.at[s.work].index)
		l.remove(s.work)
		return l.works[s.work].weight, l.enter(w, c)
	}
	v := &l.hosts[s.host]
	less := slices.DeleteFunc(slices.Clone(v.vms), func(x int) bool { return l.works[x].priority >= l.works[w].priority })
	slices.SortFunc(less, func(a, b int) int { return b - a }) // works are numbered by importance
	for _, x := range less {
		l.remove(x)
		loss += l.works[x].weight
		if l.canJoin(w, s.host) {
			l.join(w, s.host)
			return loss, true
		}
	}
	if len(v.vms) > 0 || v.class < 0 || len(less) == 0 {
		return 0, false
	}
	c := v.class
	l.close(s.host)
	return loss, l.enter(w, c)
}

// enter puts w on a machine of class c that is left: bare if it may, or as the first VM of a new host.
func (l *layout) enter(w, c int) bool {
	s := spot{onBare, int32(c)}
	switch {
	case l.left[c] <= 0 || !l.spreads(w, s):
		return false
	case l.allowsBare(w, c):
		l.put(w, s)
		return true
	case l.in.BootHosts && l.allowsHost(w, c):
		l.join(w, l.open(c))
		return true
	}
	return false
}
