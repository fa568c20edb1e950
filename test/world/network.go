package world

import (
	"slices"

	"rerack.dev/rerack/orchestrator/topology"
)

type netSwitch struct {
	spec    topology.SwitchSpec
	dead    bool
	managed bool
	ports   map[string]Port
}

// Port is what one switch port is set to.
type Port struct {
	Untagged int    `json:"untagged,omitempty"`
	Tagged   []int  `json:"tagged,omitempty"`
	Trunk    bool   `json:"trunk,omitempty"` // carries every VLAN
	Shut     bool   `json:"shut,omitempty"`  // no frame passes, whatever the VLANs
	Epoch    uint64 `json:"epoch,omitempty"` // 0: not set by Rerack
	Owner    string `json:"owner,omitempty"`
}

func (p Port) carries(vlan int) bool {
	return !p.Shut && (p.Trunk || vlan != 0 && (p.Untagged == vlan || slices.Contains(p.Tagged, vlan)))
}

func (p Port) open() bool { return !p.Shut && (p.Trunk || p.Untagged != 0 || len(p.Tagged) > 0) }

// SetPort records what a port of a switch is really set to now.
func (w *World) SetPort(sw, port string, p Port) error {
	return w.change(func() error {
		s := w.switches[sw]
		if s == nil {
			return missing("switch", sw)
		}
		p.Tagged = slices.Sorted(slices.Values(p.Tagged))
		w.seeEpoch(foreignKey{"port", sw, port}, p.Epoch)
		before := w.behind(w.cables[portKey{sw, port}])
		s.ports[port] = p
		w.judgeCut(before, "port "+port+" of switch "+sw)
		w.emit(EventPort, sw, port)
		return nil
	})
}

// behind lists the protected runs that a port may cut off: those of the machine on it, or anybody's
// when it leads to another switch.
func (w *World) behind(far end) []Run {
	if far.sw != "" {
		return w.allServing()
	}
	return w.serving(far.machine)
}

// PortState reads the settings of a port.
func (w *World) PortState(sw, port string) (Port, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.switches[sw]
	if s == nil {
		return Port{}, false
	}
	p, ok := s.ports[port]
	p.Tagged = slices.Clone(p.Tagged)
	return p, ok
}

// SwitchState says whether a switch has power and whether its management answers.
func (w *World) SwitchState(sw string) (alive, reachable bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.switches[sw]
	if s == nil {
		return false, false
	}
	alive = w.switchAlive(s)
	return alive, alive && s.managed
}

// Carrier reports whether the port sees a live far end: both ends have power. Being shut by
// configuration does not take the carrier away.
func (w *World) Carrier(sw, port string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.switches[sw]
	if s == nil || !w.switchAlive(s) {
		return false
	}
	far := w.cables[portKey{sw, port}]
	if m := w.machines[far.machine]; m != nil {
		return m.on
	}
	peer := w.switches[far.sw]
	return peer != nil && w.switchAlive(peer)
}

// Reach reports whether frames of a VLAN pass between a machine and the core: it is on, one of its
// ports carries the VLAN, and live switches lead from there to one without uplinks.
func (w *World) Reach(machine string, vlan int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reach(machine, vlan)
}

// Untagged returns the switch, port and VLAN on which a NIC's untagged frames travel now; ok is false
// when no frame gets through.
func (w *World) Untagged(machine, nic string) (sw, port string, vlan int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[machine]
	if m == nil || !m.on {
		return "", "", 0, false
	}
	for _, n := range m.spec.NICs {
		if n.Name != nic {
			continue
		}
		s := w.switches[n.Switch]
		if s == nil {
			break
		}
		vlan := s.ports[n.Port].Untagged
		return n.Switch, n.Port, vlan, vlan != 0 && w.portReach(n.Switch, n.Port, vlan)
	}
	return "", "", 0, false
}

func (w *World) reach(name string, vlan int) bool {
	m := w.machines[name]
	if m == nil || !m.on {
		return false
	}
	for _, n := range m.spec.NICs {
		if w.portReach(n.Switch, n.Port, vlan) {
			return true
		}
	}
	return false
}

// connected reports whether any frame of the machine gets through: storage traffic uses whatever VLAN
// the port gives it.
func (w *World) connected(m *machine) bool {
	if !m.on {
		return false
	}
	for _, n := range m.spec.NICs {
		s := w.switches[n.Switch]
		if s == nil {
			continue
		}
		p := s.ports[n.Port]
		if p.open() && w.toCore(n.Switch, anyVLAN, map[string]bool{}) {
			return true
		}
	}
	return false
}

func (w *World) portReach(sw, port string, vlan int) bool {
	s := w.switches[sw]
	return s != nil && s.ports[port].carries(vlan) && w.toCore(sw, vlan, map[string]bool{})
}

const anyVLAN = -1

// toCore walks live uplinks from a switch to one that has none. Both ends of a link must carry the VLAN.
func (w *World) toCore(sw string, vlan int, seen map[string]bool) bool {
	s := w.switches[sw]
	if s == nil || seen[sw] || !w.switchAlive(s) {
		return false
	}
	if len(s.spec.Uplinks) == 0 {
		return true
	}
	seen[sw] = true
	for _, u := range s.spec.Uplinks {
		peer := w.switches[u.Switch]
		if peer == nil {
			continue
		}
		near, far := s.ports[u.Port], peer.ports[u.PeerPort]
		passes := near.carries(vlan) && far.carries(vlan)
		if vlan == anyVLAN {
			passes = near.open() && far.open()
		}
		if passes && w.toCore(u.Switch, vlan, seen) {
			return true
		}
	}
	return false
}

func (w *World) switchAlive(s *netSwitch) bool { return !s.dead && w.rackMains(s.spec.Rack) }

// Connected reports whether any frame of a machine gets through to the core, on whatever VLAN.
func (w *World) Connected(machine string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[machine]
	return m != nil && w.connected(m)
}

// Carrying returns the first port of a machine on which frames of a VLAN pass, tagged or not: the way
// out for its VMs.
func (w *World) Carrying(machine string, vlan int) (sw, port string, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[machine]
	if m == nil || !m.on {
		return "", "", false
	}
	for _, n := range m.spec.NICs {
		if w.portReach(n.Switch, n.Port, vlan) {
			return n.Switch, n.Port, true
		}
	}
	return "", "", false
}
