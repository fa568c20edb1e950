package policies

import (
	"cmp"
	"math"
	"slices"
)

// chain is what it takes to get a machine of each class free: nothing but a victim where one is left,
// or else a row of works each of which moves on to the next class, until one finds a machine left, a
// host with room, or has to be dropped.
//
// Without it, whoever is placed first blocks a machine that others need more, although another would
// have done for it as well.
type chain struct {
	cost  []float64 // weight lost: the victim's, or the dropped work's; +Inf when there is no way
	mover []int32   // work that leaves a machine of the class, -1 when one is left
	to    []spot    // where it goes; nowhere when it is dropped
}

// step is a way to free a machine of a class, to be settled in the order of cost.
type step struct {
	cost  float64
	class int32
	mover int32
	to    spot
}

// virtualCost is less than any weight: a work becomes a VM sooner than a victim is evicted for it, and
// no sooner than it finds another machine of its own.
const virtualCost = 0.25

// chains computes the cheapest chain for every class. Works of a priority below drop may be dropped, and
// with a drop of 0 or more works may become VMs on hosts with room; nothing else is lost but victims. A
// work that moves takes a machine only if it is more important than the machine's victim, like everything
// else.
func (l *layout) chains(drop int) *chain {
	n := len(l.classes)
	c := &chain{cost: make([]float64, n), mover: make([]int32, n), to: make([]spot, n)}
	var steps []step
	for k := range c.cost {
		c.cost[k] = math.Inf(1)
		c.mover[k] = -1
		if l.left[k] > 0 {
			steps = append(steps, step{cost: l.classes[k].cost, class: int32(k), mover: -1})
		}
	}
	movers := make([][]int32, len(l.demands)) // bare works by demand
	for w := range l.at {
		s := l.at[w]
		if s.kind != onBare {
			continue
		}
		x := &l.works[w]
		movers[x.demand] = append(movers[x.demand], int32(w))
		if x.priority < drop {
			steps = append(steps, step{x.weight, s.index, int32(w), spot{}})
		}
		if x.virt && drop >= 0 {
			if h := l.bestHost(w); h >= 0 {
				steps = append(steps, step{virtualCost, s.index, int32(w), spot{onHost, int32(h)}})
			}
		}
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.cost, b.cost) })
	var open []int // demands with works whose class is not settled
	for d := range movers {
		if len(movers[d]) > 0 {
			open = append(open, d)
		}
	}
	var reached []int32 // classes settled at the present cost, whose predecessors are to be settled
	for i := 0; i < len(steps) || len(reached) > 0; {
		if len(reached) == 0 {
			s := steps[i]
			i++
			if s.cost < c.cost[s.class] {
				c.cost[s.class], c.mover[s.class], c.to[s.class] = s.cost, s.mover, s.to
				reached = append(reached, s.class)
			}
			continue
		}
		k := reached[0]
		reached = reached[1:]
		hw, victim := l.classes[k].hardware, l.classes[k].victim
		l.effort += len(open)
		open = slices.DeleteFunc(open, func(d int) bool {
			list := movers[d]
			if !l.bareOn[d][hw] {
				return false
			}
			l.effort += len(list)
			kept := list[:0]
			for _, w := range list {
				from := l.at[w].index
				if c.cost[from] <= c.cost[k] {
					continue // its class is settled: it never has to move
				}
				if l.works[w].priority <= victim || !l.spreads(int(w), spot{onBare, k}) {
					kept = append(kept, w)
					continue
				}
				c.cost[from], c.mover[from], c.to[from] = c.cost[k], w, spot{onBare, k}
				reached = append(reached, from)
			}
			movers[d] = kept
			return len(kept) == 0
		})
	}
	return c
}

// free carries out the chain for class k, so that a machine of it is left, and returns the work that was
// dropped for it, -1 for none. It fails, and has changed nothing, when moving one work has closed the
// way of another.
func (l *layout) free(c *chain, k int) (dropped int, ok bool) {
	mark := len(l.journal)
	var movers []int
	var to []spot
	for c.mover[k] >= 0 {
		movers, to = append(movers, int(c.mover[k])), append(to, c.to[k])
		if c.to[k].kind != onBare {
			break
		}
		k = int(c.to[k].index)
	}
	dropped = -1
	for i, w := range slices.Backward(movers) {
		l.remove(w)
		switch s := to[i]; {
		case s.kind == nowhere:
			dropped = w
		case s.kind == onHost && l.canJoin(w, int(s.index)), s.kind == onBare && l.left[s.index] > 0 && l.spreads(w, s):
			l.put(w, s)
		default:
			l.rollback(mark)
			return -1, false
		}
	}
	return dropped, true
}

// worth is what one more machine of each class would gain: the weight of the work that would then find
// a place, or of the victim that could stay, directly or by a chain of moves.
func (l *layout) worth() []float64 {
	gain := make([]float64, len(l.classes))
	var sources []step
	seen := map[[2]int]bool{}
	for w := range l.at {
		x := &l.works[w]
		switch s := l.at[w]; {
		case s.kind == onBare && l.classes[s.index].cost > 0:
			sources = append(sources, step{cost: l.classes[s.index].cost, class: s.index, mover: -1})
		case s.kind == nowhere && x.bare && !seen[[2]int{x.demand, x.priority}]:
			seen[[2]int{x.demand, x.priority}] = true
			sources = append(sources, step{cost: x.weight, class: -1, mover: int32(w)})
		}
	}
	slices.SortStableFunc(sources, func(a, b step) int { return cmp.Compare(b.cost, a.cost) })
	bare := l.bareByClass()
	expanded := make([]bool, len(l.classes))
	var queue []int32
	reach := func(w int, v float64) {
		for _, k := range l.bareClasses[l.works[w].demand] {
			if gain[k] < v && l.works[w].priority > l.classes[k].victim {
				gain[k] = v
				queue = append(queue, k)
			}
		}
	}
	for _, s := range sources {
		if s.mover >= 0 {
			reach(int(s.mover), s.cost)
		} else {
			queue = append(queue, s.class)
		}
		for len(queue) > 0 {
			k := queue[0]
			queue = queue[1:]
			if expanded[k] {
				continue
			}
			expanded[k] = true
			for _, w := range bare[k] {
				reach(int(w), s.cost)
			}
		}
	}
	return gain
}

// bareByClass lists one work of each demand and priority that runs bare, by class.
func (l *layout) bareByClass() [][]int32 {
	out := make([][]int32, len(l.classes))
	for w, s := range l.at {
		if s.kind != onBare {
			continue
		}
		x := &l.works[w]
		if !slices.ContainsFunc(out[s.index], func(y int32) bool { return l.works[y].demand == x.demand && l.works[y].priority == x.priority }) {
			out[s.index] = append(out[s.index], int32(w))
		}
	}
	return out
}
