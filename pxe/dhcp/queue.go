package dhcp

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"rerack.dev/rerack/pxe"
)

// job is one received message on its way to a worker.
type job struct {
	buf  [MaxMessage + 1]byte // one more, to see that a message was too long
	n    int
	src  netip.AddrPort
	from *link
}

// rank is the order in which messages are answered when they must wait: machines that are booting
// before the others, and among them the second half of an exchange before the first. Under overload it
// is the exchanges that have begun which are finished; answering in order of arrival loses one half or
// the other of nearly all.
type rank uint8

const (
	bootRequest rank = iota
	bootOther
	otherRequest
	other
	ranks
)

func rankOf(booting, request bool) rank {
	switch {
	case booting && request:
		return bootRequest
	case booting:
		return bootOther
	case request:
		return otherRequest
	}
	return other
}

// queue holds what waits. When a rank is full its oldest is dropped, because its client has likely given
// up on it and will ask again.
type queue struct {
	mu      sync.Mutex
	ready   sync.Cond
	closed  bool
	rings   [ranks]ring
	free    sync.Pool
	dropped atomic.Uint64
}

type ring struct {
	jobs     []*job
	head, ln int
}

func newQueue(size int) *queue {
	q := &queue{}
	for i := range q.rings {
		q.rings[i].jobs = make([]*job, size)
	}
	q.ready.L = &q.mu
	q.free.New = func() any { return new(job) }
	return q
}

func (q *queue) get() *job  { return q.free.Get().(*job) }
func (q *queue) put(j *job) { q.free.Put(j) }

func (q *queue) push(j *job, as rank) {
	q.mu.Lock()
	r := &q.rings[as]
	var old *job
	if r.ln == len(r.jobs) {
		old = r.pop()
	}
	r.jobs[(r.head+r.ln)%len(r.jobs)] = j
	r.ln++
	q.mu.Unlock()
	q.ready.Signal()
	if old != nil {
		q.dropped.Add(1)
		q.put(old)
	}
}

// pop waits for a job; nil means that the queue is closed.
func (q *queue) pop() *job {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed {
		for i := range q.rings {
			if q.rings[i].ln > 0 {
				return q.rings[i].pop()
			}
		}
		q.ready.Wait()
	}
	return nil
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.ready.Broadcast()
}

func (r *ring) pop() *job {
	j := r.jobs[r.head]
	r.jobs[r.head] = nil
	r.head = (r.head + 1) % len(r.jobs)
	r.ln--
	return j
}

// limiter allows each client a burst and then a steady rate, in a fixed amount of memory (512 KiB):
// clients that share a slot share its rate. A slot holds the time since start (ns) up to which its
// budget is used (the generic cell rate algorithm).
type limiter struct {
	slots [1 << 16]atomic.Int64
	start time.Time     // its monotonic reading: a clock that is set must not lock clients out
	every time.Duration // one message per
	burst time.Duration // how far the budget may be used in advance
}

func (l *limiter) allow(m pxe.MAC) bool {
	h := uint32(m[2])<<24 | uint32(m[3])<<16 | uint32(m[4])<<8 | uint32(m[5])
	h = (h ^ uint32(m[0])<<8 ^ uint32(m[1])) * 2654435761 // Knuth's multiplicative hash
	s := &l.slots[h>>16]
	t := int64(time.Since(l.start))
	for {
		used := s.Load()
		next := max(used, t) + int64(l.every)
		if next-t > int64(l.burst) {
			return false
		}
		if s.CompareAndSwap(used, next) {
			return true
		}
	}
}
