// Package pxetest tests the boot plane as a whole, and holds the contract of its durable sink.
package pxetest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

// Ledger is a pxe.Milestones in memory. It outlives the boot servers of a test, which makes a restart
// of theirs testable, and can be told to fail.
type Ledger struct {
	mu      sync.Mutex
	changed chan struct{}
	seen    []pxe.Milestone
	nonces  map[string]string // by machine, run and epoch
	fail    func(pxe.Milestone) error
}

// NewLedger makes an empty ledger.
func NewLedger() *Ledger {
	return &Ledger{nonces: map[string]string{}, changed: make(chan struct{})}
}

// Fail makes f decide on an error before anything is recorded; nil ends that.
func (l *Ledger) Fail(f func(pxe.Milestone) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = f
}

// Reached records a milestone.
func (l *Ledger) Reached(_ context.Context, m pxe.Milestone) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		if err := l.fail(m); err != nil {
			return err
		}
	}
	key := fmt.Sprintf("%s\x00%s\x00%d", m.Machine, m.Run, m.Epoch)
	have, used := l.nonces[key]
	switch m.Kind {
	case pxe.KindPhoneHome:
		if used && have != m.Nonce {
			return fault.New(fault.Conflict, "token was used with another nonce")
		}
		if used {
			return nil
		}
		l.nonces[key] = m.Nonce
	case pxe.KindHealthy, pxe.KindFailed:
		if used && have != m.Nonce || !used && m.Kind == pxe.KindHealthy {
			return fault.New(fault.Conflict, "not the boot that phoned home")
		}
	case pxe.KindDHCP, pxe.KindBootFile, pxe.KindScript, pxe.KindKernel, pxe.KindReboot, pxe.KindAlarm, pxe.KindNote:
	}
	l.seen = append(l.seen, m)
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// Nonce returns the nonce recorded for a boot, or "".
func (l *Ledger) Nonce(machine, run string, epoch uint64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.nonces[fmt.Sprintf("%s\x00%s\x00%d", machine, run, epoch)]
}

// Kinds returns the milestones of a machine in the order they came.
func (l *Ledger) Kinds(machine string) []pxe.Kind {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ks []pxe.Kind
	for _, m := range l.seen {
		if m.Machine == machine {
			ks = append(ks, m.Kind)
		}
	}
	return ks
}

// Wait returns the first milestone of a machine of a kind, when it has come.
func (l *Ledger) Wait(ctx context.Context, machine string, k pxe.Kind) (pxe.Milestone, error) {
	for {
		l.mu.Lock()
		i := slices.IndexFunc(l.seen, func(m pxe.Milestone) bool { return m.Machine == machine && m.Kind == k })
		changed := l.changed
		if i >= 0 {
			m := l.seen[i]
			l.mu.Unlock()
			return m, nil
		}
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return pxe.Milestone{}, fmt.Errorf("%s has not reached %s, only %v: %w", machine, k, l.Kinds(machine), ctx.Err())
		}
	}
}
