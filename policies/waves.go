package policies

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/orchestrator/topology"
)

// CycleError names workloads that depend on each other in a ring, first and last the same.
type CycleError struct{ Cycle []string }

func (e *CycleError) Error() string {
	return "workloads depend on each other in a ring: " + strings.Join(e.Cycle, " -> ") + "; remove one dependsOn"
}

// Waves orders workloads for starting: every wave depends only on waves before it. Within a wave the
// higher priority comes first, then the name. A workload repeated in the list counts once; one that
// the topology does not know is in the first wave, since nothing is known that it waits for.
//
// Dependencies outside the list do not order anything; WaveWarnings tells which of them do not run.
// The error is a *CycleError.
func Waves(t *topology.Topology, workloads []string) ([][]string, error) {
	in := setOf(workloads)
	names := sortedKeys(in)
	level := make(map[string]int, len(names))
	// Depth-first: a workload's level is one above its deepest dependency. visiting marks the path.
	visiting := map[string]bool{}
	var path []string
	var visit func(w string) error
	visit = func(w string) error {
		if _, done := level[w]; done {
			return nil
		}
		if visiting[w] {
			return &CycleError{Cycle: append(slices.Clone(path[slices.Index(path, w):]), w)}
		}
		visiting[w] = true
		path = append(path, w)
		deepest := -1
		for _, d := range sortedKeys(setOf(t.Workloads[w].Spec.DependsOn)) {
			if !in[d] {
				continue
			}
			if err := visit(d); err != nil {
				return err
			}
			deepest = max(deepest, level[d])
		}
		path = path[:len(path)-1]
		delete(visiting, w)
		level[w] = deepest + 1
		return nil
	}
	var waves [][]string
	for _, w := range names {
		if err := visit(w); err != nil {
			return nil, err
		}
	}
	for _, w := range names {
		for len(waves) <= level[w] {
			waves = append(waves, nil)
		}
		waves[level[w]] = append(waves[level[w]], w)
	}
	for _, wave := range waves {
		slices.SortFunc(wave, func(a, b string) int {
			return cmp.Or(cmp.Compare(t.Workloads[b].Spec.Priority, t.Workloads[a].Spec.Priority), cmp.Compare(a, b))
		})
	}
	return waves, nil
}

// WaveWarnings names, in plain sentences, the dependencies of workloads that are neither in the list
// nor running: what depends on them will start without them or fail its health check.
func WaveWarnings(t *topology.Topology, workloads []string, running map[string]Where) []string {
	in := setOf(workloads)
	var out []string
	for _, w := range sortedKeys(in) {
		for _, d := range sortedKeys(setOf(t.Workloads[w].Spec.DependsOn)) {
			if _, up := running[d]; in[d] || up {
				continue
			}
			if _, known := t.Workloads[d]; !known {
				out = append(out, fmt.Sprintf("workload %s depends on %s, which is not declared", w, d))
			} else {
				out = append(out, fmt.Sprintf("workload %s depends on %s, which neither runs nor is among those to start", w, d))
			}
		}
	}
	return out
}
