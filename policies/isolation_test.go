package policies

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rerack.dev/rerack/orchestrator/topology"
)

// twoRacks is rack-a with a1, a2 and rack-b with b1, each behind its own switch below core.
func twoRacks() site {
	s := newSite()
	hw := s.hardware(8, 32)
	s.machine("a1", "rack-a", hw, "production")
	s.machine("a2", "rack-a", hw, "production")
	s.machine("b1", "rack-b", hw, "spares")
	return s
}

func (s site) nic(machine, sw, port string) {
	m := s.Machines[machine]
	m.Spec.NICs = append(slices.Clone(m.Spec.NICs), topology.NIC{Name: "eth" + port, Switch: sw, Port: port})
	s.Machines[machine] = m
}

func (s site) uplink(sw string, u topology.Uplink) {
	x := s.Switches[sw]
	x.Spec.Uplinks = append(slices.Clone(x.Spec.Uplinks), u)
	s.Switches[sw] = x
}

func (s site) protect(sw, port string) {
	x := s.Switches[sw]
	x.Spec.Protected = []string{port}
	s.Switches[sw] = x
}

func TestIsolate(t *testing.T) {
	down := func(names ...string) map[string]bool { return setOf(names) }
	cases := []struct {
		name     string
		build    func(site)
		machines []string
		dead     map[string]bool
		want     []Isolation // Impossible holds a part of the sentence
	}{
		{"live switch", nil, []string{"a1"}, nil, []Isolation{{Machine: "a1", Ports: []PortRef{{"tor-rack-a", "a1"}}}}},
		{"two NICs on two switches", func(s site) { s.nic("a1", "tor-rack-b", "x1") }, []string{"a1"}, nil,
			[]Isolation{{Machine: "a1", Ports: []PortRef{{"tor-rack-a", "a1"}, {"tor-rack-b", "x1"}}}}},
		{"dead switch, whole rack", nil, []string{"a2", "a1"}, down("tor-rack-a"),
			[]Isolation{{Machine: "a1", Ports: []PortRef{{"core", "rack-a"}}, Upstream: true}, {Machine: "a2", Ports: []PortRef{{"core", "rack-a"}}, Upstream: true}}},
		{"dead switch, half the rack", nil, []string{"a1"}, down("tor-rack-a"), []Isolation{{Machine: "a1", Impossible: "cut off a2"}}},
		{"protected access port", func(s site) { s.protect("tor-rack-a", "a1") }, []string{"a1"}, nil, []Isolation{{Machine: "a1", Impossible: "port a1 of switch tor-rack-a is protected"}}},
		{"protected far end", func(s site) { s.protect("core", "rack-a") }, []string{"a1", "a2"}, down("tor-rack-a"),
			[]Isolation{{Machine: "a1", Impossible: "protected"}, {Machine: "a2", Impossible: "protected"}}},
		{"dead switch and dead core", nil, []string{"a1", "a2"}, down("tor-rack-a", "core"), []Isolation{{Machine: "a1", Impossible: "core switch core"}, {Machine: "a2", Impossible: "core switch core"}}},
		{"everything dead and wanted", nil, []string{"a1", "a2", "b1"}, down("tor-rack-a", "tor-rack-b", "core"),
			[]Isolation{{Machine: "a1", Impossible: "core"}, {Machine: "a2", Impossible: "core"}, {Machine: "b1", Impossible: "core"}}},
		{"a switch with another machine hangs off the dead one", func(s site) {
			s.uplink("tor-rack-b", topology.Uplink{Port: "up2", Switch: "tor-rack-a", PeerPort: "down"})
		},
			[]string{"a1", "a2"}, down("tor-rack-a"), []Isolation{{Machine: "a1", Impossible: "b1 (behind switch tor-rack-b)"}, {Machine: "a2", Impossible: "behind switch"}}},
		{"a switch with wanted machines hangs off the dead one", func(s site) {
			s.uplink("tor-rack-b", topology.Uplink{Port: "up2", Switch: "tor-rack-a", PeerPort: "down"})
		},
			[]string{"a1", "a2", "b1"}, down("tor-rack-a"), []Isolation{
				{Machine: "a1", Ports: []PortRef{{"core", "rack-a"}, {"tor-rack-b", "up2"}}, Upstream: true},
				{Machine: "a2", Ports: []PortRef{{"core", "rack-a"}, {"tor-rack-b", "up2"}}, Upstream: true},
				{Machine: "b1", Ports: []PortRef{{"tor-rack-b", "b1"}}}}},
		{"two dead switches of one rack linked to each other", func(s site) {
			s.Switches["tor2"] = topology.Switch{Meta: topology.Meta{Name: "tor2"}, Spec: topology.SwitchSpec{Rack: "rack-a",
				Uplinks: []topology.Uplink{{Port: "up", Switch: "core", PeerPort: "tor2"}, {Port: "peer", Switch: "tor-rack-a", PeerPort: "peer"}}}}
			s.nic("a1", "tor2", "p1")
		}, []string{"a1", "a2"}, down("tor-rack-a", "tor2"), []Isolation{
			{Machine: "a1", Ports: []PortRef{{"core", "rack-a"}, {"core", "tor2"}}, Upstream: true},
			{Machine: "a2", Ports: []PortRef{{"core", "rack-a"}, {"core", "tor2"}}, Upstream: true}}},
		{"port shared with another machine", func(s site) { s.nic("b1", "tor-rack-a", "a1") }, []string{"a1"}, nil, []Isolation{{Machine: "a1", Impossible: "also serves b1"}}},
		{"unknown machine", nil, []string{"zz"}, nil, []Isolation{{Machine: "zz", Impossible: "not in the topology"}}},
		{"no NIC", func(s site) { m := s.Machines["a1"]; m.Spec.NICs = nil; s.Machines["a1"] = m }, []string{"a1"}, nil, []Isolation{{Machine: "a1", Impossible: "no NIC"}}},
		{"unknown switch", func(s site) { s.nic("a1", "ghost", "p") }, []string{"a1"}, nil, []Isolation{{Machine: "a1", Impossible: "ghost"}}},
		{"no uplink declared", func(s site) { x := s.Switches["tor-rack-a"]; x.Spec.Uplinks = nil; s.Switches["tor-rack-a"] = x }, []string{"a1", "a2"}, down("tor-rack-a"),
			[]Isolation{{Machine: "a1", Impossible: "no live switch"}, {Machine: "a2", Impossible: "no live switch"}}},
		{"nothing asked", nil, nil, down("tor-rack-a"), []Isolation{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := twoRacks()
			if c.build != nil {
				c.build(s)
			}
			got := Isolate(s.Topology, c.machines, c.dead)
			if len(got) != len(c.want) {
				t.Fatalf("got %+v", got)
			}
			for i := range got {
				if w := c.want[i].Impossible; w != "" && strings.Contains(got[i].Impossible, w) && len(got[i].Ports) == 0 && got[i].Machine == c.want[i].Machine {
					continue
				}
				if !reflect.DeepEqual(got[i], c.want[i]) {
					t.Errorf("got %+v, want %+v", got[i], c.want[i])
				}
			}
		})
	}
}

// TestIsolateIsComplete closes the named ports in a random network and looks with a search of its own
// whether an isolated machine still reaches another, and whether a bystander lost its way to the core.
func TestIsolateIsComplete(t *testing.T) {
	possible := 0
	rapid.Check(t, func(t *rapid.T) {
		s := newSite()
		hw := s.hardware(8, 32)
		s.Switches["core2"] = topology.Switch{Spec: topology.SwitchSpec{Site: "s1", Uplinks: []topology.Uplink{{Port: "x", Switch: "core", PeerPort: "x"}}}}
		racks := rapid.IntRange(1, 3).Draw(t, "racks")
		var names []string
		for r := range racks {
			rack := fmt.Sprintf("r%d", r)
			for i := range rapid.IntRange(1, 3).Draw(t, "machines") {
				name := fmt.Sprintf("m%d%d", r, i)
				s.machine(name, rack, hw, "spares")
				names = append(names, name)
			}
			if rapid.Bool().Draw(t, "two uplinks") {
				s.uplink("tor-"+rack, topology.Uplink{Port: "up2", Switch: "core2", PeerPort: rack})
			}
			if r > 0 && rapid.IntRange(0, 3).Draw(t, "cross link") == 0 {
				s.uplink("tor-"+rack, topology.Uplink{Port: "cross", Switch: "tor-r0", PeerPort: "cross" + rack})
			}
		}
		for _, n := range names {
			if rapid.IntRange(0, 4).Draw(t, "second NIC") == 0 {
				s.nic(n, fmt.Sprintf("tor-r%d", rapid.IntRange(0, racks-1).Draw(t, "at")), "second-"+n)
			}
		}
		dead := map[string]bool{}
		for _, sw := range sortedKeys(s.Switches) {
			dead[sw] = rapid.IntRange(0, 3).Draw(t, "dead "+sw) == 0
		}
		wanted := names
		if rapid.Bool().Draw(t, "some") {
			wanted = rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID[string]).Draw(t, "wanted")
		}
		closed := map[PortRef]bool{}
		done := map[string]bool{}
		for _, iso := range Isolate(s.Topology, wanted, dead) {
			if iso.Impossible != "" {
				continue
			}
			possible++
			done[iso.Machine] = true
			for _, p := range iso.Ports {
				if dead[p.Switch] {
					t.Fatalf("%s: port %v is on a dead switch", iso.Machine, p)
				}
				closed[p] = true
			}
		}
		in := setOf(wanted)
		for _, m := range names {
			before, after := reachable(s, m, nil), reachable(s, m, closed)
			for other := range before {
				switch {
				case done[m] && !in[other] && after[other]:
					t.Fatalf("%s is isolated but reaches %s; closed %v, dead %v", m, other, closed, dead)
				case !in[m] && !in[other] && !after[other]:
					t.Fatalf("bystander %s lost %s; closed %v", m, other, closed)
				}
			}
		}
	})
	if possible == 0 {
		t.Error("no isolation was ever possible")
	}
}

// reachable are the machines and the live cores that m has a path to; dead switches are taken to forward.
func reachable(s site, m string, closed map[PortRef]bool) map[string]bool {
	seen := map[string]bool{m: true}
	queue := []string{m}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		visit := func(n string) {
			if !seen[n] {
				seen[n] = true
				queue = append(queue, n)
			}
		}
		if mach, ok := s.Machines[at]; ok && at == m { // a machine does not forward for others
			for _, n := range mach.Spec.NICs {
				if !closed[PortRef{n.Switch, n.Port}] {
					visit(n.Switch)
				}
			}
		}
		for name, mach := range s.Machines {
			for _, n := range mach.Spec.NICs {
				if n.Switch == at && !closed[PortRef{n.Switch, n.Port}] {
					visit(name)
				}
			}
		}
		for name, sw := range s.Switches {
			for _, u := range sw.Spec.Uplinks {
				if closed[PortRef{name, u.Port}] || closed[PortRef{u.Switch, u.PeerPort}] {
					continue
				}
				if name == at {
					visit(u.Switch)
				}
				if u.Switch == at {
					visit(name)
				}
			}
		}
	}
	delete(seen, m)
	for name := range seen {
		if _, machine := s.Machines[name]; !machine && strings.HasPrefix(name, "tor") {
			delete(seen, name) // a switch of a rack that is cut off is not a bystander
		}
	}
	return seen
}
