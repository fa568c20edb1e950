package policies

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
}

// layout is one tentative placement. Every method keeps it feasible.
type layout struct {
	*model
	at       []spot
	left     []int // machines of each class not used
	hosts    []host
	occupied map[occupancy]int
}

func newLayout(m *model) *layout {
	l := &layout{model: m, at: make([]spot, len(m.works)), left: make([]int, len(m.classes)), occupied: map[occupancy]int{}}
	for i, c := range m.classes {
		l.left[i] = len(c.targets)
	}
	for k, n := range m.taken {
		l.occupied[k] = n
	}
	for i, h := range m.houses {
		l.hosts = append(l.hosts, host{class: -1, house: i, hardware: h.hardware, victim: -1, cpus: h.cpus, memory: h.memory})
	}
	return l
}

// machineDomain is the domain of the machine itself. Two members meet on one machine only as VMs.
func (l *layout) machineDomain(s spot) int {
	if s.kind != onHost {
		return -1
	}
	if h := &l.hosts[s.index]; h.class < 0 {
		return l.domain("machine/" + l.houses[h.house].machine)
	}
	return newHostDomain + int(s.index)
}

func (l *layout) hardwareAt(s spot) *hardware {
	if s.kind == onHost {
		return &l.hw[l.hosts[s.index].hardware]
	}
	return &l.hw[l.classes[s.index].hardware]
}

func (l *layout) spreads(w int, s spot) bool {
	g := l.works[w].group
	return g < 0 || l.domainsOf(g, l.hardwareAt(s), l.machineDomain(s), func(d int) bool { return l.occupied[occupancy{g, d}] == 0 })
}

func (l *layout) mark(w int, s spot, by int) {
	if g := l.works[w].group; g >= 0 {
		l.domainsOf(g, l.hardwareAt(s), l.machineDomain(s), func(d int) bool { l.occupied[occupancy{g, d}] += by; return true })
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
	return !v.closed && x.virt && x.priority > v.victim && x.cpus <= v.cpus && x.memory <= v.memory && l.virtOn[x.demand][v.hardware] &&
		l.spreads(w, spot{onHost, int32(h)})
}

func (l *layout) putBare(w, c int) {
	l.left[c]--
	l.at[w] = spot{onBare, int32(c)}
	l.mark(w, l.at[w], 1)
}

func (l *layout) join(w, h int) {
	v := &l.hosts[h]
	v.cpus -= l.works[w].cpus
	v.memory -= l.works[w].memory
	v.vms = append(v.vms, w)
	l.at[w] = spot{onHost, int32(h)}
	l.mark(w, l.at[w], 1)
}

// remove takes a work from where it is. A host that becomes empty stays open.
func (l *layout) remove(w int) {
	s := l.at[w]
	switch s.kind {
	case nowhere:
		return
	case onBare:
		l.left[s.index]++
	case onHost:
		v := &l.hosts[s.index]
		v.cpus += l.works[w].cpus
		v.memory += l.works[w].memory
		for i, x := range v.vms {
			if x == w {
				v.vms = append(v.vms[:i], v.vms[i+1:]...)
				break
			}
		}
	}
	l.mark(w, s, -1)
	l.at[w] = spot{}
}

// open turns a machine of class c into a host and returns its number.
func (l *layout) open(c int) int {
	l.left[c]--
	h := &l.hw[l.classes[c].hardware]
	l.hosts = append(l.hosts, host{class: c, hardware: l.classes[c].hardware, victim: l.classes[c].victim, cpus: h.cpus, memory: h.memory - l.in.HostReserveMiB})
	return len(l.hosts) - 1
}

// close gives an empty host's machine back.
func (l *layout) close(h int) {
	if v := &l.hosts[h]; v.class >= 0 && !v.closed && len(v.vms) == 0 {
		v.closed = true
		l.left[v.class]++
	}
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
