package policies

import (
	"cmp"
	"math/rand/v2"
	"slices"
)

// repacking tries other sets of hosts: it empties a few that could take each other's VMs, packs those
// again into as little as possible, gives machines that became free to works that have no place, and
// keeps the result unless it is worse. The choices come from a generator with a fixed start, so that the
// same input gives the same placement.
type repacking struct {
	*layout
	rng   *rand.Rand
	price []float64 // by class: what a machine of it is worth to others
	drift int       // steps accepted since the prices were computed
}

// repackEffort bounds repacking: about a second of one core.
const repackEffort = 90_000_000

// repack runs a number of steps that depends on the input only.
func (l *layout) repack() {
	r := &repacking{layout: l, rng: rand.New(rand.NewPCG(1, 2))}
	open, limit := r.open(), l.effort+repackEffort
	if len(open) == 0 {
		return
	}
	r.price = l.worth()
	for steps := min(3000, 200+20*len(open)); steps > 0 && len(open) > 0 && l.effort < limit; steps-- {
		r.step(open)
		open = r.open()
	}
}

func (r *repacking) open() []int {
	var out []int
	for h := range r.hosts {
		if len(r.hosts[h].vms) > 0 {
			out = append(out, h)
		}
	}
	return out
}

func (r *repacking) step(open []int) {
	mark, before := len(r.journal), r.score.clone()
	var pool []int
	for _, h := range r.related(open) {
		for _, w := range slices.Clone(r.hosts[h].vms) {
			r.remove(w)
			pool = append(pool, w)
		}
		r.close(h)
	}
	for _, w := range r.missing() {
		if r.works[w].virt && r.at[w].kind == nowhere && !slices.Contains(pool, w) {
			pool = append(pool, w)
		}
	}
	r.fill(pool)
	r.cover(pool)
	if r.score.hosts < before.hosts || r.score.evicted < before.evicted {
		r.settle()
	}
	if r.score.compare(before) < 0 {
		r.rollback(mark)
		return
	}
	r.compact()
	if r.drift++; r.drift > 50 {
		r.drift, r.price = 0, r.worth()
	}
}

// related picks a host and a few others that would take many of its VMs.
func (r *repacking) related(open []int) []int {
	first := open[r.rng.IntN(len(open))]
	type mate struct{ host, shared int }
	var mates []mate
	for range min(12, len(open)-1) {
		h := open[r.rng.IntN(len(open))]
		if h == first || slices.ContainsFunc(mates, func(m mate) bool { return m.host == h }) {
			continue
		}
		n := 0
		for _, w := range r.hosts[first].vms {
			if r.virtOn[r.works[w].demand][r.hosts[h].hardware] {
				n++
			}
		}
		if n > 0 {
			mates = append(mates, mate{h, n})
		}
	}
	slices.SortStableFunc(mates, func(a, b mate) int { return cmp.Compare(b.shared, a.shared) })
	out := []int{first}
	for _, m := range mates[:min(len(mates), 1+r.rng.IntN(4))] {
		out = append(out, m.host)
	}
	return out
}

// fill puts what it can of the pool on hosts that are open, the most important and the largest first.
func (r *repacking) fill(pool []int) {
	size := func(w int) float64 {
		return (float64(r.works[w].cpus) + float64(r.works[w].memory)/4096) * (0.8 + 0.4*r.rng.Float64())
	}
	sizes := map[int]float64{}
	for _, w := range pool {
		sizes[w] = size(w)
	}
	slices.SortFunc(pool, func(a, b int) int {
		return cmp.Or(cmp.Compare(r.works[b].priority, r.works[a].priority), cmp.Compare(sizes[b], sizes[a]), cmp.Compare(a, b))
	})
	for _, w := range pool {
		if h := r.bestHost(w); h >= 0 {
			r.join(w, h)
		}
	}
}

// cover opens hosts for what is left of the pool, each time the one that takes the most for its price.
func (r *repacking) cover(pool []int) {
	if !r.in.BootHosts {
		return
	}
	for i, w := range pool {
		if r.at[w].kind != nowhere {
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(pool[i:]), func(x int) bool { return r.at[x].kind != nowhere })
		best, bestValue, bestPack := -1, 0.0, []int(nil)
		r.effort += len(r.virtClasses[r.works[w].demand])
		for _, k := range r.virtClasses[r.works[w].demand] {
			c := int(k)
			if r.left[c] <= 0 || !r.allowsHost(w, c) || !r.spreads(w, spot{onBare, int32(c)}) {
				continue
			}
			vms := r.pack(c, w, rest)
			value := 0.0
			for _, x := range vms {
				value += float64(r.works[x].cpus) + float64(r.works[x].memory)/4096
			}
			value *= (0.7 + 0.6*r.rng.Float64()) / (max(r.classes[c].cost, r.price[c]) + 0.3)
			if value > bestValue {
				best, bestValue, bestPack = c, value, vms
			}
		}
		if best < 0 {
			continue
		}
		h := r.layout.open(best)
		for _, x := range bestPack {
			r.join(x, h)
		}
	}
}
