package policies

// spreadGroup is the scopes its members ask for; all of them bind every member.
type spreadGroup struct{ machine, rack, feed bool }

// newHostDomain is the domain of the first host that is yet to be booted, apart from those of known machines.
const newHostDomain = 1 << 40

// readGroups numbers the spread groups and notes where members run already.
func (m *model) readGroups() {
	index := map[string]int{}
	for i := range m.works {
		name := m.t.Workloads[m.works[i].name].Spec.SpreadGroup
		if name == "" {
			continue
		}
		g, known := index[name]
		if !known {
			g = len(m.groups)
			index[name] = g
			m.groups = append(m.groups, spreadGroup{})
		}
		m.works[i].group = g
	}
	if len(index) == 0 {
		return
	}
	m.taken = make([][]int, len(m.groups))
	for _, w := range m.t.Workloads {
		g, known := index[w.Spec.SpreadGroup]
		if !known {
			continue
		}
		switch w.Spec.SpreadScope {
		case "machine":
			m.groups[g].machine = true
		case "powerfeed":
			m.groups[g].feed = true
		default:
			m.groups[g].rack = true
		}
	}
	for name, at := range m.in.Running {
		g, known := index[m.t.Workloads[name].Spec.SpreadGroup]
		mach, there := m.t.Machines[at.Machine]
		if !known || !there {
			continue
		}
		var h hardware
		h.rack, h.feeds = m.placeOf(mach)
		m.domainsOf(g, &h, m.domain("machine/"+at.Machine), func(d int) bool {
			m.taken[g] = append(m.taken[g], d)
			return true
		})
	}
}

// domainsOf calls f with each failure domain a member of group g would take on hardware h, until f
// says false. A rack without a declared feed stands for its feed: nothing smaller is known to differ.
func (m *model) domainsOf(g int, h *hardware, machine int, f func(domain int) bool) bool {
	s := m.groups[g]
	if s.machine && machine >= 0 && !f(machine) {
		return false
	}
	if (s.rack || s.feed && len(h.feeds) == 0) && !f(h.rack) {
		return false
	}
	if s.feed {
		for _, d := range h.feeds {
			if !f(d) {
				return false
			}
		}
	}
	return true
}
