package policies

import (
	"fmt"
	"strings"
	"testing"
)

// story is twenty workloads of a burned rack and ten machines that are left, two of them in use by
// something less important.
func story() PlacementInput {
	s := newSite()
	hw := s.hardware(16, 64)
	in := PlacementInput{Topology: s.Topology, Running: map[string]Where{}, Unusable: map[string]string{}, BootHosts: true, HostReserveMiB: 2048}
	for i := range 20 {
		burned := fmt.Sprintf("a%02d", i)
		s.machine(burned, "rack-a", hw, "production")
		in.Unusable[burned] = "burned"
		name := fmt.Sprintf("work-%02d", i)
		s.workload(name, 50+i, 2, 8)
		in.Pending = append(in.Pending, name)
	}
	for i := range 8 {
		s.machine(fmt.Sprintf("b%02d", i), "rack-b", hw, "spares")
	}
	for i := range 2 {
		m := fmt.Sprintf("c%02d", i)
		s.machine(m, "rack-c", hw, "production")
		s.workload(fmt.Sprintf("test-%d", i), 10, 8, 32, repurposable)
		in.Running[fmt.Sprintf("test-%d", i)] = Where{Machine: m}
	}
	return in
}

func TestPlaceStory(t *testing.T) {
	p := Place(story())
	vms := map[string]int{}
	bare := 0
	for _, a := range p.Assignments {
		if a.VM {
			vms[a.Machine]++
		} else {
			bare++
		}
	}
	if bare != 8 || len(vms) != 2 || len(p.NewHosts) != 2 || len(p.Evictions) != 2 || len(p.LeftOut) != 0 {
		t.Fatalf("%d bare, hosts %v, %d evictions, left out %v; want 8, 2 hosts, 2, none", bare, vms, len(p.Evictions), p.LeftOut)
	}
	for h, n := range vms {
		if n != 6 {
			t.Errorf("host %s has %d VMs, want 6", h, n)
		}
	}
	for _, a := range p.Assignments {
		if !strings.Contains(a.Reason, "8 GiB") {
			t.Errorf("%s: the reason has no numbers: %q", a.Workload, a.Reason)
		}
	}
}
