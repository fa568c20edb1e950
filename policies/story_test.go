package policies

import (
	"os"
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
)

// burned is an example in the state after its rack-a burned: everything else is at home.
func burned(t testing.TB, dir string) PlacementInput {
	t.Helper()
	top, err := topology.LoadFS(os.DirFS("../examples"), dir)
	if err != nil {
		t.Fatal(err)
	}
	in := PlacementInput{Topology: top, Running: map[string]Where{}, Unusable: map[string]string{}, BootHosts: true, HostReserveMiB: 2048}
	for name, w := range top.Workloads {
		if w.Spec.Home == "" {
			continue
		}
		if top.Machines[w.Spec.Home].Spec.Rack == "rack-a" {
			in.Pending = append(in.Pending, name)
			in.Unusable[w.Spec.Home] = "burned"
		} else {
			in.Running[name] = Where{Machine: w.Spec.Home}
		}
	}
	return in
}

// The story the product is for: twenty workloads, ten machines, eight of them bare, two as hosts of six.
func TestPlaceExampleStory(t *testing.T) {
	in := burned(t, "story")
	p := Place(in)
	vms := map[string]int{}
	bare := 0
	for _, a := range p.Assignments {
		if a.VM {
			vms[a.Machine]++
		} else {
			bare++
		}
	}
	if bare != 8 || len(p.NewHosts) != 2 || len(p.LeftOut) != 0 {
		t.Fatalf("%d bare, hosts %v, left out %v", bare, vms, p.LeftOut)
	}
	for h, n := range vms {
		if n != 6 {
			t.Errorf("%s hosts %d", h, n)
		}
	}
	if wrong := auditPlacement(in, p); len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
	for _, e := range p.Evictions {
		if !in.Topology.Workloads[e.Workload].Spec.Repurposable {
			t.Errorf("%+v", e)
		}
	}
	if testing.Verbose() {
		show(t, p)
	}
}

// With six machines not everything fits; what is left out is the least important, with its reason.
func TestPlaceExampleStoryScarce(t *testing.T) {
	in := burned(t, "story-scarce")
	p := Place(in)
	if len(p.LeftOut) == 0 || len(p.Assignments)+len(p.LeftOut) != 20 {
		t.Fatalf("%d placed, left out %v", len(p.Assignments), p.LeftOut)
	}
	if wrong := auditPlacement(in, p); len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
	for _, l := range p.LeftOut {
		if l.Constraint == "" || !strings.ContainsAny(l.Reason, "0123456789") {
			t.Errorf("%+v does not say what binds it", l)
		}
	}
	if testing.Verbose() {
		show(t, p)
	}
}

func show(t *testing.T, p Placement) {
	for _, a := range p.Assignments {
		t.Logf("%-8s %-4s vm=%-5v %s", a.Workload, a.Machine, a.VM, a.Reason)
	}
	for _, h := range p.NewHosts {
		t.Logf("host %s: %s", h.Machine, h.Reason)
	}
	for _, e := range p.Evictions {
		t.Logf("evict %s from %s for %s: %s", e.Workload, e.Machine, e.For, e.Reason)
	}
	for _, l := range p.LeftOut {
		t.Logf("left out %s (%s): %s", l.Workload, l.Constraint, l.Reason)
	}
}

func BenchmarkPlaceStory(b *testing.B) {
	in := burned(b, "story")
	for b.Loop() {
		Place(in)
	}
}
