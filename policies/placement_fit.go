package policies

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/orchestrator/topology"
)

// Names of the constraints that keep a workload from a machine.
const (
	ConstraintUnknown  = "unknown"  // the workload is not declared
	ConstraintRunning  = "running"  // it runs already: a second start would double its identity
	ConstraintRunsOn   = "runsOn"   // it must be virtual and there is no host, or the like
	ConstraintArch     = "arch"     // CPU architecture
	ConstraintFirmware = "firmware" // way to boot
	ConstraintLabels   = "labels"   // a required label
	ConstraintNetwork  = "network"  // a network is not reached
	ConstraintVolume   = "volume"   // a volume is not reached
	ConstraintMemory   = "memory"   // too little memory
	ConstraintCPUs     = "cpus"     // too few CPUs
	ConstraintSpread   = "spread"   // another member of its spread group stands there
	ConstraintPriority = "priority" // only machines whose workload is as important
	ConstraintMachines = "machines" // no machine left that fits
	ConstraintHosts    = "hosts"    // virtual only, and no host has or could make room
)

// feature is one thing a machine has or has not, and a workload needs or not. Whether a machine fits
// is a comparison of bit sets and two sizes, since ten thousand machines times two thousand workloads
// leave a few nanoseconds for each pair.
type feature struct {
	constraint string
	arg        string // arch, firmware, label as key=value, site, or a volume's way in
}

func (f feature) String() string {
	switch f.constraint {
	case ConstraintNetwork:
		return "networks of site " + f.arg
	case ConstraintVolume:
		return "storage over " + f.arg
	case ConstraintLabels:
		return "label " + f.arg
	default:
		return f.constraint + " " + f.arg
	}
}

// features numbers what the pending workloads ask for; machines are described in these terms only.
type features struct {
	list  []feature
	index map[feature]int
}

type bits []uint64

func (b bits) has(i int) bool { return i/64 < len(b) && b[i/64]>>(i%64)&1 == 1 }

func (b *bits) set(i int) {
	for len(*b) <= i/64 {
		*b = append(*b, 0)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

// within says whether all of b are in have.
func (b bits) within(have bits) bool {
	for i, w := range b {
		if i >= len(have) {
			if w != 0 {
				return false
			}
		} else if w&^have[i] != 0 {
			return false
		}
	}
	return true
}

func (fs *features) need(b *bits, constraint, arg string) {
	f := feature{constraint, arg}
	i, known := fs.index[f]
	if !known {
		i = len(fs.list)
		fs.index[f] = i
		fs.list = append(fs.list, f)
	}
	b.set(i)
}

// ways in to a volume: by the array's fabrics, or by IP within a site.
const unreachable = "no known way"

func volumeWay(t *topology.Topology, use topology.VolumeUse) string {
	v, known := t.Volumes[use.Volume]
	a, arrayKnown := t.Arrays[v.Spec.Array]
	if !known || !arrayKnown {
		return unreachable
	}
	if v.Spec.Protocol == topology.ISCSI {
		return "iscsi in site " + a.Spec.Site
	}
	fabrics := map[string]bool{}
	for _, target := range a.Spec.Targets {
		fabrics[target.Fabric] = true
	}
	if len(fabrics) == 0 {
		return unreachable
	}
	return "fc " + strings.Join(sortedKeys(fabrics), ",")
}

// needs describes a workload. Firmware is apart because it binds bare metal only: a host gives a VM
// the firmware it wants.
func (fs *features) needs(t *topology.Topology, w topology.WorkloadSpec) (always, bare bits) {
	fs.need(&always, ConstraintArch, string(w.Arch))
	if w.Firmware != "" {
		fs.need(&bare, ConstraintFirmware, string(w.Firmware))
	}
	for _, k := range sortedKeys(w.Requires) {
		fs.need(&always, ConstraintLabels, k+"="+w.Requires[k])
	}
	for _, n := range w.Networks {
		fs.need(&always, ConstraintNetwork, t.Networks[n.Network].Spec.Site)
	}
	for _, v := range w.Volumes {
		fs.need(&always, ConstraintVolume, volumeWay(t, v))
	}
	return always, bare
}

// has describes a machine in terms of the features that are asked for.
func (fs *features) has(t *topology.Topology, m topology.Machine) bits {
	var b bits
	hw := t.HardwareTypes[m.Spec.HardwareType].Spec
	sites, fabrics := reachedSites(t, m), map[string]bool{}
	for _, h := range m.Spec.HBAs {
		fabrics[h.Fabric] = true
	}
	for i, f := range fs.list {
		ok := false
		switch f.constraint {
		case ConstraintArch:
			ok = string(hw.Arch) == f.arg
		case ConstraintFirmware:
			ok = slices.Contains(hw.Firmware, topology.Firmware(f.arg))
		case ConstraintLabels:
			k, v, _ := strings.Cut(f.arg, "=")
			got, there := m.Meta.Labels[k]
			ok = there && got == v
		case ConstraintNetwork:
			ok = f.arg != "" && sites[f.arg]
		case ConstraintVolume:
			if site, ip := strings.CutPrefix(f.arg, "iscsi in site "); ip {
				ok = m.Spec.StorageAddress.IsValid() && t.Racks[m.Spec.Rack].Spec.Site == site
			} else if list, fc := strings.CutPrefix(f.arg, "fc "); fc {
				ok = slices.ContainsFunc(strings.Split(list, ","), func(s string) bool { return fabrics[s] })
			}
		}
		if ok {
			b.set(i)
		}
	}
	return b
}

// reachedSites are the sites of the switches a machine is cabled to: their VLANs can be set there.
func reachedSites(t *topology.Topology, m topology.Machine) map[string]bool {
	sites := map[string]bool{}
	for _, n := range m.Spec.NICs {
		sw, known := t.Switches[n.Switch]
		if !known {
			continue
		}
		sites[cmp.Or(t.Racks[sw.Spec.Rack].Spec.Site, sw.Spec.Site)] = true
	}
	return sites
}

// demand is what makes workloads interchangeable as far as hardware goes.
type demand struct {
	always, bare bits
	cpus         int
	memory       int64 // MiB
}

// hardware is what makes machines interchangeable, apart from who uses them.
type hardware struct {
	have       bits
	cpus       int
	memory     int64 // MiB
	hypervisor bool
	rack       int   // domain
	feeds      []int // domains
}

func (d *demand) fitsBare(h *hardware) bool {
	return d.cpus <= h.cpus && d.memory <= h.memory && d.always.within(h.have) && d.bare.within(h.have)
}

// fitsOn says whether it may be a VM on such a machine when the host has cpus and memory to give.
func (d *demand) fitsOn(h *hardware, cpus int, memory int64) bool {
	return d.cpus <= cpus && d.memory <= memory && d.always.within(h.have)
}

// misfit names the first constraint that keeps the demand from the hardware, "" when it fits.
func (d *demand) misfit(fs *features, h *hardware, bare bool, reserve int64) (constraint, detail string) {
	for i, f := range fs.list {
		if (d.always.has(i) || bare && d.bare.has(i)) && !h.have.has(i) {
			return f.constraint, f.String()
		}
	}
	switch memory := h.memory - reserve; {
	case !bare && !h.hypervisor:
		return ConstraintHosts, "a hypervisor"
	case bare && d.memory > h.memory, !bare && d.memory > memory:
		return ConstraintMemory, gib(d.memory) + " of memory"
	case d.cpus > h.cpus:
		return ConstraintCPUs, fmt.Sprintf("%d CPUs", d.cpus)
	}
	return "", ""
}

// gib writes MiB for people.
func gib(mib int64) string {
	if mib%1024 == 0 {
		return fmt.Sprintf("%d GiB", mib/1024)
	}
	return fmt.Sprintf("%.1f GiB", float64(mib)/1024)
}
