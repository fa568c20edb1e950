package hypersim

import (
	"context"
	"sync"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Faults is what is wrong with the host. All can be changed while it runs.
type Faults struct {
	Delay  time.Duration // before every call
	Hang   bool          // calls are received and not answered
	Refuse int           // that many calls are refused as busy
	// LoseReply is how many changes are made and then not answered.
	LoseReply int
	// FailAt breaks the nth call from now, in its way.
	FailAt *FailPoint
	Full   bool // there is no room for anything, whatever is defined
	Idle   bool // changes are accepted and not made
	Lax    bool // what is stale, not ours or in conflict is not refused
	Lie    Lie  // about its VMs
}

// FailPoint is one call that goes wrong.
type FailPoint struct {
	N   int // 1 = the next one
	How Failure
}

// Failure is a way in which one call goes wrong.
type Failure string

const (
	Refused  Failure = "refused"    // answered with an error, not applied
	Dropped  Failure = "dropped"    // connections cut, not applied
	LostTail Failure = "reply lost" // applied, then the connections cut
)

// Lie is what the host says of its VMs instead of the truth.
type Lie string

const (
	AllOff     Lie = "all off"     // none runs
	AllOn      Lie = "all on"      // all run
	Nothing    Lie = "nothing"     // it has none
	Twice      Lie = "twice"       // the first is there twice
	OtherSpec  Lie = "other spec"  // all have one CPU more
	OtherEpoch Lie = "other epoch" // all are of the next epoch
	OtherUUID  Lie = "other UUID"  // all have an identity beside the defined one
	NoState    Lie = "no state"    // in none that there is
)

func (l Lie) about(vms []driver.VM) []driver.VM {
	if l == Nothing {
		return nil
	}
	for i := range vms {
		vm := &vms[i]
		switch l {
		case AllOff:
			vm.State = driver.StateDefined
		case AllOn:
			vm.State = driver.StateRunning
		case OtherSpec:
			vm.Spec.CPUs++
		case OtherEpoch:
			vm.Epoch++
		case OtherUUID:
			vm.UUID = "ffffffff-ffff-4fff-bfff-ffffffffffff"
		case NoState:
			vm.State = "asleep"
		case Twice, Nothing:
		}
	}
	if l == Twice && len(vms) > 0 {
		vms = append(vms, vms[0])
	}
	return vms
}

// Counters is what the host was asked for since it was made.
type Counters struct {
	Calls   int // all, reads too
	Changes int // what changed a VM
	Starts  int // VMs powered on
	Failed  int // calls that were answered with an error
}

// Faults returns the present faults.
func (h *Host) Faults() Faults { return h.faults.get() }

// SetFaults changes faults while the host runs: fn gets the present ones.
func (h *Host) SetFaults(fn func(*Faults)) { h.faults.set(fn) }

// Counters returns what was asked so far.
func (h *Host) Counters() Counters {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counters
}

// change makes one change after another, as far as the faults let it.
func (h *Host) change(ctx context.Context, what string, do func() error) error {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), what, "host "+h.cfg.Name)
	}
	return h.call(ctx, what, true, do)
}

// answer reads, as far as the faults let it.
func (h *Host) answer(ctx context.Context, what string, do func() error) error {
	return h.call(ctx, what, false, do)
}

func (h *Host) call(ctx context.Context, what string, changes bool, do func() error) error {
	h.mu.Lock()
	h.counters.Calls++
	h.mu.Unlock()
	how, idle := h.faults.next(changes)
	err := h.faults.stall(ctx)
	switch {
	case err != nil:
	case how == Refused:
		err = refuse(fault.Busy, "come back later")
	case how == Dropped:
		err = refuse(fault.Unreachable, "the connection was cut")
	case changes && idle:
	default:
		h.mu.Lock()
		err = do()
		h.mu.Unlock()
	}
	if err == nil && how == LostTail {
		err = refuse(fault.Unreachable, "the connection was cut")
	}
	if how == Dropped || how == LostTail {
		h.lines.cut()
	}
	if err != nil {
		h.mu.Lock()
		h.counters.Failed++
		h.mu.Unlock()
	}
	return fault.Wrap(err, what, "host "+h.cfg.Name)
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

func (f *faultState) set(fn func(*Faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.faults.FailAt; p != nil {
		copied := *p
		f.faults.FailAt = &copied
	}
	fn(&f.faults)
	close(f.changed)
	f.changed = make(chan struct{})
}

// next says how the call that starts now goes wrong, empty for not at all, and whether the host idles.
func (f *faultState) next(changes bool) (how Failure, idle bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	idle = f.faults.Idle
	if p := f.faults.FailAt; p != nil {
		if p.N--; p.N <= 0 {
			f.faults.FailAt = nil
			return p.How, idle
		}
	}
	switch {
	case f.faults.Refuse > 0:
		f.faults.Refuse--
		how = Refused
	case changes && f.faults.LoseReply > 0:
		f.faults.LoseReply--
		how = LostTail
	}
	return how, idle
}

// stall holds a call back for Delay and while Hang is set.
func (f *faultState) stall(ctx context.Context) error {
	if d := f.get().Delay; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	for {
		f.mu.Lock()
		hang, changed := f.faults.Hang, f.changed
		f.mu.Unlock()
		if err := ctx.Err(); err != nil || !hang {
			return err
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}
