package brocadesim

import (
	"context"
	"sync"
	"time"
)

// Faults is what is wrong with the switch. All can be changed while it runs.
type Faults struct {
	Delay     time.Duration // before every answer
	Hang      bool          // requests are received and never answered
	Refuse503 int           // that many requests are answered 503
	// DropReplyAfterCommit is how many commits take effect and lose their answer.
	DropReplyAfterCommit int
	// LockedBy is a person with a transaction open at the command line.
	LockedBy string
	// FailAt breaks the nth request from now, in its way.
	FailAt *FailPoint
	// AuthFail refuses every login.
	AuthFail bool
	// Interfere runs before the next edit, and once: somebody else at work since our last look.
	Interfere func()
}

// FailPoint is one request that goes wrong.
type FailPoint struct {
	N   int // 1 = the next one
	How Failure
}

// Failure is a way in which one request goes wrong.
type Failure string

const (
	Refused  Failure = "refused"    // answered with an error, without effect
	Dropped  Failure = "dropped"    // connection closed, without effect
	LostTail Failure = "reply lost" // done, then the connection closed
)

type faultState struct {
	mu      sync.Mutex
	faults  Faults
	changed chan struct{}
}

func newFaultState() *faultState { return &faultState{changed: make(chan struct{})} }

func (f *faultState) get() Faults {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.faults
}

func (f *faultState) set(fn func(*Faults)) (before, after Faults) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before = f.faults
	if p := before.FailAt; p != nil {
		copied := *p
		f.faults.FailAt = &copied
	}
	fn(&f.faults)
	close(f.changed)
	f.changed = make(chan struct{})
	return before, f.faults
}

// next says how the request that starts now goes wrong; empty for not at all.
func (f *faultState) next() Failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.faults.FailAt; p != nil {
		if p.N--; p.N <= 0 {
			f.faults.FailAt = nil
			return p.How
		}
	}
	return ""
}

// take uses up one of a counted fault.
func (f *faultState) take(counter func(*Faults) *int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := counter(&f.faults)
	if *n <= 0 {
		return false
	}
	*n--
	return true
}

func (f *faultState) takeInterference() func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn := f.faults.Interfere
	f.faults.Interfere = nil
	return fn
}

// stall holds a request back for Delay and while Hang is set; false when its client has gone.
func (f *faultState) stall(ctx context.Context) bool {
	if d := f.get().Delay; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
		}
	}
	for {
		f.mu.Lock()
		hang, changed := f.faults.Hang, f.changed
		f.mu.Unlock()
		if !hang {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
}
