package policies

import "math"

// expand boots further hosts for works that have no place, even on machines that others use: where
// many VMs come back for one bare work of the same importance that has to move or to wait.
func (l *layout) expand() {
	if !l.in.BootHosts {
		return
	}
	refused := map[int]bool{}
	for {
		var waiting []int
		for _, w := range l.missing() {
			if l.works[w].virt {
				waiting = append(waiting, w)
			}
		}
		if len(waiting) == 0 {
			return
		}
		c := l.chains(math.MaxInt)
		best, bestGain, bestPack := -1, 0.0, []int(nil)
		for k := range l.classes {
			if math.IsInf(c.cost[k], 1) || refused[k] || !l.hw[l.classes[k].hardware].hypervisor {
				continue
			}
			vms := l.pack(k, -1, waiting)
			gain := -c.cost[k]
			for _, w := range vms {
				gain += l.works[w].weight
			}
			if gain > bestGain {
				best, bestGain, bestPack = k, gain, vms
			}
		}
		if best < 0 {
			return
		}
		if !l.hostOn(c, best, bestPack) {
			refused[best] = true
		}
	}
}

// hostOn frees a machine of class k by its chain and boots it as a host for the works, if that is better
// in the end.
func (l *layout) hostOn(c *chain, k int, vms []int) bool {
	mark, before := len(l.journal), l.score.clone()
	if _, ok := l.free(c, k); ok && l.left[k] > 0 {
		h := l.open(k)
		for _, w := range vms {
			if l.canJoin(w, h) { // a chain may have moved one of its spread group here
				l.join(w, h)
			}
		}
		l.settle()
		if l.score.compare(before) > 0 {
			return true
		}
	}
	l.rollback(mark)
	return false
}
