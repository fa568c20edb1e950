package policies

import (
	"cmp"
	"slices"
)

// spot is where a work is: nowhere, bare on a machine of a class, or a VM on a host.
type spot struct {
	kind  spotKind
	index int32 // class or host
}

type spotKind uint8

const (
	nowhere spotKind = iota
	onBare
	onHost
)

// host is a machine that runs, or shall run, our hypervisor.
type host struct {
	class    int // -1: house is a machine that runs it already
	house    int
	hardware int
	victim   int // as of the class: every VM must be more important
	cpus     int // free
	memory   int64
	vms      []int // works
	closed   bool
	domain   int // of the machine
}

// layout is one tentative placement. Every method keeps it feasible. Changes are journalled, so that a
// try that leads nowhere is taken back.
type layout struct {
	*model
	at       []spot
	left     []int // machines of each class not used
	hosts    []host
	occupied [][]int // by spread group: the domains its members are in
	journal  []change
	score    score
	opened   int // hosts ever opened
	effort   int // looks at a work, a host or a class so far: time, as far as a pure function knows it
}

// change is one step of the journal: work w was put to, or with gone removed from, a spot; or with w
// below 0 the spot's host was opened or, with gone, closed.
type change struct {
	w    int
	at   spot
	gone bool
}

func newLayout(m *model) *layout {
	l := &layout{model: m, at: make([]spot, len(m.works)), left: make([]int, len(m.classes)), occupied: make([][]int, len(m.groups)),
		score: score{gain: make([]int, len(m.levels))}}
	for i, c := range m.classes {
		l.left[i] = len(c.targets)
	}
	for g, domains := range m.taken {
		l.occupied[g] = slices.Clone(domains)
	}
	for i, h := range m.houses {
		l.hosts = append(l.hosts, host{class: -1, house: i, hardware: h.hardware, victim: -1, cpus: h.cpus, memory: h.memory, domain: l.domain("machine/" + h.machine)})
	}
	return l
}

// machineDomain is the domain of the machine itself. Two members meet on one machine only as VMs.
func (l *layout) machineDomain(s spot) int {
	if s.kind != onHost {
		return -1
	}
	return l.hosts[s.index].domain
}

func (l *layout) hardwareAt(s spot) *hardware {
	if s.kind == onHost {
		return &l.hw[l.hosts[s.index].hardware]
	}
	return &l.hw[l.classes[s.index].hardware]
}

// spreads says whether work w keeps clear of its spread group at s. Where it stands now it is not in
// its own way.
func (l *layout) spreads(w int, s spot) bool {
	g := l.works[w].group
	return g < 0 || l.domainsOf(g, l.hardwareAt(s), l.machineDomain(s), func(d int) bool {
		return !slices.Contains(l.occupied[g], d) || l.stands(w, d)
	})
}

func (l *layout) stands(w, domain int) bool {
	s := l.at[w]
	return s.kind != nowhere && !l.domainsOf(l.works[w].group, l.hardwareAt(s), l.machineDomain(s), func(d int) bool { return d != domain })
}

func (l *layout) mark(w int, s spot) {
	if g := l.works[w].group; g >= 0 {
		l.domainsOf(g, l.hardwareAt(s), l.machineDomain(s), func(d int) bool { l.occupied[g] = append(l.occupied[g], d); return true })
	}
}

func (l *layout) unmark(w int, s spot) {
	if g := l.works[w].group; g >= 0 {
		l.domainsOf(g, l.hardwareAt(s), l.machineDomain(s), func(d int) bool {
			list := l.occupied[g]
			list[slices.Index(list, d)] = list[len(list)-1]
			l.occupied[g] = list[:len(list)-1]
			return true
		})
	}
}

// allowsBare says whether work w may have a machine of class c, should one be left.
func (l *layout) allowsBare(w, c int) bool {
	k := &l.classes[c]
	return l.works[w].bare && l.works[w].priority > k.victim && l.bareOn[l.works[w].demand][k.hardware]
}

// allowsHost says whether work w may be a VM on a host of class c, should it have room.
func (l *layout) allowsHost(w, c int) bool {
	k := &l.classes[c]
	return l.works[w].virt && l.works[w].priority > k.victim && l.virtOn[l.works[w].demand][k.hardware] &&
		l.works[w].memory <= l.hw[k.hardware].memory-l.in.HostReserveMiB
}

// canJoin says whether work w fits into what is free on host h now.
func (l *layout) canJoin(w, h int) bool {
	v, x := &l.hosts[h], &l.works[w]
	return x.cpus <= v.cpus && x.memory <= v.memory && !v.closed && x.virt && x.priority > v.victim && l.virtOn[x.demand][v.hardware] &&
		l.spreads(w, spot{onHost, int32(h)})
}

func (l *layout) put(w int, s spot) {
	l.score.gain[l.works[w].level]++
	if s.kind == onBare {
		l.use(int(s.index), 1)
	} else {
		v := &l.hosts[s.index]
		v.cpus -= l.works[w].cpus
		v.memory -= l.works[w].memory
		v.vms = append(v.vms, w)
		l.score.moved += boolInt(l.works[w].bare)
	}
	l.at[w] = s
	l.mark(w, s)
	l.journal = append(l.journal, change{w, s, false})
}

// use takes n machines of class c.
func (l *layout) use(c, n int) {
	l.left[c] -= n
	if v := l.classes[c].victim; v >= 0 {
		l.score.gain[l.levels[v]] -= n
		l.score.evicted += float64(n) * l.classes[c].cost
	}
}

func (l *layout) putBare(w, c int) { l.put(w, spot{onBare, int32(c)}) }
func (l *layout) join(w, h int)    { l.put(w, spot{onHost, int32(h)}) }

// remove takes a work from where it is. A host that becomes empty stays open.
func (l *layout) remove(w int) {
	s := l.at[w]
	switch s.kind {
	case nowhere:
		return
	case onBare:
		l.use(int(s.index), -1)
	case onHost:
		l.score.moved -= boolInt(l.works[w].bare)
		v := &l.hosts[s.index]
		v.cpus += l.works[w].cpus
		v.memory += l.works[w].memory
		i := slices.Index(v.vms, w)
		v.vms[i] = v.vms[len(v.vms)-1]
		v.vms = v.vms[:len(v.vms)-1]
	}
	l.score.gain[l.works[w].level]--
	l.unmark(w, s)
	l.at[w] = spot{}
	l.journal = append(l.journal, change{w, s, true})
}

// open turns a machine of class c into a host and returns its number.
func (l *layout) open(c int) int {
	l.use(c, 1)
	l.score.hosts++
	h := &l.hw[l.classes[c].hardware]
	l.hosts = append(l.hosts, host{class: c, hardware: l.classes[c].hardware, victim: l.classes[c].victim, cpus: h.cpus, memory: h.memory - l.in.HostReserveMiB, domain: newHostDomain + l.opened})
	l.opened++
	l.journal = append(l.journal, change{-1, spot{onHost, int32(len(l.hosts) - 1)}, false})
	return len(l.hosts) - 1
}

// close gives an empty new host's machine back.
func (l *layout) close(h int) {
	if v := &l.hosts[h]; v.class >= 0 && !v.closed && len(v.vms) == 0 {
		v.closed = true
		l.use(v.class, -1)
		l.score.hosts--
		l.journal = append(l.journal, change{-1, spot{onHost, int32(h)}, true})
	}
}

// rollback takes back everything since the journal had the given length.
func (l *layout) rollback(to int) {
	for len(l.journal) > to {
		c := l.journal[len(l.journal)-1]
		switch {
		case c.w >= 0 && c.gone:
			l.put(c.w, c.at)
		case c.w >= 0:
			l.remove(c.w)
		case c.gone:
			v := &l.hosts[c.at.index]
			v.closed = false
			l.use(v.class, 1)
			l.score.hosts++
			l.journal = append(l.journal, change{})
		default: // hosts are numbered in the order they were opened, so this is the last
			l.use(l.hosts[c.at.index].class, -1)
			l.score.hosts--
			l.hosts = l.hosts[:c.at.index]
			l.journal = append(l.journal, change{})
		}
		l.journal = l.journal[:len(l.journal)-2] // the step and what taking it back has journalled
	}
}

// compact forgets closed hosts and what could be rolled back.
func (l *layout) compact() {
	l.journal = l.journal[:0]
	kept := l.hosts[:0]
	for _, v := range l.hosts {
		if v.closed {
			continue
		}
		for _, w := range v.vms {
			l.at[w].index = int32(len(kept))
		}
		kept = append(kept, v)
	}
	l.hosts = kept
}

// missing lists the works that are nowhere, in order.
func (l *layout) missing() []int {
	var out []int
	for w := range l.at {
		if l.at[w].kind == nowhere {
			out = append(out, w)
		}
	}
	return out
}

// score is how good a layout is: the more of the important placed and the fewer of them evicted, the
// better; then the fewer hosts, and the fewer VMs that might be bare.
type score struct {
	gain    []int   // by rank of priority: placed less evicted
	evicted float64 // weight
	hosts   int
	moved   int
}

func (s score) clone() score {
	s.gain = slices.Clone(s.gain)
	return s
}

// compare is positive when s is better than t.
func (s score) compare(t score) int {
	for i := len(s.gain) - 1; i >= 0; i-- {
		if c := cmp.Compare(s.gain[i], t.gain[i]); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(t.hosts, s.hosts), cmp.Compare(t.moved, s.moved))
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
