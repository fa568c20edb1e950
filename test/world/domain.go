package world

import (
	"maps"
	"slices"
	"strings"
)

func (w *World) mains(m *machine) bool { return !m.gone && w.rackMains(m.spec.Rack) }

// rackMains: a rack lives while it is not dark itself and any of its feeds does.
func (w *World) rackMains(rack string) bool {
	if rack == "" {
		return true
	}
	if w.dark["rack/"+rack] {
		return false
	}
	feeds := w.topo.Racks[rack].Spec.Feeds
	for _, f := range feeds {
		if !w.dark["powerfeed/"+f] {
			return true
		}
	}
	return len(feeds) == 0
}

// Burn takes mains power from a whole failure domain: machines, controllers, switches and arrays in it
// die. A domain is rack/x, powerfeed/x, site/x, switch/x, fabric/x, array/x or machine/x; a bare name is
// a rack.
func (w *World) Burn(domain string) error {
	return w.change(func() error {
		return w.eachMains(domain, func(thing string) { w.dark[thing] = true },
			func(m *machine) { m.gone = true },
			func(dead *bool) { *dead = true })
	})
}

// RestorePower gives a domain its mains back. Machines come back as their restore policy says.
func (w *World) RestorePower(domain string) error {
	return w.change(func() error {
		err := w.eachMains(domain, func(thing string) { delete(w.dark, thing) },
			func(m *machine) { m.gone = false },
			func(dead *bool) { *dead = false })
		if err != nil {
			return err
		}
		names, _ := w.machinesOf(domain)
		for _, n := range names {
			m := w.machines[n]
			m.lie, m.broken = false, false
			if !w.mains(m) {
				continue
			}
			if m.restore == RestoreOn || m.restore == RestoreLast && m.wasOn {
				w.turnOn(n, m)
			}
			m.wasOn = false
		}
		return nil
	})
}

// HalfBurn is the fire that lies: every BMC of the domain answers off, the named machines run on, the
// others really lost their power supplies and cannot be turned on.
func (w *World) HalfBurn(domain string, running ...string) error {
	return w.change(func() error {
		names, err := w.machinesOf(domain)
		if err != nil {
			return err
		}
		for _, r := range running {
			if !slices.Contains(names, r) {
				return missing("machine in "+domain, r)
			}
		}
		for _, n := range names {
			m := w.machines[n]
			m.burned = true
			if slices.Contains(running, n) {
				m.lie = true
				w.emit(EventMachine, n, "")
				continue
			}
			m.wasOn, m.broken = m.on, true
			w.turnOff(n, m)
		}
		return nil
	})
}

// eachMains changes the mains of a domain and lets everything that depends on it follow.
func (w *World) eachMains(domain string, thing func(string), one func(*machine), flag func(*bool)) error {
	names, err := w.machinesOf(domain)
	if err != nil {
		return err
	}
	kind, name := split(domain)
	switch kind {
	case "rack", "powerfeed":
		thing(kind + "/" + name)
	case "site":
		for r, rack := range w.topo.Racks {
			if rack.Spec.Site == name {
				thing("rack/" + r)
			}
		}
		for _, s := range w.switches {
			if s.spec.Site == name {
				flag(&s.dead)
			}
		}
		for _, a := range w.arrays {
			if a.spec.Site == name {
				flag(&a.dead)
			}
		}
		for _, f := range w.fabrics {
			if f.spec.Site == name {
				flag(&f.dead)
			}
		}
	case "switch":
		flag(&w.switches[name].dead)
	case "fabric":
		flag(&w.fabrics[name].dead)
	case "array":
		flag(&w.arrays[name].dead)
	case "machine":
		one(w.machines[name])
	}
	for _, n := range names {
		m := w.machines[n]
		m.burned = m.burned || kind == "switch" || !w.mains(m)
		if !w.mains(m) {
			m.wasOn = m.wasOn || m.on
			w.turnOff(n, m)
		}
		w.machineChanged(n, m)
	}
	for _, n := range slices.Sorted(maps.Keys(w.switches)) {
		w.emit(EventSwitch, n, "")
	}
	for _, n := range slices.Sorted(maps.Keys(w.arrays)) {
		if a := w.arrays[n]; !w.arrayAlive(a) {
			w.dropSessions(n, a)
		}
		w.emit(EventArray, n, "")
	}
	for _, n := range slices.Sorted(maps.Keys(w.fabrics)) {
		w.emit(EventFabric, n, "")
	}
	return nil
}

// SetManagement cuts or restores the management network of a domain: BMCs and switch management do
// not answer, the data plane runs on.
func (w *World) SetManagement(domain string, reachable bool) error {
	return w.change(func() error {
		names, err := w.machinesOf(domain)
		if err != nil {
			return err
		}
		for _, n := range names {
			w.machines[n].managed = reachable
			w.emit(EventMachine, n, "")
		}
		kind, name := split(domain)
		for _, n := range slices.Sorted(maps.Keys(w.switches)) {
			if s := w.switches[n]; kind == "switch" && n == name || w.inDomain(kind, name, s.spec.Rack, s.spec.Site) {
				s.managed = reachable
				w.emit(EventSwitch, n, "")
			}
		}
		for _, n := range slices.Sorted(maps.Keys(w.arrays)) {
			if a := w.arrays[n]; kind == "array" && n == name || w.inDomain(kind, name, a.spec.Rack, a.spec.Site) {
				a.managed = reachable
				w.emit(EventArray, n, "")
			}
		}
		for _, n := range slices.Sorted(maps.Keys(w.fabrics)) {
			if f := w.fabrics[n]; kind == "fabric" && n == name || w.inDomain(kind, name, "", f.spec.Site) {
				f.managed = reachable
				w.emit(EventFabric, n, "")
			}
		}
		return nil
	})
}

// inDomain reports whether a thing in that rack, or in no rack of that site, stands in a domain.
func (w *World) inDomain(kind, name, rack, site string) bool {
	switch kind {
	case "rack":
		return rack == name
	case "powerfeed":
		return slices.Contains(w.topo.Racks[rack].Spec.Feeds, name)
	case "site":
		return w.topo.Racks[rack].Spec.Site == name || rack == "" && site == name
	}
	return false
}

// Machines lists the machines of a domain by name.
func (w *World) Machines(domain string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.machinesOf(domain)
}

func (w *World) machinesOf(domain string) ([]string, error) {
	kind, name := split(domain)
	known := false
	switch kind {
	case "rack":
		_, known = w.topo.Racks[name]
	case "powerfeed":
		_, known = w.topo.PowerFeeds[name]
	case "site":
		_, known = w.topo.Sites[name]
	case "switch":
		_, known = w.switches[name]
	case "fabric":
		_, known = w.fabrics[name]
	case "array":
		_, known = w.arrays[name]
	case "machine":
		_, known = w.machines[name]
	}
	if !known {
		return nil, missing("failure domain", domain)
	}
	var out []string
	for n, m := range w.machines {
		only := len(m.spec.NICs) > 0
		for _, nic := range m.spec.NICs {
			only = only && nic.Switch == name
		}
		if kind == "machine" && n == name || kind == "switch" && only || w.inDomain(kind, name, m.spec.Rack, "") {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, nil
}

func split(domain string) (kind, name string) {
	if kind, name, ok := strings.Cut(domain, "/"); ok {
		return kind, name
	}
	return "rack", domain
}
