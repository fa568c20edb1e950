package policies

// Place decides where pending workloads go. It is a pure function: the same input gives the same
// placement, whatever the order of lists and maps in it.
//
// Hard constraints are those of topology.Fits and FitsVM, the room of hosts, the spread groups (members
// that run already count, and the scopes of all members bind each), what a machine's pools allow, and
// that a victim is repurposable and of strictly lower priority than everything that takes its machine.
// Evicting never cascades: a victim is not placed again.
//
// A workload that may run bare gets, in this order, a spare machine, a victim's machine, room on a
// running host, room on a host to be booted. Where machines are short, the fewest are turned into hosts
// that everything fits. When not everything fits, the more important counts first, placed or evicted,
// and no workload is left out while one of lower priority has a place that it could take (invariant I11).
//
// Machines are targets only through a pool: spares when nothing runs on them or only a repurposable
// workload, production machines only through a repurposable workload. VMs on hosts are not evicted.
func Place(in PlacementInput) Placement {
	l := newLayout(newModel(in))
	l.greedy()
	l.consolidate()
	l.settle()
	l.cheapen()
	l.expand()
	l.repack()
	l.expand()
	l.settle()
	l.finish()
	return l.explain()
}

// finish brings the layout into its preferred form without placing less. What that makes room for is
// placed, which may again leave something to improve.
func (l *layout) finish() {
	for range 4 {
		l.cheapen()
		l.unbundle()
		l.tighten()
		l.balance()
		if !l.displace() {
			return
		}
	}
}
