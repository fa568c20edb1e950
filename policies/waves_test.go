package policies

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rerack.dev/rerack/orchestrator/topology"
)

func after(names ...string) func(*topology.WorkloadSpec) {
	return func(w *topology.WorkloadSpec) { w.DependsOn = names }
}

func TestWaves(t *testing.T) {
	s := newSite()
	s.workload("db", 10, 1, 1)
	s.workload("dns", 90, 1, 1)
	s.workload("app", 50, 1, 1, after("db", "dns"))
	s.workload("web-a", 20, 1, 1, after("app"))
	s.workload("web-b", 20, 1, 1, after("app", "outside"))
	s.workload("loop-1", 1, 1, 1, after("loop-2"))
	s.workload("loop-2", 1, 1, 1, after("loop-3"))
	s.workload("loop-3", 1, 1, 1, after("loop-1", "db"))
	s.workload("self", 1, 1, 1, after("self"))
	s.workload("outside", 1, 1, 1)

	got, err := Waves(s.Topology, []string{"web-b", "web-a", "app", "db", "dns", "db"})
	want := [][]string{{"dns", "db"}, {"app"}, {"web-a", "web-b"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err := Waves(s.Topology, nil); err != nil || len(got) != 0 {
		t.Errorf("nothing gives %v, %v", got, err)
	}
	var cycle *CycleError
	if _, err := Waves(s.Topology, []string{"db", "loop-3", "loop-2", "loop-1"}); !errors.As(err, &cycle) || !reflect.DeepEqual(cycle.Cycle, []string{"loop-1", "loop-2", "loop-3", "loop-1"}) {
		t.Errorf("the ring is not named: %v", err)
	}
	if _, err := Waves(s.Topology, []string{"self"}); err == nil || !strings.Contains(err.Error(), "self -> self") {
		t.Errorf("got %v", err)
	}
	if _, err := Waves(s.Topology, []string{"loop-1", "loop-2"}); err != nil {
		t.Errorf("a ring that is not wholly asked for does not matter: %v", err)
	}

	if w := WaveWarnings(s.Topology, []string{"app", "web-b", "db", "dns"}, nil); len(w) != 1 || !strings.Contains(w[0], "outside") {
		t.Errorf("warnings %q", w)
	}
	if w := WaveWarnings(s.Topology, []string{"app", "web-b", "db", "dns"}, map[string]Where{"outside": {Machine: "m"}}); len(w) != 0 {
		t.Errorf("warnings %q", w)
	}
}

func TestWavesRespectEveryDependency(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSite()
		names := []string{"a", "b", "c", "d", "e", "f"}
		for _, n := range names {
			s.workload(n, rapid.IntRange(0, 3).Draw(t, "priority"), 1, 1, after(rapid.SliceOfN(rapid.SampledFrom(names), 0, 2).Draw(t, "after")...))
		}
		asked := rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID[string]).Draw(t, "asked")
		waves, err := Waves(s.Topology, asked)
		if err != nil {
			var cycle *CycleError
			if !errors.As(err, &cycle) || len(cycle.Cycle) < 2 || cycle.Cycle[0] != cycle.Cycle[len(cycle.Cycle)-1] {
				t.Fatalf("%v", err)
			}
			for i, w := range cycle.Cycle[1:] {
				if !slices.Contains(s.Workloads[cycle.Cycle[i]].Spec.DependsOn, w) {
					t.Fatalf("%v is no ring", cycle.Cycle)
				}
			}
			return
		}
		at := map[string]int{}
		for i, wave := range waves {
			if len(wave) == 0 {
				t.Fatal("an empty wave")
			}
			for _, w := range wave {
				at[w] = i + 1
			}
		}
		if len(at) != len(asked) {
			t.Fatalf("%v became %v", asked, waves)
		}
		for w, i := range at {
			for _, d := range s.Workloads[w].Spec.DependsOn {
				if at[d] >= i && at[d] > 0 {
					t.Fatalf("%s starts no later than %s in %v", w, d, waves)
				}
			}
		}
	})
}
