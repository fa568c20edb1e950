package recovery_test

import (
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

func TestBound(t *testing.T) {
	before := &topology.Topology{Workloads: map[string]topology.Workload{"db": {}, "web": {}, "home": {}, "run": {}},
		Machines: map[string]topology.Machine{"m1": {}, "m2": {}, "m3": {}, "m4": {}}}
	after := &topology.Topology{}
	at := func(m string) policies.Where { return policies.Where{Machine: m} }
	for name, tt := range map[string]struct {
		records map[string]any
		says    []string // nothing: it is let through
	}{
		"nothing is known":              {},
		"at home and never moved":       {records: map[string]any{state.LeasesAt + "home": state.Lease{Workload: "home", Epoch: 1, Holder: at("m1"), Healthy: true}}},
		"released":                      {records: map[string]any{state.LeasesAt + "db": state.Lease{Workload: "db", Epoch: 2, Run: "r-1"}}},
		"of a run that ended":           {records: map[string]any{state.RunsAt + "r-1": state.Run{ID: "r-1", State: state.RunDone, Workloads: []string{"run"}}}},
		"moved":                         {map[string]any{state.LeasesAt + "db": state.Lease{Workload: "db", Epoch: 2, Run: "r-1", Holder: at("m1")}}, []string{"workload db: run r-1 started it on m1", "machine m1: run r-1 started db on it", "workload release db"}},
		"not cut off":                   {map[string]any{state.LeasesAt + "web": state.Lease{Workload: "web", Epoch: 2, Run: "r-1", Former: at("m2")}}, []string{"workload web", "machine m2"}},
		"fenced":                        {map[string]any{state.MachinesAt + "m3": state.Machine{Machine: "m3", Fence: &state.FenceState{Run: "r-2"}}}, []string{"machine m3: run r-2 has fenced it", "machine unfence m3"}},
		"claimed":                       {map[string]any{state.MachinesAt + "m4": state.Machine{Machine: "m4", Claim: &state.Claim{Run: "r-3"}}}, []string{"machine m4: run r-3 has claimed it"}},
		"of a run that is under way":    {map[string]any{state.RunsAt + "r-4": state.Run{ID: "r-4", State: state.RunRunning, Workloads: []string{"run"}}}, []string{"workload run: run r-4 is under way"}},
		"fenced, and never declared so": {records: map[string]any{state.MachinesAt + "other": state.Machine{Machine: "other", Fence: &state.FenceState{Run: "r-2"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kv := open(t).Store
			for key, v := range tt.records {
				b, err := state.Encode(v)
				if err != nil {
					t.Fatal(err)
				}
				if err := kv.Txn(t.Context(), store.Put(key, b)); err != nil {
					t.Fatal(err)
				}
			}
			err := recovery.Bound(t.Context(), kv, before, after)
			if len(tt.says) == 0 {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !fault.Is(err, fault.Unsafe) {
				t.Fatalf("let through: %v", err)
			}
			for _, want := range tt.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
			if err := recovery.Bound(t.Context(), kv, before, before); err != nil {
				t.Errorf("what is still declared: %v", err)
			}
		})
	}
}
