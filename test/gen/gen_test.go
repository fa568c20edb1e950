package gen_test

import (
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/gen"
)

func TestTopology(t *testing.T) {
	for _, c := range []gen.Config{{Machines: 2}, {Machines: 100}, {Machines: 130, PerRack: 60, SparePercent: 100}, {Machines: 2000}} {
		top, err := gen.Topology(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := topology.Validate(top); err != nil {
			t.Fatalf("%+v: %.2000v", c, err)
		}
		if len(top.Machines) != c.Machines {
			t.Errorf("%+v made %d machines", c, len(top.Machines))
		}
		first, err := top.Domain("rack/" + gen.Rack(0))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range first.Machines {
			if _, ok := top.WorkloadAtHome(m); !ok {
				t.Errorf("%+v: %s of the first rack runs nothing", c, m)
			}
		}
		again, _ := gen.Topology(c)
		if !topology.Equal(top, again) {
			t.Errorf("%+v makes two topologies", c)
		}
	}
}

// TestSpares checks that the machines elsewhere are enough to take the first rack.
func TestSpares(t *testing.T) {
	top, err := gen.Topology(gen.Config{Machines: 400})
	if err != nil {
		t.Fatal(err)
	}
	free := map[topology.Arch]int{}
	for m, spec := range top.Machines {
		if _, busy := top.WorkloadAtHome(m); !busy && top.UseOf(m) == topology.UseSpare {
			free[top.HardwareTypes[spec.Spec.HardwareType].Spec.Arch]++
		}
	}
	if free[topology.X86_64] < 38 || free[topology.ARM64] < 2 {
		t.Errorf("the spares are %v", free)
	}
}

func TestConfig(t *testing.T) {
	for key, c := range map[string]gen.Config{"Machines": {Machines: 1}, "PerRack": {Machines: 9, PerRack: 61}, "SparePercent": {Machines: 9, SparePercent: -1}} {
		if _, err := gen.Topology(c); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
