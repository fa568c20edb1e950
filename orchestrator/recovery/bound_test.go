package recovery_test

import (
	"maps"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// What a run under way fences or wires is not declared anew, and may be when the run has ended.
func TestBoundKeepsWhatARunGoesBy(t *testing.T) {
	before := &topology.Topology{
		Workloads: map[string]topology.Workload{"db": {Spec: topology.WorkloadSpec{Volumes: []topology.VolumeUse{{Volume: "v1"}}}}},
		Volumes:   map[string]topology.Volume{"v1": {Spec: topology.VolumeSpec{Array: "old"}}},
		Machines:  map[string]topology.Machine{"burned": {}, "spare": {}, "free": {}},
	}
	moved := func(change func(*topology.Topology)) *topology.Topology {
		after := &topology.Topology{Workloads: maps.Clone(before.Workloads), Volumes: maps.Clone(before.Volumes), Machines: maps.Clone(before.Machines)}
		change(after)
		return after
	}
	recabled := func(name string) *topology.Topology {
		return moved(func(t *topology.Topology) {
			t.Machines[name] = topology.Machine{Spec: topology.MachineSpec{NICs: []topology.NIC{{Switch: "tor", Port: "p9"}}}}
		})
	}
	for name, tt := range map[string]struct {
		after *topology.Topology
		says  string // nothing: it is always let through
	}{
		"volume on another array": {moved(func(t *topology.Topology) { t.Volumes["v1"] = topology.Volume{Spec: topology.VolumeSpec{Array: "new"}} }), "volume v1: run r-1 is under way"},
		"volume gone":             {moved(func(t *topology.Topology) { delete(t.Volumes, "v1") }), "volume v1: run r-1"},
		"workload":                {moved(func(t *topology.Topology) { t.Workloads["db"] = topology.Workload{} }), "workload db: run r-1"},
		"fenced machine":          {recabled("burned"), "machine burned: run r-1 fences it"},
		"claimed machine":         {recabled("spare"), "machine spare: run r-1 has claimed it"},
		"free machine":            {after: recabled("free")},
		"another machine":         {after: moved(func(t *topology.Topology) { t.Machines["new"] = topology.Machine{} })},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kv := open(t).Store
			put := func(key string, v any) {
				b, err := state.Encode(v)
				if err == nil {
					err = kv.Txn(t.Context(), store.Put(key, b))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			r := state.Run{ID: "r-1", State: state.RunRunning, Workloads: []string{"db"}}
			put(state.RunsAt+r.ID, r)
			put(state.MachinesAt+"burned", state.Machine{Machine: "burned", Fence: &state.FenceState{Run: r.ID}})
			put(state.MachinesAt+"spare", state.Machine{Machine: "spare", Claim: &state.Claim{Run: r.ID}})
			err := recovery.Bound(t.Context(), kv, before, tt.after)
			if tt.says == "" && err != nil || tt.says != "" && (!fault.Is(err, fault.Unsafe) || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("while the run is under way: %v", err)
			}
			r.State = state.RunDone
			put(state.RunsAt+r.ID, r)
			if err := recovery.Bound(t.Context(), kv, before, tt.after); err != nil {
				t.Errorf("after the run: %v", err)
			}
		})
	}
}

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
