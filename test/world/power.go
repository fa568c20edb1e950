package world

import (
	"maps"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

type machine struct {
	spec    topology.MachineSpec
	on      bool
	wasOn   bool // when mains was lost
	broken  bool // mains is there, but the power supplies are gone: it cannot be turned on
	gone    bool // this one machine's mains is gone
	burned  bool // stood in a domain that burned, and runs nothing newer since
	managed bool // its BMC's network works
	lie     bool // the BMC reports off whatever is true
	restore Restore
	boot    uint64 // counts power-ons
	presses Presses
	host    bool // runs a hypervisor
	runs    map[string]*Run
	vms     map[string]VM
}

// Restore is what a machine does when mains power returns.
type Restore string

const (
	RestoreLast Restore = ""    // as it was before
	RestoreOn   Restore = "on"  // always on
	RestoreOff  Restore = "off" // stays off
)

// Presses counts what a machine's power button was told.
type Presses struct {
	On  int `json:"on"`
	Off int `json:"off"`
}

// Power is the state of one machine's power and controller.
type Power struct {
	Mains     bool    `json:"mains"`
	On        bool    `json:"on"`        // the truth
	Reported  bool    `json:"reported"`  // what its BMC says
	Reachable bool    `json:"reachable"` // its BMC has power and a network
	Boot      uint64  `json:"boot"`      // counts power-ons: names one life of the machine
	Restore   Restore `json:"restore,omitempty"`
	Presses   Presses `json:"presses"`
}

// PowerAct is one power-off by a controller, with what ran on the machine at that moment.
type PowerAct struct {
	At       time.Time `json:"at"`
	Machine  string    `json:"machine"`
	By       string    `json:"by"`
	Runs     []Run     `json:"runs,omitempty"`
	Burned   bool      `json:"burned"`
	Attested bool      `json:"attested"`
}

// Power reads the power of a machine. An unknown machine has none.
func (w *World) Power(name string) Power {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[name]
	if m == nil {
		return Power{}
	}
	mains := w.mains(m)
	return Power{Mains: mains, On: m.on, Reported: m.on && !m.lie, Reachable: mains && m.managed,
		Boot: m.boot, Restore: m.restore, Presses: m.presses}
}

// Press does what a BMC does when it is told to turn its machine on or off; by names the protocol or
// person. Pressing what is already so changes nothing and is no act.
func (w *World) Press(name string, on bool, by string) error {
	return w.change(func() error {
		m := w.machines[name]
		if m == nil {
			return missing("machine", name)
		}
		if !w.mains(m) {
			return &fault.Error{Kind: fault.Unreachable, Where: "machine " + name, What: "press power", Evidence: "no mains"}
		}
		if on {
			m.presses.On++
			w.turnOn(name, m)
			return nil
		}
		m.presses.Off++
		if m.on {
			w.judgePowerOff(name, m, by)
			w.turnOff(name, m)
		}
		return nil
	})
}

// Halt turns a machine off from within: its operating system shut down.
func (w *World) Halt(name string) error {
	return w.change(func() error {
		m := w.machines[name]
		if m == nil {
			return missing("machine", name)
		}
		w.turnOff(name, m)
		return nil
	})
}

func (w *World) turnOn(name string, m *machine) {
	if m.on || m.broken || !w.mains(m) {
		return
	}
	m.on = true
	m.boot++
	w.machineChanged(name, m)
}

func (w *World) turnOff(name string, m *machine) {
	if !m.on {
		return
	}
	m.on, m.host = false, false
	for vm := range m.runs {
		w.endRun(name, m, vm)
	}
	clear(m.vms)
	w.machineChanged(name, m)
}

// machineChanged tells of the machine and of the carrier on its ports and fabrics.
func (w *World) machineChanged(name string, m *machine) {
	w.emit(EventMachine, name, "")
	for _, n := range m.spec.NICs {
		w.emit(EventPort, n.Switch, n.Port)
	}
	for _, h := range m.spec.HBAs {
		w.emit(EventFabric, h.Fabric, "")
	}
}

// SetRestore sets what the machine does when mains power returns.
func (w *World) SetRestore(name string, r Restore) error {
	return w.change(func() error {
		m := w.machines[name]
		if m == nil {
			return missing("machine", name)
		}
		m.restore = r
		return nil
	})
}

// SetLie makes the BMC of a machine say off whatever is true, or stop saying so.
func (w *World) SetLie(name string, lie bool) error {
	return w.change(func() error {
		m := w.machines[name]
		if m == nil {
			return missing("machine", name)
		}
		m.lie = lie
		w.emit(EventMachine, name, "")
		return nil
	})
}

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
// die. A domain is rack/x, powerfeed/x, site/x, switch/x, array/x or machine/x; a bare name is a rack.
func (w *World) Burn(domain string) error {
	return w.change(func() error {
		return w.eachMains(domain, func(thing string) { w.dark[thing] = true },
			func(_ string, m *machine) { m.gone = true },
			func(_ string, dead *bool) { *dead = true })
	})
}

// RestorePower gives a domain its mains back. Machines come back as their restore policy says.
func (w *World) RestorePower(domain string) error {
	return w.change(func() error {
		err := w.eachMains(domain, func(thing string) { delete(w.dark, thing) },
			func(_ string, m *machine) { m.gone = false },
			func(_ string, dead *bool) { *dead = false })
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
func (w *World) eachMains(domain string, thing func(string), one func(string, *machine), flag func(string, *bool)) error {
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
				flag("switch", &s.dead)
			}
		}
		for _, a := range w.arrays {
			if a.spec.Site == name {
				flag("array", &a.dead)
			}
		}
		for _, f := range w.fabrics {
			if f.spec.Site == name {
				flag("fabric", &f.dead)
			}
		}
	case "switch":
		flag(domain, &w.switches[name].dead)
	case "array":
		flag(domain, &w.arrays[name].dead)
	case "machine":
		one(name, w.machines[name])
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
