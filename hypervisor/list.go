package hypervisor

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

const maxVMs = 10_000 // of one host

// list is what a host says of its VMs.
type list []driver.VM

func senseless(format string, args ...any) error {
	return &fault.Error{Kind: fault.Internal, What: "the host's answer makes no sense", Evidence: fmt.Sprintf(format, args...)}
}

// check refuses a list that cannot be true. Of VMs that are not ours it asks no more than a name of its
// own and a known state.
func (l list) check() error {
	if len(l) > maxVMs {
		return senseless("%d VMs", len(l))
	}
	seen := make(map[string]bool, len(l))
	for _, vm := range l {
		switch {
		case vm.Name == "":
			return senseless("a VM without a name")
		case seen[vm.Name]:
			return senseless("VM %.80q twice", vm.Name)
		case vm.State != driver.StateDefined && vm.State != driver.StateRunning:
			return senseless("VM %.80q is %.80q", vm.Name, vm.State)
		}
		seen[vm.Name] = true
		if vm.Epoch == 0 {
			continue
		}
		switch {
		case vm.Spec.Name != vm.Name || !strings.EqualFold(vm.Spec.UUID, vm.UUID):
			return senseless("VM %.80q with UUID %.80q is defined as %.80q with UUID %.80q", vm.Name, vm.UUID, vm.Spec.Name, vm.Spec.UUID)
		case vm.Spec.Epoch > vm.Epoch:
			return senseless("VM %.80q of epoch %d is defined with epoch %d", vm.Name, vm.Epoch, vm.Spec.Epoch)
		}
		if err := vm.Spec.Validate(); err != nil {
			return senseless("VM %.80q: %v", vm.Name, err)
		}
	}
	return nil
}

func (l list) find(name string) (driver.VM, bool) {
	if i := slices.IndexFunc(l, func(vm driver.VM) bool { return vm.Name == name }); i >= 0 {
		return l[i], true
	}
	return driver.VM{}, false
}

// allows refuses acts on what is not ours, and those that a newer run has overtaken.
func (l list) allows(a act) error {
	vm, ok := l.find(a.name)
	switch {
	case !ok:
		return nil
	case vm.Epoch == 0:
		return &fault.Error{Kind: fault.Unsafe, Evidence: "the VM of this name is not ours",
			Next: "look at the host, and rename or remove that VM there"}
	case vm.Epoch > a.epoch:
		return refuse(fault.Stale, fmt.Sprintf("epoch %d, the VM has %d", a.epoch, vm.Epoch))
	}
	return nil
}

// unique refuses an identity that another VM of the host has, ours or not.
func (l list) unique(s driver.Spec) error {
	for _, vm := range l {
		if what := s.Shares(vm); vm.Name != s.Name && what != "" {
			return refuse(fault.Conflict, fmt.Sprintf("VM %.80q has %s", vm.Name, what))
		}
	}
	return nil
}

// defined says in what the host does not have exactly this definition.
func (l list) defined(s driver.Spec) string {
	vm, ok := l.find(s.Name)
	switch {
	case !ok:
		return "it is not there"
	case !vm.Spec.Equal(s):
		asked, _ := json.Marshal(s.Public()) // a plain struct
		got, _ := json.Marshal(vm.Spec.Public())
		return fmt.Sprintf("%s was asked, %s reads back", asked, got)
	}
	return ""
}

func plausible(c driver.Capacity) error {
	switch {
	case c.CPUs < 1 || c.CPUs > driver.MaxCPUs || c.MemoryMiB < 1 || c.MemoryMiB > driver.MaxMemoryMiB:
		return senseless("%d CPUs and %d MiB", c.CPUs, c.MemoryMiB)
	case c.FreeCPUs < 0 || c.FreeCPUs > c.CPUs || c.FreeMemory < 0 || c.FreeMemory > c.MemoryMiB:
		return senseless("%d of %d CPUs and %d of %d MiB are free", c.FreeCPUs, c.CPUs, c.FreeMemory, c.MemoryMiB)
	}
	return nil
}
