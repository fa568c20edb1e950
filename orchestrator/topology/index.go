package topology

import (
	"maps"
	"slices"
)

// Port names a switch port.
type Port struct {
	Switch string `json:"switch"`
	Port   string `json:"port"`
}

// index answers the queries. It is built once from an unchanging Topology and shares its data.
type index struct {
	machines  map[string]*machineFacts
	workloads map[string]*workloadFacts
	byPort    map[Port]string     // machine at a port
	inRack    map[string][]string // machines by rack, sorted
	homes     map[string]string   // workload by home machine
}

// machineFacts is what is asked of a machine again and again.
type machineFacts struct {
	machine  *Machine
	hardware *HardwareType
	site     string
	pools    []string
	use      PoolUse
	fabrics  map[string]bool // fabrics it has an HBA on
}

// workloadFacts is what is asked of a workload again and again.
type workloadFacts struct {
	workload *Workload
	firmware []Firmware // ways it can boot: its own demand and its image's; none means any
	image    ImageType  // empty when its image does not exist
	sites    []string   // sites of its networks, each once
	volumes  []volumeFacts
}

// volumeFacts says how a volume is reached.
type volumeFacts struct {
	name     string
	protocol Protocol
	site     string
	fabrics  []string // FC: fabrics of the array's target ports, each once
}

// index returns the one index, building it at the first call. Two callers at once may both build it;
// they build the same.
func (t *Topology) index() *index {
	if ix := t.built.Load(); ix != nil {
		return ix
	}
	ix := &index{
		machines: make(map[string]*machineFacts, len(t.Machines)), workloads: make(map[string]*workloadFacts, len(t.Workloads)),
		byPort: make(map[Port]string, len(t.Machines)), inRack: map[string][]string{}, homes: make(map[string]string, len(t.Workloads)),
	}
	for name := range t.Machines {
		ix.machines[name] = t.machineFacts(name)
		m := ix.machines[name].machine
		for _, n := range m.Spec.NICs {
			ix.byPort[Port{n.Switch, n.Port}] = name
		}
		ix.inRack[m.Spec.Rack] = append(ix.inRack[m.Spec.Rack], name)
	}
	for _, names := range ix.inRack {
		slices.Sort(names)
	}
	for name, w := range t.Workloads {
		ix.workloads[name] = t.workloadFacts(name)
		if other, taken := ix.homes[w.Spec.Home]; w.Spec.Home != "" && (!taken || name < other) {
			ix.homes[w.Spec.Home] = name
		}
	}
	t.poolFacts(ix)
	t.built.CompareAndSwap(nil, ix)
	return t.built.Load()
}

func (t *Topology) machineFacts(name string) *machineFacts {
	m := t.Machines[name]
	hw := t.HardwareTypes[m.Spec.HardwareType]
	f := &machineFacts{machine: &m, hardware: &hw, site: t.Racks[m.Spec.Rack].Spec.Site, use: UseProduction, fabrics: map[string]bool{}}
	for _, h := range m.Spec.HBAs {
		f.fabrics[h.Fabric] = true
	}
	return f
}

// poolFacts sorts the machines into their pools. The strictest use of several pools wins; a machine in no
// pool is production, so that nothing is taken that nobody offered.
func (t *Topology) poolFacts(ix *index) {
	for _, pool := range slices.Sorted(maps.Keys(t.MachinePools)) {
		spec := t.MachinePools[pool].Spec
		for _, f := range ix.machines {
			if !matches(spec.Selector, f.machine.Meta.Labels) {
				continue
			}
			if len(f.pools) == 0 || strictness(spec.Use) > strictness(f.use) {
				f.use = spec.Use
			}
			f.pools = append(f.pools, pool)
		}
	}
}

// matches reports whether labels has every pair of the selector. An empty selector selects nothing (rule F9).
func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return len(selector) > 0
}

func strictness(u PoolUse) int {
	switch u {
	case UseSpare:
		return 0
	case UseProduction:
		return 1
	case UseNone:
		return 2
	}
	return 2
}

func (t *Topology) workloadFacts(name string) *workloadFacts {
	w := t.Workloads[name]
	img := t.Images[w.Spec.Image].Spec
	f := &workloadFacts{workload: &w, firmware: img.Firmware, image: img.Type}
	if w.Spec.Firmware != "" {
		f.firmware = []Firmware{w.Spec.Firmware}
	}
	for _, a := range w.Spec.Networks {
		f.sites = append(f.sites, t.Networks[a.Network].Spec.Site)
	}
	f.sites = unique(f.sites)
	for _, u := range w.Spec.Volumes {
		v := t.Volumes[u.Volume].Spec
		a := t.Arrays[v.Array].Spec
		facts := volumeFacts{name: u.Volume, protocol: v.Protocol, site: a.Site}
		for _, target := range a.Targets {
			facts.fabrics = append(facts.fabrics, target.Fabric)
		}
		facts.fabrics = unique(facts.fabrics)
		f.volumes = append(f.volumes, facts)
	}
	return f
}

func unique(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}
