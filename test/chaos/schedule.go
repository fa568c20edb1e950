package chaos

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"testing/synctest"
	"time"
)

// schedule is who goes next. Everything that acts on the simulated world stops at cuts, and one goes on at a
// time, drawn from the seed: what runs between two cuts runs alone. Only the goroutine that calls step
// draws, so that the same seed draws the same.
type schedule struct {
	rng  *rand.Rand
	rate float64 // how often a call that may fail does

	mu      sync.Mutex
	waiting []*call
	arrived chan struct{}
	seq     uint64
	hash    hash.Hash64
	steps   int
	fired   map[Fault]int
	lines   []string // the trace as text, where it is wanted
	keep    bool
	began   time.Time
}

// call is one call that waits at its cut.
type call struct {
	who, what string // what it is: the same in every run of the seed
	class     class
	seq       uint64 // arrival, which orders only calls that are alike
	by        *process
	fate      chan fate
}

// class says what may happen to a call.
type class uint8

const (
	internal class = iota // only its place in the order is drawn
	change                // changes a device
	reading               // reads a device
	write                 // writes to the store
	look                  // reads the store
	reply                 // an activity's answer to the engine
)

// fate is what happens to one call.
type fate struct {
	fault Fault
	after time.Duration // of a delay, or until the second delivery
}

func newSchedule(seed uint64, keep bool) *schedule {
	return &schedule{rng: rand.New(rand.NewPCG(seed, 0x7265_7261_636b)), arrived: make(chan struct{}, 1), hash: fnv.New64a(),
		fired: map[Fault]int{}, keep: keep, began: time.Now()}
}

// cut waits until it is this call's turn.
func (s *schedule) cut(ctx context.Context, c class, what string) fate {
	w := &call{what: what, class: c, by: processOf(ctx), fate: make(chan fate, 1)}
	if w.by != nil {
		w.who = w.by.name
	}
	s.mu.Lock()
	s.seq++
	w.seq = s.seq
	s.waiting = append(s.waiting, w)
	s.mu.Unlock()
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	return <-w.fate
}

// step lets one waiting call go on and waits until everybody waits again. When nobody is waiting it lets
// time pass until somebody is, or limit.
func (s *schedule) step(limit time.Duration) {
	w := s.next()
	if w == nil {
		t := time.NewTimer(limit)
		defer t.Stop()
		select {
		case <-s.arrived:
		case <-t.C:
		}
		synctest.Wait()
		return
	}
	f := s.draw(w)
	s.note(w.who, w.what, string(f.fault))
	w.fate <- f
	synctest.Wait()
	// Every step has an instant of its own: what starts in it ends at an instant of its own as well.
	time.Sleep(time.Duration(50_000 + s.rng.Int64N(1_000_000)))
	synctest.Wait()
}

// next takes one of the calls that may go on.
func (s *schedule) next() *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	var able []*call
	for _, w := range s.waiting {
		if w.by == nil || !w.by.paused || w.by.dead {
			able = append(able, w)
		}
	}
	if len(able) == 0 {
		return nil
	}
	slices.SortFunc(able, func(a, b *call) int {
		return cmp.Or(cmp.Compare(a.who, b.who), cmp.Compare(a.what, b.what), cmp.Compare(a.seq, b.seq))
	})
	w := able[s.rng.IntN(len(able))]
	s.waiting = slices.DeleteFunc(s.waiting, func(o *call) bool { return o == w })
	return w
}

// draw decides what happens to a call.
func (s *schedule) draw(w *call) fate {
	if w.by != nil && w.by.dead {
		return fate{fault: Crashed}
	}
	of := faultsOf[w.class]
	rate := s.rate
	if w.class == write || w.class == look {
		rate /= 5 // activities make many more of these calls
	}
	if len(of) == 0 || s.rng.Float64() >= rate {
		return fate{}
	}
	f := fate{fault: of[s.rng.IntN(len(of))]}
	f.after = time.Duration(float64(longest[f.fault]) * s.rng.Float64() * s.rng.Float64())
	s.fire(f.fault)
	return f
}

func (s *schedule) fire(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fired[f]++
}

// note adds an event to the trace.
func (s *schedule) note(who, what, how string) {
	at := time.Since(s.began)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps++
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(at))
	_, _ = s.hash.Write(b[:])
	for _, x := range []string{who, what, how} {
		_, _ = s.hash.Write([]byte(x))
		_, _ = s.hash.Write([]byte{0})
	}
	if s.keep {
		s.lines = append(s.lines, fmt.Sprintf("%10.3fs %-44s %s %s", at.Seconds(), who, what, how))
	}
}
