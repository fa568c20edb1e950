package workflowtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"rerack.dev/rerack/internal/fault"
)

// Act is one change that a device really made. What a repeated call finds done already is no act.
type Act struct {
	Device string // "switch/tor-b", "fabric/fab", "array/fc1", "machine/b1", "host/b2"
	Object string // port, zone, volume, VM, or "power"
	Epoch  uint64 // 0 for power, which carries none
	State  string // the end state
}

func (a Act) String() string { return fmt.Sprintf("%s %s@%d %s", a.Device, a.Object, a.Epoch, a.State) }

// Journal lists every act, oldest first.
func (d *DataCentre) Journal() []Act {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.journal)
}

// Commits counts, per switch, fabric and array, the calls that changed something.
func (d *DataCentre) Commits() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.commits)
}

func (d *DataCentre) commit(device string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.commits[device]++
}

func (d *DataCentre) note(a Act) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.journal = append(d.journal, a)
}

// Failure is what a device answers to a change from now on.
type Failure struct {
	Err   error
	After bool // the change is made, only the answer is wrong
	Times int  // how often; 0 is for ever
	Hang  bool // there is no answer at all, until the caller gives up
}

// Fail makes a device ("switch/tor-b", "machine/b1", ...) fail its changes; for a host it is "host/b2".
func (d *DataCentre) Fail(device string, f Failure) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures[device] = f
}

// Heal ends what Fail began.
func (d *DataCentre) Heal(device string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.failures, device)
}

// do makes a change on a device, or lets it fail as somebody asked for.
func (d *DataCentre) do(ctx context.Context, device string, change func() error) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(err, "change", device)
	}
	f, fails := d.fails(device)
	if fails && f.Hang {
		var err error
		if f.After {
			err = change()
		}
		<-ctx.Done()
		return &fault.Error{Kind: fault.Timeout, Where: device, What: "no answer", Err: errors.Join(err, ctx.Err())}
	}
	if fails && !f.After {
		return f.Err
	}
	err := change()
	if err == nil && fails {
		return f.Err
	}
	return err
}

func (d *DataCentre) fails(device string) (Failure, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, fails := d.failures[device]
	if fails && f.Times > 0 {
		if f.Times--; f.Times == 0 {
			delete(d.failures, device)
		} else {
			d.failures[device] = f
		}
	}
	return f, fails
}

// Defect is what is wrong with a machine that is otherwise reachable.
type Defect int

const (
	Sound           Defect = iota
	NeverPhonesHome        // its firmware boots, its system reports nothing
	NeverServes            // its system reports, its workload does not get up
	ReportsFailure         // its system says that it cannot go on
	NeverTurnsOff          // its power cannot be turned off
	ReadsBadly             // its local disk cannot be read to the end
)

// Break gives a machine a defect; Sound takes it away.
func (d *DataCentre) Break(machine string, x Defect) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.defects[machine] = x
}

func (d *DataCentre) defect(machine string) Defect {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.defects[machine]
}
