package policies

import (
	"fmt"
	"strings"

	"rerack.dev/rerack/orchestrator/topology"
)

// Constraints of a placement beyond those of topology.Fits, which keep their own names.
const (
	ConstraintUnknown  = string(topology.ConstraintUnknown) // the workload is not declared
	ConstraintRunning  = "running"                          // it runs already: a second start would double its identity
	ConstraintSpread   = "spread"                           // another member of its spread group stands there
	ConstraintPriority = "priority"                         // only machines whose workload is as important
	ConstraintMachines = "machines"                         // machines fit, but none is left
	ConstraintHosts    = "hosts"                            // it has to be a VM, and no host has or may make room
)

// demand is what makes workloads interchangeable as far as a machine is concerned: topology.Fits gives
// the same answer for all of them. Thousands of workloads make some hundred demands.
type demand struct {
	of     string // one workload that makes it, to ask for all
	cpus   int
	memory int64 // MiB
}

// hardware is what makes machines interchangeable, apart from who uses them.
type hardware struct {
	of         string // one machine of it
	build      int    // to topology.Fits
	cpus       int
	memory     int64 // MiB
	hypervisor bool
	rack       int   // domain
	feeds      []int // domains
}

// demandKey tells apart what topology.Fits may tell apart.
func demandKey(t *topology.Topology, w topology.WorkloadSpec) string {
	var b strings.Builder
	fmt.Fprintln(&b, w.RunsOn, w.Arch, w.Firmware, w.CPUs, w.MemoryMiB, w.Image)
	for _, k := range sortedKeys(w.Requires) {
		fmt.Fprintf(&b, "%q=%q ", k, w.Requires[k])
	}
	sites, arrays := map[string]bool{}, map[string]bool{}
	for _, n := range w.Networks {
		sites[t.Networks[n.Network].Spec.Site] = true
	}
	for _, v := range w.Volumes {
		spec := t.Volumes[v.Volume].Spec
		arrays[string(spec.Protocol)+" "+spec.Array] = true
	}
	fmt.Fprintf(&b, "%q %q", sortedKeys(sites), sortedKeys(arrays))
	return b.String()
}

// machineKey tells machines apart by what topology.Fits may look at; asked are the labels that some
// workload requires. The rack is left out: it matters to Fits only by its site.
func machineKey(t *topology.Topology, m topology.Machine, asked []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %q %v", t.Racks[m.Spec.Rack].Spec.Site, m.Spec.HardwareType, m.Spec.Provisioning.Network, m.Spec.StorageAddress.IsValid())
	for i, k := range asked {
		if v, there := m.Meta.Labels[k]; there {
			fmt.Fprintf(&b, " %d=%q", i, v)
		}
	}
	fabrics := map[string]bool{}
	for _, h := range m.Spec.HBAs {
		fabrics[h.Fabric] = true
	}
	fmt.Fprintf(&b, " %q", sortedKeys(fabrics))
	return b.String()
}

// askedLabels are the label keys that the pending workloads require.
func askedLabels(t *topology.Topology, pending []string) []string {
	keys := map[string]bool{}
	for _, w := range pending {
		for k := range t.Workloads[w].Spec.Requires {
			keys[k] = true
		}
	}
	return sortedKeys(keys)
}

// match asks once for each demand and each build of machine.
func (m *model) match() {
	m.bareOn, m.virtOn = make([][]bool, len(m.demands)), make([][]bool, len(m.demands))
	for i, d := range m.demands {
		bare, virt := make([]bool, len(m.builds)), make([]bool, len(m.builds))
		for j, machine := range m.builds {
			bare[j] = len(m.t.Fits(d.of, machine)) == 0
			virt[j] = len(m.t.FitsVM(d.of, machine, 0)) == 0
		}
		m.bareOn[i], m.virtOn[i] = make([]bool, len(m.hw)), make([]bool, len(m.hw))
		for j := range m.hw {
			m.bareOn[i][j] = bare[m.hw[j].build]
			m.virtOn[i][j] = virt[m.hw[j].build]
		}
	}
	m.bareClasses, m.virtClasses = make([][]int32, len(m.demands)), make([][]int32, len(m.demands))
	for i := range m.demands {
		for c := range m.classes {
			if m.bareOn[i][m.classes[c].hardware] {
				m.bareClasses[i] = append(m.bareClasses[i], int32(c))
			}
			if m.virtOn[i][m.classes[c].hardware] {
				m.virtClasses[i] = append(m.virtClasses[i], int32(c))
			}
		}
	}
}

// gib writes MiB for people.
func gib(mib int64) string {
	if mib%1024 == 0 {
		return fmt.Sprintf("%d GiB", mib/1024)
	}
	return fmt.Sprintf("%.1f GiB", float64(mib)/1024)
}

// poolUse is what a machine may be used for, "" when no pool offers it.
func poolUse(t *topology.Topology, machine string) topology.PoolUse {
	if len(t.PoolsOf(machine)) == 0 {
		return ""
	}
	return t.UseOf(machine)
}
