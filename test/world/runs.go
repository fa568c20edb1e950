package world

import (
	"cmp"
	"slices"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Run is one workload that holds its identity somewhere: on a machine itself, or in a VM of it.
type Run struct {
	Machine  string    `json:"machine"`
	VM       string    `json:"vm,omitempty"`
	Workload string    `json:"workload"`
	Epoch    uint64    `json:"epoch"` // it was started with
	Since    time.Time `json:"since"`
	Serving  bool      `json:"serving"` // it was accepted and answers
}

// VM is a virtual machine that is powered on.
type VM struct {
	Name  string `json:"name"`
	VLANs []int  `json:"vlans"` // of its NICs
	Epoch uint64 `json:"epoch"`
}

// Life names one power-on of a machine. What an older life still does after the power went counts for
// nothing.
type Life struct {
	Machine string
	Boot    uint64
}

// Life returns the present life of a machine; ok is false while it is off.
func (w *World) Life(machine string) (Life, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.machines[machine]
	if m == nil || !m.on {
		return Life{}, false
	}
	return Life{machine, m.boot}, true
}

func (w *World) alive(l Life) (*machine, error) {
	m := w.machines[l.Machine]
	if m == nil || !m.on || m.boot != l.Boot {
		return nil, &fault.Error{Kind: fault.Unreachable, Where: "machine " + l.Machine, What: "run", Evidence: "its power is gone"}
	}
	return m, nil
}

// BecomeHost records that a machine runs a hypervisor.
func (w *World) BecomeHost(l Life) error {
	return w.change(func() error {
		m, err := w.alive(l)
		if err != nil {
			return err
		}
		m.host = true
		w.emit(EventRun, l.Machine, "")
		return nil
	})
}

// StartVM powers a VM on, StopVM off again.
func (w *World) StartVM(l Life, vm VM) error {
	return w.change(func() error {
		m, err := w.alive(l)
		if err != nil {
			return err
		}
		if !m.host {
			return &fault.Error{Kind: fault.Conflict, Where: "machine " + l.Machine, What: "start VM " + vm.Name, Evidence: "it is no host"}
		}
		w.seeEpoch(foreignKey{"vm", l.Machine, vm.Name}, vm.Epoch)
		vm.VLANs = slices.Clone(vm.VLANs)
		m.vms[vm.Name] = vm
		w.emit(EventRun, l.Machine, "")
		return nil
	})
}

// StopVM powers a VM off. A VM that is off already is fine.
func (w *World) StopVM(l Life, vm string) error {
	return w.change(func() error {
		m, err := w.alive(l)
		if err != nil {
			return nil
		}
		w.endRun(l.Machine, m, vm)
		delete(m.vms, vm)
		w.emit(EventRun, l.Machine, "")
		return nil
	})
}

// Start records that a workload took its identity in this life of a machine, or in a VM of it.
func (w *World) Start(l Life, vm, workload string, epoch uint64) error {
	return w.change(func() error {
		m, err := w.alive(l)
		if err != nil {
			return err
		}
		if _, on := m.vms[vm]; vm != "" && !on {
			return &fault.Error{Kind: fault.Unreachable, Where: "VM " + vm + " on " + l.Machine, What: "run", Evidence: "it is off"}
		}
		w.endRun(l.Machine, m, vm)
		r := &Run{Machine: l.Machine, VM: vm, Workload: workload, Epoch: epoch, Since: w.now()}
		m.runs[vm] = r
		if w.holders[workload] == nil {
			w.holders[workload] = map[runKey]*Run{}
		}
		w.holders[workload][runKey{l.Machine, vm}] = r
		if epoch > w.newest[workload] {
			w.newest[workload] = epoch
			// A machine that was given something new to run is in service again.
			m.burned = false
			delete(w.attested, l.Machine)
		}
		w.emit(EventRun, l.Machine, "")
		return nil
	})
}

// Serve records that what runs there was accepted and answers.
func (w *World) Serve(l Life, vm string, serving bool) error {
	return w.change(func() error {
		m, err := w.alive(l)
		if err != nil {
			return err
		}
		r := m.runs[vm]
		if r == nil {
			return missing("run", l.Machine+"/"+vm)
		}
		r.Serving = serving
		w.emit(EventRun, l.Machine, "")
		return nil
	})
}

func (w *World) endRun(name string, m *machine, vm string) {
	r := m.runs[vm]
	if r == nil {
		return
	}
	delete(m.runs, vm)
	delete(w.holders[r.Workload], runKey{name, vm})
	if len(w.holders[r.Workload]) == 0 {
		delete(w.holders, r.Workload)
	}
	w.emit(EventRun, name, "")
}

// Holders lists who runs a workload now.
func (w *World) Holders(workload string) []Run {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runsOf(workload)
}

func (w *World) runsOf(workload string) []Run {
	var out []Run
	for _, r := range w.holders[workload] {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Run) int {
		return cmp.Or(compare(a.Machine, b.Machine), compare(a.VM, b.VM))
	})
	return out
}

// RunReach reports whether a run's frames on a VLAN pass: its machine's do, and for a VM one of its
// NICs is on that VLAN.
func (w *World) RunReach(r Run, vlan int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runReach(r, vlan)
}

func (w *World) runReach(r Run, vlan int) bool {
	if r.VM != "" {
		m := w.machines[r.Machine]
		if m == nil || !slices.Contains(m.vms[r.VM].VLANs, vlan) {
			return false
		}
	}
	return w.reach(r.Machine, vlan)
}

// hasReach reports whether a run can do harm with its identity: on any of its networks or volumes.
func (w *World) hasReach(r Run) bool {
	spec := w.topo.Workloads[r.Workload].Spec
	for _, n := range spec.Networks {
		if w.runReach(r, w.topo.Networks[n.Network].Spec.VLAN) {
			return true
		}
	}
	for _, v := range spec.Volumes {
		if w.canWrite(r.Machine, v.Volume) {
			return true
		}
	}
	return false
}

// MachineState is everything about one machine, for people and tests.
type MachineState struct {
	Name string `json:"name"`
	Power
	Host bool  `json:"host,omitempty"`
	VMs  []VM  `json:"vms,omitempty"`
	Runs []Run `json:"runs,omitempty"`
}

// State lists all machines by name.
func (w *World) State() []MachineState {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]MachineState, 0, len(w.machines))
	for name, m := range w.machines {
		mains := w.mains(m)
		s := MachineState{Name: name, Host: m.host, Power: Power{Mains: mains, On: m.on, Reported: m.on && !m.lie,
			Reachable: mains && m.managed, Boot: m.boot, Restore: m.restore, Presses: m.presses}}
		for _, vm := range m.vms {
			s.VMs = append(s.VMs, vm)
		}
		for _, r := range m.runs {
			s.Runs = append(s.Runs, *r)
		}
		slices.SortFunc(s.VMs, func(a, b VM) int { return compare(a.Name, b.Name) })
		slices.SortFunc(s.Runs, func(a, b Run) int { return compare(a.VM, b.VM) })
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b MachineState) int { return compare(a.Name, b.Name) })
	return out
}

func compare[T cmp.Ordered](a, b T) int { return cmp.Compare(a, b) }
