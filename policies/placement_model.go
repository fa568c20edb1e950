package policies

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"rerack.dev/rerack/orchestrator/topology"
)

// work is one pending workload, reduced to numbers.
type work struct {
	name       string
	priority   int
	level      int     // rank of its priority
	weight     float64 // of its priority, see weigh
	bare, virt bool    // where it may run
	demand     int
	cpus       int
	memory     int64
	group      int // spread group, -1 for none
}

// class is a set of machines that are the same to every workload: the same hardware in the same place,
// and free or used by a victim of the same priority.
type class struct {
	hardware int
	victim   int     // priority of the workload to evict, -1 when free
	cost     float64 // weight of that workload
	targets  []target
}

type target struct{ machine, victim string }

// house is a machine that runs our hypervisor already.
type house struct {
	machine  string
	hardware int
	cpus     int
	memory   int64
}

// model is the placement problem: pure numbers, all in an order that does not depend on map ranges or
// on the order of the input.
type model struct {
	t       *topology.Topology
	in      PlacementInput
	works   []work // by priority, then the hardest to place first
	demands []demand
	hw      []hardware
	builds  []string // one machine of each build
	classes []class
	houses  []house
	groups  []spreadGroup
	domains map[string]int
	taken   [][]int         // by spread group: the domains where a member runs already
	bareOn  [][]bool        // demand x hardware
	virtOn  [][]bool        // demand x hardware, on an empty host
	weight  map[int]float64 // by priority
	levels  map[int]int     // priority -> rank, 0 the lowest

	bareClasses [][]int32 // by demand: the classes that meet it bare
	virtClasses [][]int32 // by demand: the classes that meet it as a host

	hwIndex, buildIndex map[string]int

	excluded map[string]string // machine -> why it is no target, for the reasons
	refused  []LeftOut         // pending workloads that are no question of room
}

func newModel(in PlacementInput) *model {
	m := &model{t: in.Topology, in: in, domains: map[string]int{}, hwIndex: map[string]int{}, buildIndex: map[string]int{},
		excluded: map[string]string{}}
	m.readWorks()
	m.readMachines()
	m.weigh()
	m.readGroups()
	m.match()
	m.order()
	return m
}

func (m *model) readWorks() {
	seen := map[string]int{}
	for _, name := range sortedKeys(setOf(m.in.Pending)) {
		w, known := m.t.Workloads[name]
		if !known {
			m.refused = append(m.refused, LeftOut{name, ConstraintUnknown, fmt.Sprintf("workload %s is not declared", name)})
			continue
		}
		if at, runs := m.in.Running[name]; runs {
			m.refused = append(m.refused, LeftOut{name, ConstraintRunning, fmt.Sprintf("workload %s runs on %s: starting it again would double its identity", name, at.Machine)})
			continue
		}
		k := demandKey(m.t, w.Spec)
		d, known := seen[k]
		if !known {
			d = len(m.demands)
			seen[k] = d
			m.demands = append(m.demands, demand{name, w.Spec.CPUs, w.Spec.MemoryMiB})
		}
		m.works = append(m.works, work{name: name, priority: w.Spec.Priority, demand: d, cpus: w.Spec.CPUs, memory: w.Spec.MemoryMiB,
			bare: w.Spec.RunsOn != topology.Virtual, virt: w.Spec.RunsOn != topology.Physical, group: -1})
	}
}

// readMachines sorts the machines into classes of targets and running hosts. What is neither is
// excluded with a reason: a machine is a target only when a pool says so and nobody needs it.
func (m *model) readMachines() {
	on := map[string][]string{}
	for _, w := range sortedKeys(m.in.Running) {
		at := m.in.Running[w].Machine
		on[at] = append(on[at], w)
	}
	classSeen, asked := map[[2]int]int{}, askedLabels(m.t, m.in.Pending)
	for _, name := range sortedKeys(m.t.Machines) {
		mach := m.t.Machines[name]
		room, isHost := m.in.Hosts[name]
		victim, why := m.usable(mach, on[name], isHost)
		if why != "" {
			m.excluded[name] = why
			continue
		}
		h := m.hardwareOf(mach, asked)
		if isHost {
			m.houses = append(m.houses, house{name, h, room.FreeCPUs, room.FreeMemory})
			continue
		}
		k := [2]int{h, -1}
		if victim != "" {
			k[1] = m.t.Workloads[victim].Spec.Priority
		}
		c, known := classSeen[k]
		if !known {
			c = len(m.classes)
			classSeen[k] = c
			m.classes = append(m.classes, class{hardware: h, victim: k[1]})
		}
		m.classes[c].targets = append(m.classes[c].targets, target{name, victim})
	}
	slices.SortStableFunc(m.classes, func(a, b class) int {
		return cmp.Or(cmp.Compare(a.victim, b.victim), cmp.Compare(m.hw[a.hardware].memory, m.hw[b.hardware].memory),
			cmp.Compare(m.hw[a.hardware].cpus, m.hw[b.hardware].cpus), cmp.Compare(a.targets[0].machine, b.targets[0].machine))
	})
}

// usable returns the workload to evict, if any, or why the machine is no target.
func (m *model) usable(mach topology.Machine, on []string, isHost bool) (victim, why string) {
	if why, marked := m.in.Unusable[mach.Meta.Name]; marked {
		return "", cmp.Or(why, "marked unusable")
	}
	if mach.Spec.Maintenance {
		return "", "in maintenance"
	}
	if _, known := m.t.HardwareTypes[mach.Spec.HardwareType]; !known {
		return "", "of an undeclared hardware type"
	}
	use := poolUse(m.t, mach.Meta.Name)
	switch {
	case use == "":
		return "", "in no pool"
	case use == topology.UseNone:
		return "", "in a pool that is never a target"
	case isHost:
		return "", ""
	case mach.Spec.Existing():
		return "", "a hypervisor of somebody else's whose room is not known"
	case len(on) > 1 || len(on) == 1 && m.in.Running[on[0]].VM:
		return "", "a host whose room is not known"
	case len(on) == 1 && !m.t.Workloads[on[0]].Spec.Repurposable:
		return "", "running a workload that is not repurposable"
	case len(on) == 1:
		return on[0], ""
	case use == topology.UseProduction:
		return "", "in production without a repurposable workload"
	}
	return "", ""
}

// hardwareOf numbers the hardware of a machine; asked are the labels that matter.
func (m *model) hardwareOf(mach topology.Machine, asked []string) int {
	name := mach.Meta.Name
	key := machineKey(m.t, mach, asked)
	k := key + "\n" + mach.Spec.Rack
	if i, known := m.hwIndex[k]; known {
		return i
	}
	b, known := m.buildIndex[key]
	if !known {
		b = len(m.builds)
		m.buildIndex[key] = b
		m.builds = append(m.builds, name)
	}
	hw := m.t.HardwareTypes[mach.Spec.HardwareType].Spec
	h := hardware{of: name, build: b, cpus: hw.CPUs, memory: hw.MemoryMiB, hypervisor: hw.Hypervisor}
	h.rack, h.feeds = m.placeOf(mach)
	m.hwIndex[k] = len(m.hw)
	m.hw = append(m.hw, h)
	return len(m.hw) - 1
}

// placeOf is the failure domains a machine stands in.
func (m *model) placeOf(mach topology.Machine) (rack int, feeds []int) {
	for _, f := range sortedKeys(setOf(m.t.Racks[mach.Spec.Rack].Spec.Feeds)) {
		feeds = append(feeds, m.domain("powerfeed/"+f))
	}
	return m.domain("rack/" + mach.Spec.Rack), feeds
}

func (m *model) domain(name string) int {
	i, known := m.domains[name]
	if !known {
		i = len(m.domains)
		m.domains[name] = i
	}
	return i
}

// weigh gives every priority that occurs a weight: three times that of the next lower one, so that one
// workload outweighs two of the level below. Beyond 30 levels the factor shrinks to stay within the
// exact range of a float64; the weights stay strictly rising.
func (m *model) weigh() {
	levels := map[int]bool{}
	for _, w := range m.works {
		levels[w.priority] = true
	}
	for _, c := range m.classes {
		if c.victim >= 0 {
			levels[c.victim] = true
		}
	}
	sorted := make([]int, 0, len(levels))
	for p := range levels {
		sorted = append(sorted, p)
	}
	slices.Sort(sorted)
	factor := 3.0
	if len(sorted) > 30 {
		factor = math.Pow(3, 30/float64(len(sorted)))
	}
	m.weight, m.levels = map[int]float64{}, map[int]int{}
	w := 1.0
	for i, p := range sorted {
		m.weight[p], m.levels[p] = w, i
		w *= factor
	}
	for i := range m.works {
		m.works[i].weight = m.weight[m.works[i].priority]
		m.works[i].level = m.levels[m.works[i].priority]
	}
	for i := range m.classes {
		if v := m.classes[i].victim; v >= 0 {
			m.classes[i].cost = m.weight[v]
		}
	}
}

// order puts the works into the order in which they are placed: the more important first, and among
// equals the one with the fewest machines to choose from, then the largest.
func (m *model) order() {
	choices := make([]int, len(m.demands))
	for i := range m.demands {
		for _, c := range m.classes {
			if m.bareOn[i][c.hardware] || m.virtOn[i][c.hardware] {
				choices[i] += len(c.targets)
			}
		}
	}
	slices.SortFunc(m.works, func(a, b work) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(choices[a.demand], choices[b.demand]),
			cmp.Compare(b.memory, a.memory), cmp.Compare(b.cpus, a.cpus), cmp.Compare(a.name, b.name))
	})
}
