package policies

import (
	"testing"

	"rerack.dev/rerack/orchestrator/topology"
)

// work finds a pending work of a layout by name.
func (l *layout) work(t *testing.T, name string) int {
	t.Helper()
	for w := range l.works {
		if l.works[w].name == name {
			return w
		}
	}
	t.Fatalf("no work %s", name)
	return -1
}

// class finds the class of a machine.
func (l *layout) class(t *testing.T, machine string) int {
	t.Helper()
	for c, k := range l.classes {
		for _, m := range k.targets {
			if m.machine == machine {
				return c
			}
		}
	}
	t.Fatalf("no class of %s", machine)
	return -1
}

// Two workloads that differ only in what their image boots by do not stand for each other.
func TestPlaceTellsImagesApart(t *testing.T) {
	s := newSite()
	hw := s.hardware(8, 32)
	uefi := s.HardwareTypes[hw]
	uefi.Spec.Firmware = []topology.Firmware{topology.UEFI}
	s.HardwareTypes[hw] = uefi
	s.machine("m1", "r", hw, "spares")
	s.machine("m2", "r", hw, "spares")
	s.workload("boots", 1, 1, 1, physical, func(w *topology.WorkloadSpec) { w.Image = "any" })
	s.workload("not", 1, 1, 1, physical, func(w *topology.WorkloadSpec) { w.Image = "bios-only" })
	p := Place(PlacementInput{Topology: s.Topology, Pending: []string{"boots", "not"}})
	if len(p.Assignments) != 1 || p.Assignments[0].Workload != "boots" || len(p.LeftOut) != 1 || p.LeftOut[0].Constraint != string(topology.ConstraintFirmware) {
		t.Errorf("%+v", p)
	}
}

// A less important member of a spread group gives way although its own machine is of no use.
func TestDisplaceFromASpreadGroup(t *testing.T) {
	s := newSite()
	s.machine("small", "r", s.hardware(2, 4), "spares")
	s.machine("large", "r", s.hardware(8, 32), "spares")
	s.workload("minor", 1, 2, 4, physical, spread("g"))
	s.workload("major", 2, 8, 32, physical, spread("g"))
	l := newLayout(newModel(PlacementInput{Topology: s.Topology, Pending: []string{"minor", "major"}}))
	minor, major := l.work(t, "minor"), l.work(t, "major")
	l.putBare(minor, l.class(t, "small"))
	if !l.displace() || l.at[major].kind != onBare || l.at[minor].kind != nowhere {
		t.Errorf("major is at %+v, minor at %+v", l.at[major], l.at[minor])
	}
}

// A member of a spread group may move within its own rack.
func TestCheapenWithinOneRack(t *testing.T) {
	s := newSite()
	hw := s.hardware(8, 32)
	s.machine("spare", "r", hw, "spares")
	s.machine("used", "r", hw, "production")
	s.workload("victim", 1, 1, 1, repurposable)
	s.workload("w", 2, 1, 1, physical, spread("g"))
	l := newLayout(newModel(PlacementInput{Topology: s.Topology, Pending: []string{"w"}, Running: map[string]Where{"victim": {Machine: "used"}}}))
	l.putBare(0, l.class(t, "used"))
	l.cheapen()
	if want := int32(l.class(t, "spare")); l.at[0] != (spot{onBare, want}) {
		t.Errorf("it stays at %+v", l.at[0])
	}
}

// Whatever was done and taken back, the layout is as before.
func TestRollback(t *testing.T) {
	in := story()
	l := newLayout(newModel(in))
	l.greedy()
	mark := len(l.journal)
	before, left := l.score.clone(), append([]int(nil), l.left...)
	at := append([]spot(nil), l.at...)
	l.consolidate()
	l.settle()
	if l.score.compare(before) <= 0 {
		t.Fatal("nothing was improved, so nothing is tested")
	}
	l.rollback(mark)
	if l.score.compare(before) != 0 || len(l.hosts) != 0 {
		t.Errorf("score %+v, was %+v; %d hosts", l.score, before, len(l.hosts))
	}
	for c := range left {
		if l.left[c] != left[c] {
			t.Errorf("class %d has %d left, had %d", c, l.left[c], left[c])
		}
	}
	for w := range at {
		if l.at[w] != at[w] {
			t.Errorf("%s is at %+v, was at %+v", l.works[w].name, l.at[w], at[w])
		}
	}
}
