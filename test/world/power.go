package world

import (
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
