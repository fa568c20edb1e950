package policies

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/orchestrator/topology"
)

// Isolate says per machine which switch ports to close so that it has no network left, without taking
// the network from anything else (rule F2). dead are the switches that do not answer: a port on one
// cannot be closed, so instead the switch is cut off at its neighbours, which is allowed only when
// everything behind it is to be isolated too. Protected ports are never named.
//
// The result has one entry per machine, sorted by name. An entry with Impossible set has no ports:
// half an isolation is none.
func Isolate(t *topology.Topology, machines []string, dead map[string]bool) []Isolation {
	w := newWiring(t, machines, dead)
	out := make([]Isolation, 0, len(w.wanted))
	for _, name := range sortedKeys(w.wanted) {
		out = append(out, w.isolate(name))
	}
	return out
}

// link is one cable between switches, seen from one end.
type link struct {
	peer      string
	port      string // on this side
	peerPort  string
	downwards bool // the peer declared it as its uplink: the peer is behind this switch
}

type wiring struct {
	t      *topology.Topology
	wanted map[string]bool
	dead   map[string]bool
	on     map[string][]string  // switch -> machines cabled to it
	at     map[PortRef][]string // port -> machines cabled to it
	links  map[string][]link
	cuts   map[string]cut // by dead switch
}

// cut is how a dead switch is severed from the rest.
type cut struct {
	ports      []PortRef
	impossible string
}

func newWiring(t *topology.Topology, machines []string, dead map[string]bool) *wiring {
	w := &wiring{t: t, wanted: setOf(machines), dead: dead, on: map[string][]string{},
		at: map[PortRef][]string{}, links: map[string][]link{}, cuts: map[string]cut{}}
	for _, name := range sortedKeys(t.Machines) {
		for _, n := range t.Machines[name].Spec.NICs {
			w.on[n.Switch] = append(w.on[n.Switch], name)
			p := PortRef{n.Switch, n.Port}
			w.at[p] = append(w.at[p], name)
		}
	}
	for _, name := range sortedKeys(t.Switches) {
		for _, u := range t.Switches[name].Spec.Uplinks {
			w.links[name] = append(w.links[name], link{peer: u.Switch, port: u.Port, peerPort: u.PeerPort})
			w.links[u.Switch] = append(w.links[u.Switch], link{peer: name, port: u.PeerPort, peerPort: u.Port, downwards: true})
		}
	}
	return w
}

func (w *wiring) isolate(name string) Isolation {
	iso := Isolation{Machine: name}
	fail := func(format string, args ...any) Isolation {
		return Isolation{Machine: name, Impossible: fmt.Sprintf(format, args...)}
	}
	m, known := w.t.Machines[name]
	if !known {
		return fail("machine %s is not in the topology, so its ports are not known", name)
	}
	if len(m.Spec.NICs) == 0 {
		return fail("machine %s declares no NIC, so its ports are not known", name)
	}
	for _, n := range m.Spec.NICs {
		if _, known := w.t.Switches[n.Switch]; !known {
			return fail("NIC %s is cabled to switch %s, which is not in the topology", n.Name, n.Switch)
		}
		if w.dead[n.Switch] {
			c := w.cut(n.Switch)
			if c.impossible != "" {
				return fail("%s", c.impossible)
			}
			iso.Upstream = true
			iso.Ports = append(iso.Ports, c.ports...)
			continue
		}
		p := PortRef{n.Switch, n.Port}
		if w.protected(p) {
			return fail("port %s of switch %s is protected and must not be closed", p.Port, p.Switch)
		}
		if others := w.bystanders(w.at[p]); len(others) > 0 {
			return fail("port %s of switch %s also serves %s", p.Port, p.Switch, few(others))
		}
		iso.Ports = append(iso.Ports, p)
	}
	slices.SortFunc(iso.Ports, func(a, b PortRef) int {
		return cmp.Or(cmp.Compare(a.Switch, b.Switch), cmp.Compare(a.Port, b.Port))
	})
	iso.Ports = slices.Compact(iso.Ports)
	return iso
}

// cut severs a dead switch from everything alive. Neighbours that are dead as well cannot close a port
// either, so they are severed together with it: a switch that does not answer may still forward. A dead
// switch outside any rack is never severed: routers, arrays and other sites hang on a core unseen.
func (w *wiring) cut(name string) cut {
	if c, done := w.cuts[name]; done {
		return c
	}
	island := w.reach([]string{name}, func(l link) bool { return w.dead[l.peer] })
	c := w.sever(name, island)
	for _, s := range island {
		w.cuts[s] = c
	}
	return c
}

func (w *wiring) sever(name string, island []string) cut {
	isle := setOf(island)
	for _, s := range island {
		if w.t.Switches[s].Spec.Rack == "" {
			return cut{impossible: fmt.Sprintf("switch %s does not answer, and neither does the core switch %s it leads to, which must not be cut off", name, s)}
		}
	}
	var machines, switches []string
	for _, s := range w.reach(island, func(l link) bool { return l.downwards }) {
		others := w.bystanders(w.on[s])
		machines = append(machines, others...)
		if len(others) > 0 && !isle[s] {
			switches = append(switches, s)
		}
	}
	if len(machines) > 0 {
		slices.Sort(machines)
		slices.Sort(switches)
		who := few(slices.Compact(machines))
		if len(switches) > 0 {
			who += " (behind switch " + few(switches) + ")"
		}
		return cut{impossible: fmt.Sprintf("switch %s does not answer, and cutting it off would also cut off %s", name, who)}
	}
	var ports []PortRef
	for _, s := range island {
		for _, l := range w.links[s] {
			if isle[l.peer] {
				continue
			}
			p := PortRef{l.peer, l.peerPort}
			if _, known := w.t.Switches[l.peer]; !known {
				return cut{impossible: fmt.Sprintf("switch %s does not answer, and switch %s at the far end of its link is not in the topology", s, l.peer)}
			}
			if w.protected(p) {
				return cut{impossible: fmt.Sprintf("switch %s does not answer, and port %s of switch %s towards it is protected", s, p.Port, p.Switch)}
			}
			if others := w.bystanders(w.at[p]); len(others) > 0 {
				return cut{impossible: fmt.Sprintf("switch %s does not answer, and port %s of switch %s towards it also serves %s", s, p.Port, p.Switch, few(others))}
			}
			ports = append(ports, p)
		}
	}
	if len(ports) == 0 {
		return cut{impossible: fmt.Sprintf("switch %s does not answer, and no live switch is declared at the far end of its uplinks", strings.Join(island, ", "))}
	}
	return cut{ports: ports}
}

// reach returns the switches reachable from start over links that follow allows, start included, sorted.
func (w *wiring) reach(start []string, follow func(link) bool) []string {
	seen := setOf(start)
	queue := slices.Clone(start)
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		for _, l := range w.links[s] {
			if !seen[l.peer] && follow(l) {
				seen[l.peer] = true
				queue = append(queue, l.peer)
			}
		}
	}
	return sortedKeys(seen)
}

func (w *wiring) bystanders(machines []string) []string {
	var out []string
	for _, m := range machines {
		if !w.wanted[m] {
			out = append(out, m)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (w *wiring) protected(p PortRef) bool {
	return slices.Contains(w.t.Switches[p.Switch].Spec.Protected, p.Port)
}
