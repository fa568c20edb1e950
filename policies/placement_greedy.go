package policies

// greedy places every work in order, each at the best spot that is left: a spare machine, a victim's
// machine, a running host, a host to be booted. It looks ahead only in choosing what to boot as a host.
func (l *layout) greedy() {
	for w := range l.works {
		if l.at[w].kind == nowhere {
			l.insert(w)
		}
	}
}

func (l *layout) insert(w int) bool {
	if c := l.bestBare(w); c >= 0 {
		l.putBare(w, c)
		return true
	}
	if h := l.bestHost(w); h >= 0 {
		l.join(w, h)
		return true
	}
	if c := l.bestNewHost(w); c >= 0 {
		l.join(w, l.open(c))
		return true
	}
	return false
}

// bestBare is the class with a machine left that fits w most tightly, spares before victims and less
// important victims before more important ones; -1 when there is none. The classes are in that order.
func (l *layout) bestBare(w int) int {
	if !l.works[w].bare {
		return -1
	}
	for _, c := range l.bareClasses[l.works[w].demand] {
		if l.classes[c].victim >= l.works[w].priority {
			break
		}
		if l.left[c] > 0 && l.spreads(w, spot{onBare, c}) {
			return int(c)
		}
	}
	return -1
}

// bestHost is the open host with the least room left that still takes w, running ones first.
func (l *layout) bestHost(w int) int {
	best := -1
	l.effort += len(l.hosts)
	for h := range l.hosts {
		if !l.canJoin(w, h) {
			continue
		}
		if best < 0 || l.tighter(h, best) {
			best = h
		}
	}
	return best
}

func (l *layout) tighter(a, b int) bool {
	x, y := &l.hosts[a], &l.hosts[b]
	if (x.class < 0) != (y.class < 0) {
		return x.class < 0
	}
	return l.slack(x) < l.slack(y)
}

// slack is the scarcer of the two free shares of a host.
func (l *layout) slack(v *host) float64 {
	h := &l.hw[v.hardware]
	return min(float64(v.cpus)/float64(h.cpus), float64(v.memory)/float64(h.memory))
}

// bestNewHost is the class whose machine, booted as a host, takes the most weight of w and of what is
// still nowhere, per weight evicted; among equals the one with the least room.
func (l *layout) bestNewHost(w int) int {
	if !l.in.BootHosts || !l.works[w].virt {
		return -1
	}
	waiting := l.missing()
	best, bestGain, bestCount := -1, 0.0, 0
	for _, k := range l.virtClasses[l.works[w].demand] {
		c := int(k)
		if l.left[c] <= 0 || !l.allowsHost(w, c) || !l.spreads(w, spot{onBare, int32(c)}) {
			continue
		}
		vms := l.pack(c, w, waiting)
		gain := -l.classes[c].cost
		for _, x := range vms {
			gain += l.works[x].weight
		}
		if best < 0 || l.classes[c].victim < l.classes[best].victim || l.classes[c].victim == l.classes[best].victim && (len(vms) > bestCount || len(vms) == bestCount && gain > bestGain) {
			best, bestGain, bestCount = c, gain, len(vms)
		}
	}
	return best
}

// pack lists which of the waiting works an empty host of class c would take, first first.
func (l *layout) pack(c, first int, waiting []int) []int {
	h := &l.hw[l.classes[c].hardware]
	cpus, memory := h.cpus, h.memory-l.in.HostReserveMiB
	var out []int
	groups := map[int]bool{}
	take := func(w int) {
		x := &l.works[w]
		if x.cpus > cpus || x.memory > memory || !l.allowsHost(w, c) || x.group >= 0 && groups[x.group] || !l.spreads(w, spot{onBare, int32(c)}) {
			return
		}
		cpus -= x.cpus
		memory -= x.memory
		if x.group >= 0 {
			groups[x.group] = true
		}
		out = append(out, w)
	}
	if first >= 0 {
		take(first)
	}
	l.effort += len(waiting)
	for _, w := range waiting {
		if w != first {
			take(w)
		}
	}
	return out
}

// consolidate turns machines that run one work bare into hosts while works are still nowhere that a
// host would take: the work on the machine becomes a VM beside them. Each step takes the conversion
// that places the most, so the fewest machines become hosts; among equals the one that moves the least
// important work.
func (l *layout) consolidate() {
	if !l.in.BootHosts {
		return
	}
	for {
		waiting := l.missing()
		best, bestWork, bestWeight := []int(nil), -1, 0.0
		tried := map[[2]int]bool{}
		for w := len(l.works) - 1; w >= 0; w-- {
			s := l.at[w]
			if s.kind != onBare || !l.allowsHost(w, int(s.index)) {
				continue
			}
			k := [2]int{int(s.index), l.works[w].demand}
			if l.works[w].group < 0 {
				if tried[k] {
					continue
				}
				tried[k] = true
			}
			l.unmark(w, s)
			vms := l.pack(int(s.index), w, waiting)
			l.mark(w, s)
			weight := -l.works[w].weight
			for _, x := range vms {
				weight += l.works[x].weight
			}
			if len(vms) > 1 && weight > bestWeight {
				best, bestWork, bestWeight = vms, w, weight
			}
		}
		if bestWork < 0 {
			return
		}
		c := int(l.at[bestWork].index)
		l.remove(bestWork)
		h := l.open(c)
		for _, w := range best {
			l.join(w, h)
		}
	}
}

// unbundle gives VMs that might run bare the machines that are left, the most important first, and
// closes the hosts that become empty.
func (l *layout) unbundle() {
	for w := range l.works {
		s := l.at[w]
		if s.kind != onHost || !l.works[w].bare {
			continue
		}
		l.remove(w)
		if c := l.bestBare(w); c >= 0 {
			l.putBare(w, c)
			l.close(int(s.index))
		} else {
			l.join(w, int(s.index))
		}
	}
}

// tighten moves bare works to tighter machines that are left, the most important first. The larger
// machines stay free for what may come.
func (l *layout) tighten() {
	for w := range l.works {
		s := l.at[w]
		if s.kind != onBare {
			continue
		}
		for _, c := range l.bareClasses[l.works[w].demand] {
			if c >= s.index {
				break // the classes are in the order of preference
			}
			if t := (spot{onBare, c}); l.left[c] > 0 && l.works[w].priority > l.classes[c].victim && l.spreads(w, t) {
				l.remove(w)
				l.put(w, t)
				break
			}
		}
	}
}
