package topology_test

import (
	"os"
	"slices"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
)

func load(t testing.TB, dir string) *topology.Topology {
	t.Helper()
	top, err := topology.LoadFS(os.DirFS("../../examples"), dir)
	if err != nil {
		t.Fatal(err)
	}
	return top
}

// TestStory checks that the example is the story of design.md: twenty workloads of the burning rack fit on
// the ten machines elsewhere in one way only, eight on bare metal and six on each of two hosts.
func TestStory(t *testing.T) {
	top := load(t, "story")
	burnt, err := top.Domain("rack/rack-a")
	if err != nil || len(burnt.Machines) != 20 || len(top.Machines) != 30 {
		t.Fatalf("%d machines burn of %d: %v", len(burnt.Machines), len(top.Machines), err)
	}
	var elsewhere []string
	spares, repurposable := 0, 0
	for _, m := range top.Names(topology.KindMachine) {
		if slices.Contains(burnt.Machines, m) {
			continue
		}
		elsewhere = append(elsewhere, m)
		w, busy := top.WorkloadAtHome(m)
		switch {
		case !busy && top.UseOf(m) == topology.UseSpare:
			spares++
		case busy && top.UseOf(m) == topology.UseProduction && top.Workloads[w].Spec.Repurposable:
			repurposable++
		default:
			t.Errorf("%s is neither spare nor repurposable", m)
		}
	}
	if spares != 6 || repurposable != 4 {
		t.Errorf("%d spares and %d repurposable machines, want 6 and 4", spares, repurposable)
	}
	reserve := topology.EffectivePolicy(top, "lab").Recovery.HostReserveMiB
	var bare, virtual []string
	storage := map[topology.Protocol]int{}
	arm := 0
	for _, m := range burnt.Machines {
		w, ok := top.WorkloadAtHome(m)
		if !ok {
			t.Fatalf("%s has no workload", m)
		}
		spec := top.Workloads[w].Spec
		if len(spec.Volumes) > 0 {
			storage[top.Volumes[spec.Volumes[0].Volume].Spec.Protocol]++
		}
		if spec.Arch == topology.ARM64 {
			arm++
		}
		asVM := slices.ContainsFunc(elsewhere, func(e string) bool { return len(top.FitsVM(w, e, reserve)) == 0 })
		asMetal := slices.ContainsFunc(elsewhere, func(e string) bool { return len(top.Fits(w, e)) == 0 })
		switch {
		case asVM:
			virtual = append(virtual, w)
		case asMetal:
			bare = append(bare, w)
		default:
			t.Errorf("%s fits nowhere", w)
		}
	}
	if len(bare) != 8 || len(virtual) != 12 || arm != 2 || storage[topology.FC] != 8 || storage[topology.ISCSI] != 8 {
		t.Errorf("%d only on bare metal, %d also virtual, %d arm64, storage %v", len(bare), len(virtual), arm, storage)
	}
	// Six small workloads fill a host: the seventh finds no CPU, and any six find memory.
	var cpus, memory []int
	for _, w := range virtual {
		cpus = append(cpus, top.Workloads[w].Spec.CPUs)
		memory = append(memory, int(top.Workloads[w].Spec.MemoryMiB))
	}
	slices.Sort(cpus)
	slices.Sort(memory)
	host := top.HardwareTypes["std-x86"].Spec
	if sum(cpus[:7]) <= host.CPUs || sum(cpus[6:]) > host.CPUs || int64(sum(memory[6:])) > host.MemoryMiB-reserve {
		t.Errorf("not exactly six fit one host: CPUs %v of %d, memory %v of %d", cpus, host.CPUs, memory, host.MemoryMiB-reserve)
	}
	// Six of the eight x86 machines are needed for bare metal, so no third host is possible.
	x86 := 0
	for _, m := range elsewhere {
		if top.HardwareTypes[top.Machines[m].Spec.HardwareType].Spec.Arch == topology.X86_64 {
			x86++
		}
	}
	if x86-(len(bare)-arm) != 2 {
		t.Errorf("%d x86 machines elsewhere, want 8", x86)
	}
}

func TestStoryScarce(t *testing.T) {
	full, scarce := load(t, "story"), load(t, "story-scarce")
	if len(scarce.Machines) != 26 {
		t.Errorf("%d machines, want 26", len(scarce.Machines))
	}
	for _, c := range topology.Diff(full, scarce) {
		if c.Op != topology.OpRemove {
			t.Errorf("%s %s is not the story's: %+v", c.Kind, c.Name, c.Fields)
		}
	}
}

func sum(n []int) (total int) {
	for _, i := range n {
		total += i
	}
	return total
}
