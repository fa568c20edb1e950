package world

import (
	"slices"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

type volume struct {
	spec   topology.VolumeSpec
	log    []Write // ring of the last writes, oldest first
	epochs map[uint64]*EpochTotal
	newest uint64
	last   holder
	past   map[holder]bool // holders that another one has followed
}

// holder is one life of one machine or VM.
type holder struct {
	machine, vm string
	boot        uint64
}

// Write is one write that arrived at a volume.
type Write struct {
	At       time.Time `json:"at"`
	Machine  string    `json:"machine"`
	VM       string    `json:"vm,omitempty"`
	Volume   string    `json:"volume"`
	Workload string    `json:"workload"`
	Epoch    uint64    `json:"epoch"`
}

// EpochTotal sums up the writes to a volume under one epoch.
type EpochTotal struct {
	Epoch    uint64    `json:"epoch"`
	Writes   int       `json:"writes"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Machines []string  `json:"machines"`
}

// Write records a write of one life of a machine. It fails with Unreachable when it could not arrive.
func (w *World) Write(l Life, vm, volume, workload string, epoch uint64) error {
	return w.write(l.Machine, vm, volume, workload, epoch, func() error {
		if _, err := w.alive(l); err != nil {
			return err
		}
		if !w.canWrite(l.Machine, volume) {
			return &fault.Error{Kind: fault.Unreachable, Where: "volume " + volume, What: "write from machine " + l.Machine,
				Evidence: "no path, zone or mask"}
		}
		return nil
	})
}

// Arrived records a write that an array has taken already, allowed or not: the truth is what was
// written. An array that lets a fenced initiator write is caught by the rules.
func (w *World) Arrived(machine, vm, volume, workload string, epoch uint64) error {
	return w.write(machine, vm, volume, workload, epoch, func() error { return nil })
}

func (w *World) write(machine, vm, volume, workload string, epoch uint64, allowed func() error) error {
	w.mu.Lock()
	v := w.volumes[volume]
	if v == nil {
		w.mu.Unlock()
		return missing("volume", volume)
	}
	if err := allowed(); err != nil {
		w.mu.Unlock()
		return err
	}
	at := w.now()
	v.log = append(v.log, Write{at, machine, vm, volume, workload, epoch})
	if len(v.log) > 2*w.keep {
		v.log = append(v.log[:0], v.log[len(v.log)-w.keep:]...)
	}
	e := v.epochs[epoch]
	if e == nil {
		e = &EpochTotal{Epoch: epoch, First: at}
		v.epochs[epoch] = e
	}
	e.Writes++
	e.Last = at
	if !slices.Contains(e.Machines, machine) {
		e.Machines = append(e.Machines, machine)
	}
	before := len(w.found)
	w.judgeWrite(volume, v, machine, vm, workload, epoch)
	told := len(w.found) > before
	w.mu.Unlock()
	if told {
		return w.change(func() error { return nil })
	}
	return nil
}

// Log returns the last writes to a volume, oldest first, and the totals by rising epoch.
func (w *World) Log(volume string) ([]Write, []EpochTotal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.volumes[volume]
	if v == nil {
		return nil, nil
	}
	log := v.log[max(0, len(v.log)-w.keep):]
	var totals []EpochTotal
	for _, e := range v.epochs {
		t := *e
		t.Machines = slices.Clone(e.Machines)
		totals = append(totals, t)
	}
	slices.SortFunc(totals, func(a, b EpochTotal) int { return compare(a.Epoch, b.Epoch) })
	return slices.Clone(log), totals
}
