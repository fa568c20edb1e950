package pxe

import (
	"hash/maphash"
	"maps"
	"sync"
	"sync/atomic"
)

const shards = 256

// cow is a map read without a lock and written by copying one of its 256 parts: a write to a table of
// 10,000 machines copies about 40 entries.
type cow[K comparable, V any] struct {
	seed  maphash.Seed
	parts [shards]struct {
		mu sync.Mutex
		m  atomic.Pointer[map[K]V]
	}
}

func newCow[K comparable, V any]() *cow[K, V] { return &cow[K, V]{seed: maphash.MakeSeed()} }

func (c *cow[K, V]) part(k K) *struct {
	mu sync.Mutex
	m  atomic.Pointer[map[K]V]
} {
	return &c.parts[maphash.Comparable(c.seed, k)%shards]
}

func (c *cow[K, V]) get(k K) (v V, ok bool) {
	if m := c.part(k).m.Load(); m != nil {
		v, ok = (*m)[k]
	}
	return v, ok
}

func (c *cow[K, V]) set(k K, v V) {
	c.change(k, func(m map[K]V) { m[k] = v })
}

func (c *cow[K, V]) del(k K) {
	c.change(k, func(m map[K]V) { delete(m, k) })
}

func (c *cow[K, V]) change(k K, f func(map[K]V)) {
	p := c.part(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	next := map[K]V{}
	if old := p.m.Load(); old != nil {
		next = maps.Clone(*old)
	}
	f(next)
	p.m.Store(&next)
}
