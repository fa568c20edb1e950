package policies

import "slices"

// settle finds a place for works that have none, in order, by moving others out of the way, and in the
// end at the cost of less important ones, which then look for a place themselves. Every success places
// something more important than all it drops, so it comes to an end.
func (l *layout) settle() {
	queue := l.missing()
	var c *chain
	drop := -1
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		x := &l.works[w]
		if l.at[w].kind != nowhere || !x.bare {
			continue
		}
		if c == nil || drop != x.priority {
			drop = x.priority
			c = l.chains(drop)
		}
		dropped, ok := l.follow(c, w)
		if !ok {
			continue
		}
		c = nil
		if dropped >= 0 {
			queue = append(queue, dropped)
			slices.Sort(queue) // the order of works is the order of importance
		}
	}
}

// follow places w on a machine of the class that is cheapest to free.
func (l *layout) follow(c *chain, w int) (dropped int, ok bool) {
	best := -1
	for _, k := range l.bareClasses[l.works[w].demand] {
		if c.cost[k] < l.works[w].weight && l.works[w].priority > l.classes[k].victim && (best < 0 || c.cost[k] < c.cost[best]) &&
			l.spreads(w, spot{onBare, k}) {
			best = int(k)
		}
	}
	if best < 0 {
		return -1, false
	}
	mark := len(l.journal)
	dropped, ok = l.free(c, best)
	if !ok || l.left[best] <= 0 || !l.spreads(w, spot{onBare, int32(best)}) {
		l.rollback(mark)
		return -1, false
	}
	l.putBare(w, best)
	return dropped, true
}

// cheapen moves works and hosts off the machines of important victims where others would do.
func (l *layout) cheapen() {
	for again := true; again; {
		again = false
		c := l.chains(-1)
		for k := len(l.classes) - 1; k >= 0 && l.classes[k].cost > 0; k-- {
			if c.mover[k] < 0 || c.cost[k] >= l.classes[k].cost || l.at[c.mover[k]] != (spot{onBare, int32(k)}) {
				continue
			}
			mark, before := len(l.journal), l.score.evicted
			if _, ok := l.free(c, k); ok && l.score.evicted < before {
				again = true
				c = l.chains(-1)
			} else {
				l.rollback(mark)
			}
		}
	}
}
