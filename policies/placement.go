package policies

// Place decides where pending workloads go. It is a pure function: the same input gives the same
// placement, whatever the order of lists and maps in it.
//
// Hard constraints are architecture, firmware (bare metal), CPUs, memory, required labels, the sites of
// the networks, the ways to the volumes, the spread groups (members that run already count), what a
// machine's pools allow, and that a victim is repurposable and of strictly lower priority than everything
// that takes its machine. Evicting never cascades: a victim is not placed again.
//
// A workload that may run bare gets, in this order, a spare machine, a victim's machine, room on a
// running host, room on a host to be booted. Where machines are short, the fewest are turned into hosts
// that everything fits. When not everything fits, no workload is left out while one of lower priority
// has a place that it could take (invariant I11).
//
// Machines are targets only through a pool: spares when nothing runs on them or only a repurposable
// workload, production machines only through a repurposable workload. VMs on hosts are not evicted.
func Place(in PlacementInput) Placement {
	m := newModel(in)
	l := newLayout(m)
	l.greedy()
	l.consolidate()
	l.settle()
	l.cheapen()
	l.expand()
	l.repack()
	l.expand()
	l.settle()
	l.cheapen()
	l.unbundle()
	l.balance()
	l.displace()
	return l.explain()
}
