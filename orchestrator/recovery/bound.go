package recovery

import (
	"context"
	"fmt"
	"reflect"
	"sort"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// Bound refuses a topology that no longer declares what a run has moved, fenced or claimed: the store
// would go on to say so, and nobody could act on it. It returns fault.Unsafe with all reasons at once.
// What runs at home, where nobody moved it to, may go. It also refuses to declare anew what a run that is under
// way fences or wires - its machines, its workloads, their volumes: the run goes by the revision that it was
// opened with, and would find another machine behind a port that was recabled.
func Bound(ctx context.Context, s store.Store, before, after *topology.Topology) error {
	gone := func(kind topology.Kind, name string) bool {
		_, _, had := before.Object(kind, name)
		_, _, has := after.Object(kind, name)
		return had && !has
	}
	changed := func(kind topology.Kind, name string) bool {
		_, old, had := before.Object(kind, name)
		_, now, has := after.Object(kind, name)
		return had && has && !reflect.DeepEqual(old, now)
	}
	leases, err := state.List[state.Lease](ctx, s, state.LeasesAt)
	if err != nil {
		return err
	}
	machines, err := state.List[state.Machine](ctx, s, state.MachinesAt)
	if err != nil {
		return err
	}
	runs, err := state.List[state.Run](ctx, s, state.RunsAt)
	if err != nil {
		return err
	}
	why := map[string]string{}
	live := map[string]bool{}
	for _, r := range runs {
		if r.State.Ended() {
			continue
		}
		live[r.ID] = true
		for _, w := range r.Workloads {
			until := "run " + r.ID + " is under way; wait for it or cancel it"
			if gone(topology.KindWorkload, w) || changed(topology.KindWorkload, w) {
				why["workload "+w] = until
			}
			for _, v := range before.Workloads[w].Spec.Volumes {
				if gone(topology.KindVolume, v.Volume) || changed(topology.KindVolume, v.Volume) {
					why["volume "+v.Volume] = until
				}
			}
		}
	}
	for _, l := range leases {
		at := l.LastHolder()
		if l.Run == "" || at == (policies.Where{}) {
			continue
		}
		if gone(topology.KindWorkload, l.Workload) {
			why["workload "+l.Workload] = fmt.Sprintf("run %s started it on %s; first rerack workload release %s", l.Run, at.Machine, l.Workload)
		}
		if gone(topology.KindMachine, at.Machine) {
			why["machine "+at.Machine] = fmt.Sprintf("run %s started %s on it; first rerack workload release %s", l.Run, l.Workload, l.Workload)
		}
	}
	for _, m := range machines {
		switch {
		case changed(topology.KindMachine, m.Machine) && m.Fence != nil && live[m.Fence.Run]:
			why["machine "+m.Machine] = "run " + m.Fence.Run + " fences it; wait for it or cancel it"
		case changed(topology.KindMachine, m.Machine) && m.Claim != nil && live[m.Claim.Run]:
			why["machine "+m.Machine] = "run " + m.Claim.Run + " has claimed it; wait for it or cancel it"
		case !gone(topology.KindMachine, m.Machine):
		case m.Claim != nil:
			why["machine "+m.Machine] = "run " + m.Claim.Run + " has claimed it; wait for it or cancel it"
		case m.Fence != nil:
			why["machine "+m.Machine] = fmt.Sprintf("run %s has fenced it; first rerack machine unfence %s", m.Fence.Run, m.Machine)
		}
	}
	if len(why) == 0 {
		return nil
	}
	lines := make([]string, 0, len(why))
	for what, because := range why {
		lines = append(lines, what+": "+because)
	}
	sort.Strings(lines)
	return &fault.Error{Kind: fault.Unsafe, Where: "topology", What: "it no longer declares what is in use, or declares it differently", Evidence: strings.Join(lines, "; "),
		Next: "declare it, or end its use first"}
}
