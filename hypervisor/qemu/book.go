package qemu

import (
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// book is what the host knows of its machines. Machines that are not ours are in none: they are looked for
// at every call.
type book struct {
	cpus     int
	memory   int64 // MiB
	machines map[string]*machine
	epochs   map[string]uint64 // the newest act on each name; stays when the machine is gone
	draining bool
}

// machine is one that is defined.
type machine struct {
	spec    driver.Spec
	process *process // of its last start
}

// on reports whether the machine is powered. None is off.
func (m *machine) on() bool { return m != nil && m.process != nil && m.process.alive() }

func newBook(cpus int, memory int64) book {
	return book{cpus: cpus, memory: memory, machines: map[string]*machine{}, epochs: map[string]uint64{}}
}

// admit returns the machine that an act is about, nil when there is none.
func (b *book) admit(name string, epoch uint64, others []driver.VM) (*machine, error) {
	switch {
	case epoch == 0:
		return nil, refuse(fault.Invalid, "epoch 0 stands for none")
	case slices.ContainsFunc(others, func(vm driver.VM) bool { return vm.Name == name }):
		return nil, refuse(fault.Unsafe, "the VM of this name is not ours")
	case epoch < b.epochs[name]:
		return nil, refuse(fault.Stale, fmt.Sprintf("epoch %d, it has %d", epoch, b.epochs[name]))
	}
	return b.machines[name], nil
}

// mayDefine says why a machine cannot be defined so; have is what there is of its name.
func (b *book) mayDefine(have *machine, s driver.Spec, others []driver.VM) error {
	if have.on() {
		return refuse(fault.Conflict, "it is running with another definition")
	}
	if b.draining {
		return refuse(fault.Conflict, "the host is draining")
	}
	for _, vm := range b.list(others) {
		if what := s.Shares(vm); vm.Name != s.Name && what != "" {
			return refuse(fault.Conflict, "VM "+vm.Name+" has "+what)
		}
	}
	if cpus, memory := b.room(s.Name, others); s.CPUs > cpus || s.MemoryMiB > memory {
		return refuse(fault.Conflict, fmt.Sprintf("no room: %d CPUs and %d MiB, and %d and %d are free", s.CPUs, s.MemoryMiB, cpus, memory))
	}
	return nil
}

// mayStart says why a machine cannot be started; nothing speaks against one that is on.
func (b *book) mayStart(have *machine, epoch uint64) error {
	switch {
	case have == nil:
		return refuse(fault.NotFound, "it is not defined")
	case have.spec.Epoch != epoch:
		return refuse(fault.Conflict, fmt.Sprintf("it is defined with epoch %d, not %d", have.spec.Epoch, epoch))
	case b.draining && !have.on():
		return refuse(fault.Conflict, "the host is draining")
	}
	return nil
}

// room is what is left beside all machines but one.
func (b *book) room(but string, others []driver.VM) (cpus int, memory int64) {
	cpus, memory = b.cpus, b.memory
	for name, m := range b.machines {
		if name != but {
			cpus, memory = cpus-m.spec.CPUs, memory-m.spec.MemoryMiB
		}
	}
	for _, vm := range others {
		cpus, memory = cpus-vm.Spec.CPUs, memory-vm.Spec.MemoryMiB
	}
	return cpus, memory
}

func (b *book) list(others []driver.VM) []driver.VM {
	out := make([]driver.VM, 0, len(b.machines)+len(others))
	for name, m := range b.machines {
		vm := driver.VM{Name: name, UUID: m.spec.UUID, State: driver.StateDefined, Epoch: b.epochs[name], Spec: m.spec.Public()}
		if m.on() {
			vm.State = driver.StateRunning
		}
		out = append(out, vm)
	}
	out = append(out, others...)
	slices.SortFunc(out, func(x, y driver.VM) int { return strings.Compare(x.Name, y.Name) })
	return out
}
