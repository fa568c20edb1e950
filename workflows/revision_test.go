package workflows_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
)

// elsewhere is a topology in which everything that a recovery of rack-a fences and wires is declared to be
// somewhere else: ports, networks, volumes, and the images.
func elsewhere(t *testing.T) *topology.Topology {
	top := small(t)
	for _, name := range []string{"a1", "a2", "a3", "a4"} {
		m := top.Machines[name]
		m.Spec.NICs = slices.Clone(m.Spec.NICs)
		m.Spec.NICs[0].Port = "other-" + name
		top.Machines[name] = m
	}
	for name, n := range top.Networks {
		n.Spec.VLAN += 1000
		top.Networks[name] = n
	}
	for name, v := range top.Volumes {
		if v.Spec.Protocol == topology.FC {
			v.Spec.ArrayRef += "-moved"
		} else {
			v.Spec.Target += "-moved"
		}
		top.Volumes[name] = v
	}
	img := top.Images["linux"]
	img.Spec.Kernel = top.Images["hypervisor"].Spec.Kernel
	top.Images["linux"] = img
	return top
}

// A revision is applied in the middle of a run: the run goes on with the one it was opened with, down to
// each act on each device. The next run goes by the new one.
func TestRevisionInMidRun(t *testing.T) {
	t.Parallel()
	calm := newTrial(t, small(t)).burn()
	calm.mustEnd(calm.recover(recovery.Request{}, nil))
	want := calm.journal()
	for _, at := range []string{"TakeOver#1", "FencePower#1", "PlanNetworkFence#1", "FenceSwitch(tor-a)#1", "FenceSwitch(spine)#1", "PlanStorageFence#1",
		"FenceArray(fc)#1", "JudgeFences#1", "Plan#1", "Evict#1", "PlanRewire#1", "ApplySwitch(tor-b)#1", "PrepareBoot(db)#1", "StartVM(mail)#1", "Verify(db)#1"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t)).burn()
			hit := false
			e := r.recover(recovery.Request{}, func(_ context.Context, step string, attempt int, do func() (any, error)) (any, error) {
				if step == at && attempt == 1 {
					hit = true
					r.apply(elsewhere(t))
				}
				return do()
			})
			if !hit {
				if strings.HasPrefix(at, "FenceSwitch(") {
					t.Skip("which switches close the ports is the policy's choice")
				}
				t.Fatal("the step did not happen")
			}
			r.mustEnd(e)
			if got := r.journal(); !slices.Equal(got, want) {
				t.Errorf("the devices were told\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if e.run.Revision != 1 {
				t.Errorf("the run goes by revision %d", e.run.Revision)
			}
		})
	}
}

// A spare is declared differently, or put into maintenance, while the run is under way: somebody works on it.
// It is not taken; and a workload that is not repurposable any more keeps its machine.
func TestSpareChangesInMidRun(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*topology.Topology)
		says   string
	}{
		"recabled": {func(top *topology.Topology) {
			m := top.Machines["b1"]
			m.Spec.NICs = slices.Clone(m.Spec.NICs)
			m.Spec.NICs[0].Port = "p9"
			top.Machines["b1"] = m
		}, ""},
		"in maintenance": {func(top *topology.Topology) {
			m := top.Machines["b1"]
			m.Spec.Maintenance = true
			top.Machines["b1"] = m
		}, ""},
		"gone": {func(top *topology.Topology) { delete(top.Machines, "b1") }, ""},
		"not repurposable": {func(top *topology.Topology) {
			w := top.Workloads["batch"]
			w.Spec.Repurposable = false
			top.Workloads["batch"] = w
		}, "not repurposable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t)).burn()
			e := r.recover(recovery.Request{}, func(_ context.Context, step string, attempt int, do func() (any, error)) (any, error) {
				if step == "TakeOver#1" && attempt == 1 {
					top := small(t)
					c.change(top)
					r.apply(top)
				}
				return do()
			})
			r.mustBeSound(e)
			up, _ := r.healthy([]string{"batch"})
			if name == "not repurposable" && len(up) == 0 {
				t.Error("batch had to give way although nobody allows it any more")
			}
			for _, a := range r.journal() {
				if name != "not repurposable" && strings.HasPrefix(a, "machine/b1 ") {
					t.Errorf("b1 was touched: %s", a)
				}
			}
			var says strings.Builder
			for _, x := range e.results {
				says.WriteString(x.Reason + strings.Join(x.Tried, " "))
			}
			if e.run.State != state.RunPartial || !strings.Contains(says.String(), c.says) {
				t.Errorf("%s: %s; %s", e.run.State, e.run.Reason, says.String())
			}
		})
	}
}
