package policies

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
)

// large is a burned part of a data centre: works workloads, no two of the same size, and so many
// machines to choose from, a third of them free and the rest used by repurposable workloads.
func large(works, machines int, runsOn topology.RunsOn) PlacementInput {
	rng := rand.New(rand.NewPCG(uint64(works), uint64(machines)))
	s := newSite()
	types := []string{s.hardware(16, 64), s.hardware(32, 128), s.hardware(64, 256), s.hardware(96, 768)}
	in := PlacementInput{Topology: s.Topology, Running: map[string]Where{}, BootHosts: true, HostReserveMiB: 4096}
	for i := range machines {
		name, use := fmt.Sprintf("m%05d", i), "spares"
		if i%3 > 0 {
			use = "production"
			s.workload("v"+name, rng.IntN(100), 4, 16, repurposable)
			in.Running["v"+name] = Where{Machine: name}
		}
		s.machine(name, fmt.Sprintf("r%03d", i/40), types[rng.IntN(len(types))], use)
	}
	for i := range works {
		name := fmt.Sprintf("w%05d", i)
		s.workload(name, rng.IntN(100), 1+rng.IntN(16), 1, func(w *topology.WorkloadSpec) {
			w.MemoryMiB, w.RunsOn = 1024+int64(rng.IntN(60_000)), runsOn
			if i%4 == 0 {
				w.SpreadGroup = fmt.Sprintf("g%d", i/20)
			}
		})
		in.Pending = append(in.Pending, name)
	}
	return in
}

// The shapes of large inputs that are hard in different ways.
var shapes = []struct {
	works, machines int
	runsOn          topology.RunsOn
}{{2000, 10000, topology.Any}, {2000, 500, topology.Any}, {2000, 500, topology.Virtual}, {2000, 1000, topology.Physical}}

func TestPlaceLarge(t *testing.T) {
	for _, c := range shapes {
		in := large(c.works/20, c.machines/20, c.runsOn)
		p := Place(in)
		if wrong := auditPlacement(in, p); len(wrong) > 0 {
			t.Errorf("%d %s workloads on %d machines: %q", c.works/20, c.runsOn, c.machines/20, wrong)
		}
		t.Logf("%d %s workloads on %d machines: %d placed, %d hosts, %d evicted", c.works/20, c.runsOn, c.machines/20, len(p.Assignments), len(p.NewHosts), len(p.Evictions))
	}
}

func BenchmarkPlaceLarge(b *testing.B) {
	for _, c := range shapes {
		in := large(c.works, c.machines, c.runsOn)
		b.Run(fmt.Sprintf("%d-%s-on-%d", c.works, c.runsOn, c.machines), func(b *testing.B) {
			for b.Loop() {
				Place(in)
			}
		})
	}
}
