package policies

import "slices"

// balance evens out the newly booted hosts, one VM at a time from the fuller to the emptier, as long
// as that lowers the larger of the two loads. A host that is packed to the brim for no need is slower
// and leaves no room for a VM that grows.
func (l *layout) balance() {
	for moves := 0; moves < 2*len(l.works); moves++ {
		if !l.balanceOnce() {
			return
		}
	}
}

func (l *layout) balanceOnce() bool {
	for from := range l.hosts {
		x := &l.hosts[from]
		if x.class < 0 || len(x.vms) < 2 {
			continue
		}
		load := 1 - l.slack(x)
		for to := range l.hosts {
			y := &l.hosts[to]
			if to == from || y.class < 0 || y.closed || l.hw[y.hardware].build != l.hw[x.hardware].build || 1-l.slack(y) >= load {
				continue
			}
			for _, w := range slices.Clone(x.vms) {
				if l.tryMove(w, from, to, load) {
					return true
				}
			}
		}
	}
	return false
}

// tryMove moves w when both hosts are less loaded than limit afterwards.
func (l *layout) tryMove(w, from, to int, limit float64) bool {
	if !l.canJoin(w, to) {
		return false
	}
	l.remove(w)
	if l.canJoin(w, to) {
		l.join(w, to)
		if 1-l.slack(&l.hosts[to]) < limit-1e-9 {
			return true
		}
		l.remove(w)
	}
	l.join(w, from)
	return false
}
