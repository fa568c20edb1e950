package ovssim

import (
	"sync"
	"time"
)

// Faults is what is wrong with the switch. All can be changed while it runs.
type Faults struct {
	Delay  time.Duration // before every transaction
	Hang   bool          // transactions are received and never answered
	Refuse int           // that many transactions are refused as "resources exhausted"
	// LoseReply is how many transactions are applied and answered by closing the connection.
	LoseReply int
	// FailAt breaks the nth transaction from now, in its way.
	FailAt *FailPoint
	// Stalled: the database accepts everything and the switch daemon does nothing of it (cur_cfg stays).
	Stalled bool
	// Interfere runs just before the next transaction that writes, and once: somebody else at work.
	Interfere func()
}

// FailPoint is one transaction that goes wrong.
type FailPoint struct {
	N   int // 1 = the next one
	How Failure
}

// Failure is a way in which one transaction goes wrong.
type Failure string

const (
	Refused  Failure = "refused"    // answered with an error, not applied
	Dropped  Failure = "dropped"    // connection closed, not applied
	LostTail Failure = "reply lost" // applied, then the connection closed
)

// Counters is what the switch was asked for since it started.
type Counters struct {
	Connections  int
	Transactions int // all, reads too
	Commits      int // those that changed something
	Failed       int // those answered with an error
}

// faultState guards the faults and wakes what waits for them to change.
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

// next says how the transaction that starts now goes wrong; empty for not at all.
func (f *faultState) next() Failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.faults.FailAt; p != nil {
		if p.N--; p.N <= 0 {
			f.faults.FailAt = nil
			return p.How
		}
	}
	if f.faults.Refuse > 0 {
		f.faults.Refuse--
		return Refused
	}
	if f.faults.LoseReply > 0 {
		f.faults.LoseReply--
		return LostTail
	}
	return ""
}

func (f *faultState) takeInterference() func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn := f.faults.Interfere
	f.faults.Interfere = nil
	return fn
}

// stall holds a transaction back for Delay and while Hang is set; false when done closes first.
func (f *faultState) stall(done <-chan struct{}) bool {
	if d := f.get().Delay; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-done:
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
		case <-done:
			return false
		case <-changed:
		}
	}
}
