package topology

import (
	"fmt"
	"slices"
	"strings"
)

// Constraint names a hard demand of a workload on a machine.
type Constraint string

const (
	ConstraintUnknown     Constraint = "unknown" // no such workload or machine
	ConstraintRunsOn      Constraint = "runsOn"
	ConstraintArch        Constraint = "arch"
	ConstraintFirmware    Constraint = "firmware"
	ConstraintHypervisor  Constraint = "hypervisor"
	ConstraintCPU         Constraint = "cpu"
	ConstraintMemory      Constraint = "memory"
	ConstraintLabels      Constraint = "labels"
	ConstraintSite        Constraint = "site"
	ConstraintFabric      Constraint = "fabric"
	ConstraintStorage     Constraint = "storageAddress"
	ConstraintPool        Constraint = "pool"
	ConstraintMaintenance Constraint = "maintenance"
)

// Unfit is one reason why a workload cannot run on a machine.
type Unfit struct {
	Constraint Constraint `json:"constraint"`
	Reason     string     `json:"reason"`
}

// Fits lists why the workload cannot run on the bare machine, whatever runs there now; none means it can.
func (t *Topology) Fits(workload, machine string) []Unfit {
	return t.fits(workload, machine, physicalTests)
}

// FitsVM lists why the workload cannot run as the only virtual machine on the machine as a Host whose
// hypervisor keeps reserveMiB of memory for itself.
func (t *Topology) FitsVM(workload, machine string, reserveMiB int64) []Unfit {
	return t.fits(workload, machine, virtualTests(reserveMiB))
}

// fitTest is one constraint. reason is called only for a machine that fails.
type fitTest struct {
	constraint Constraint
	ok         func(*workloadFacts, *machineFacts) bool
	reason     func(*workloadFacts, *machineFacts) string
}

func (t *Topology) fits(workload, machine string, tests []fitTest) []Unfit {
	ix := t.index()
	w, m := ix.workloads[workload], ix.machines[machine]
	switch {
	case w == nil:
		return []Unfit{{ConstraintUnknown, "there is no workload " + workload}}
	case m == nil:
		return []Unfit{{ConstraintUnknown, "there is no machine " + machine}}
	}
	var out []Unfit
	for i := range tests {
		if !tests[i].ok(w, m) {
			out = append(out, Unfit{tests[i].constraint, tests[i].reason(w, m)})
		}
	}
	return out
}

// physicalTests and the tests of virtualTests are in the order in which they explain best: what can
// never change comes first.
var physicalTests = append([]fitTest{
	{ConstraintRunsOn,
		func(w *workloadFacts, _ *machineFacts) bool { return w.workload.Spec.RunsOn != Virtual },
		func(*workloadFacts, *machineFacts) string { return "it runs only as a virtual machine" }},
	archTest,
	{ConstraintFirmware,
		func(w *workloadFacts, m *machineFacts) bool {
			return w.workload.Spec.Firmware == "" || slices.Contains(m.hardware.Spec.Firmware, w.workload.Spec.Firmware)
		},
		func(w *workloadFacts, m *machineFacts) string {
			return fmt.Sprintf("needs firmware %s, the machine boots by %s", w.workload.Spec.Firmware, joined(m.hardware.Spec.Firmware))
		}},
	cpuTest,
	memoryTest(0),
}, commonTests...)

func virtualTests(reserveMiB int64) []fitTest {
	return append([]fitTest{
		{ConstraintRunsOn,
			func(w *workloadFacts, _ *machineFacts) bool { return w.workload.Spec.RunsOn != Physical },
			func(*workloadFacts, *machineFacts) string { return "it runs only on bare metal" }},
		archTest,
		{ConstraintHypervisor,
			func(_ *workloadFacts, m *machineFacts) bool { return m.hardware.Spec.Hypervisor },
			func(_ *workloadFacts, m *machineFacts) string {
				return fmt.Sprintf("hardware type %s may not run the hypervisor", m.hardware.Meta.Name)
			}},
		cpuTest,
		memoryTest(reserveMiB),
	}, commonTests...)
}

var archTest = fitTest{ConstraintArch,
	func(w *workloadFacts, m *machineFacts) bool { return w.workload.Spec.Arch == m.hardware.Spec.Arch },
	func(w *workloadFacts, m *machineFacts) string {
		return fmt.Sprintf("needs %s, the machine is %s", w.workload.Spec.Arch, m.hardware.Spec.Arch)
	}}

var cpuTest = fitTest{ConstraintCPU,
	func(w *workloadFacts, m *machineFacts) bool { return w.workload.Spec.CPUs <= m.hardware.Spec.CPUs },
	func(w *workloadFacts, m *machineFacts) string {
		return fmt.Sprintf("needs %d CPUs, the machine has %d", w.workload.Spec.CPUs, m.hardware.Spec.CPUs)
	}}

func memoryTest(reserveMiB int64) fitTest {
	return fitTest{ConstraintMemory,
		func(w *workloadFacts, m *machineFacts) bool {
			return w.workload.Spec.MemoryMiB <= m.hardware.Spec.MemoryMiB-reserveMiB
		},
		func(w *workloadFacts, m *machineFacts) string {
			if reserveMiB == 0 {
				return fmt.Sprintf("needs %d MiB, the machine has %d MiB", w.workload.Spec.MemoryMiB, m.hardware.Spec.MemoryMiB)
			}
			return fmt.Sprintf("needs %d MiB, the machine has %d MiB less %d MiB for the hypervisor",
				w.workload.Spec.MemoryMiB, m.hardware.Spec.MemoryMiB, reserveMiB)
		}}
}

// commonTests hold for bare metal and virtual machines alike: a VM reaches networks and storage through its Host.
var commonTests = []fitTest{
	{ConstraintLabels,
		func(w *workloadFacts, m *machineFacts) bool {
			return len(w.workload.Spec.Requires) == 0 || matches(w.workload.Spec.Requires, m.machine.Meta.Labels)
		},
		func(w *workloadFacts, m *machineFacts) string {
			return "needs labels the machine lacks: " + missingLabels(w.workload.Spec.Requires, m.machine.Meta.Labels)
		}},
	{ConstraintSite,
		func(w *workloadFacts, m *machineFacts) bool { return len(w.sites) == 1 && w.sites[0] == m.site },
		func(w *workloadFacts, m *machineFacts) string {
			return fmt.Sprintf("its networks are at site %s, the machine at %s", strings.Join(w.sites, ", "), m.site)
		}},
	{ConstraintFabric,
		func(w *workloadFacts, m *machineFacts) bool { return missingFabric(w, m) == "" },
		func(w *workloadFacts, m *machineFacts) string {
			return "its FC volumes are on fabric " + missingFabric(w, m) + ", where the machine has no HBA"
		}},
	{ConstraintStorage,
		func(w *workloadFacts, m *machineFacts) bool {
			return w.iscsi == "" || m.machine.Spec.StorageAddress.IsValid()
		},
		func(w *workloadFacts, _ *machineFacts) string {
			return "volume " + w.iscsi + " is reached over iSCSI, the machine has no storageAddress"
		}},
	{ConstraintPool,
		func(_ *workloadFacts, m *machineFacts) bool { return m.use != UseNone },
		func(_ *workloadFacts, m *machineFacts) string {
			return "pool " + strings.Join(m.pools, ", ") + " offers the machine for nothing"
		}},
	{ConstraintMaintenance,
		func(_ *workloadFacts, m *machineFacts) bool { return !m.machine.Spec.Maintenance },
		func(*workloadFacts, *machineFacts) string { return "the machine is in maintenance" }},
}

func missingFabric(w *workloadFacts, m *machineFacts) string {
	for _, f := range w.fabrics {
		if !m.fabrics[f] {
			return f
		}
	}
	return ""
}

func missingLabels(want, have map[string]string) string {
	var out []string
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			out = append(out, k+"="+v)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func joined[S ~string](s []S) string {
	out := make([]string, len(s))
	for i, v := range s {
		out[i] = string(v)
	}
	return strings.Join(out, ", ")
}
