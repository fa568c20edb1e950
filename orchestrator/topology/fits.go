package topology

import (
	"fmt"
	"slices"
	"strings"
)

// Constraint names a hard demand of a workload on a machine.
type Constraint string

const (
	ConstraintUnknown      Constraint = "unknown" // no such workload or machine
	ConstraintRunsOn       Constraint = "runsOn"
	ConstraintArch         Constraint = "arch"
	ConstraintFirmware     Constraint = "firmware"
	ConstraintSecureBoot   Constraint = "secureBoot"
	ConstraintHypervisor   Constraint = "hypervisor"
	ConstraintCPUs         Constraint = "cpus"
	ConstraintMemory       Constraint = "memory"
	ConstraintLabels       Constraint = "labels"
	ConstraintNetwork      Constraint = "network"
	ConstraintVolume       Constraint = "volume"
	ConstraintProvisioning Constraint = "provisioning"
	ConstraintPool         Constraint = "pool"
	ConstraintMaintenance  Constraint = "maintenance"
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

// The tests are in the order in which they explain best: what can never change comes first.
// hardwareTests ask what the machine is, offerTests whether it may be taken.
var (
	hardwareTests = append([]fitTest{
		{ConstraintRunsOn,
			func(w *workloadFacts, _ *machineFacts) bool { return w.workload.Spec.RunsOn != Virtual },
			func(*workloadFacts, *machineFacts) string { return "it runs only as a virtual machine" }},
		archTest,
		{ConstraintFirmware,
			func(w *workloadFacts, m *machineFacts) bool {
				return len(w.firmware) == 0 || slices.ContainsFunc(w.firmware, func(f Firmware) bool { return slices.Contains(m.hardware.Spec.Firmware, f) })
			},
			func(w *workloadFacts, m *machineFacts) string {
				return fmt.Sprintf("needs firmware %s, the machine boots by %s", joined(w.firmware), joined(m.hardware.Spec.Firmware))
			}},
		{ConstraintSecureBoot,
			func(w *workloadFacts, m *machineFacts) bool {
				return !m.hardware.Spec.SecureBoot || w.image == "" || w.image.Signed()
			},
			func(w *workloadFacts, m *machineFacts) string {
				return fmt.Sprintf("boots an image of type %s, the machine starts signed kernels and EFI binaries only", w.image)
			}},
		cpuTest,
		memoryTest(0),
	}, reachTests...)
	physicalTests = append(slices.Clone(hardwareTests), offerTests...)
)

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
		{ConstraintProvisioning,
			func(_ *workloadFacts, m *machineFacts) bool { return m.machine.Spec.Provisioning.Network != "" },
			func(*workloadFacts, *machineFacts) string {
				return "the machine has no provisioning network to boot the hypervisor on"
			}},
	}, append(slices.Clone(reachTests), offerTests...)...)
}

var archTest = fitTest{ConstraintArch,
	func(w *workloadFacts, m *machineFacts) bool { return w.workload.Spec.Arch == m.hardware.Spec.Arch },
	func(w *workloadFacts, m *machineFacts) string {
		return fmt.Sprintf("needs %s, the machine is %s", w.workload.Spec.Arch, m.hardware.Spec.Arch)
	}}

var cpuTest = fitTest{ConstraintCPUs,
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

// reachTests hold for bare metal and virtual machines alike: a VM reaches networks and storage through its Host.
var reachTests = []fitTest{
	{ConstraintLabels,
		func(w *workloadFacts, m *machineFacts) bool {
			return len(w.workload.Spec.Requires) == 0 || matches(w.workload.Spec.Requires, m.machine.Meta.Labels)
		},
		func(w *workloadFacts, m *machineFacts) string {
			return "needs labels the machine lacks: " + missingLabels(w.workload.Spec.Requires, m.machine.Meta.Labels)
		}},
	{ConstraintNetwork,
		func(w *workloadFacts, m *machineFacts) bool { return len(w.sites) == 1 && w.sites[0] == m.site },
		func(w *workloadFacts, m *machineFacts) string {
			return fmt.Sprintf("its networks are at site %s, the machine at %s", strings.Join(w.sites, ", "), m.site)
		}},
	{ConstraintVolume,
		func(w *workloadFacts, m *machineFacts) bool { return w.unreached(m) == nil },
		func(w *workloadFacts, m *machineFacts) string {
			v := w.unreached(m)
			switch {
			case v.protocol == FC:
				return fmt.Sprintf("volume %s is on fabric %s, where the machine has no HBA", v.name, strings.Join(v.fabrics, ", "))
			case v.site != m.site:
				return fmt.Sprintf("volume %s is at site %s, the machine at %s", v.name, v.site, m.site)
			}
			return fmt.Sprintf("volume %s is reached over iSCSI, the machine has no storageAddress", v.name)
		}},
}

var offerTests = []fitTest{
	{ConstraintPool,
		func(_ *workloadFacts, m *machineFacts) bool { return m.use != UseNone },
		func(_ *workloadFacts, m *machineFacts) string {
			return "pool " + strings.Join(m.pools, ", ") + " offers the machine for nothing"
		}},
	{ConstraintMaintenance,
		func(_ *workloadFacts, m *machineFacts) bool { return !m.machine.Spec.Maintenance },
		func(*workloadFacts, *machineFacts) string { return "the machine is in maintenance" }},
}

// unreached is the first volume the machine has no way to: no HBA on any fabric of its array's targets, or
// for iSCSI no address of its own at the array's site. One path is enough; losing the other is degraded,
// not down.
func (w *workloadFacts) unreached(m *machineFacts) *volumeFacts {
	for i := range w.volumes {
		v := &w.volumes[i]
		reached := v.protocol == ISCSI && v.site == m.site && m.machine.Spec.StorageAddress.IsValid() ||
			v.protocol == FC && slices.ContainsFunc(v.fabrics, func(f string) bool { return m.fabrics[f] })
		if !reached {
			return v
		}
	}
	return nil
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
