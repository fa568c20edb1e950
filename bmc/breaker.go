package bmc

import (
	"fmt"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// breaker stops calls to a BMC that does not answer, so that a black-holed box costs its callers
// nothing. It is guarded by the box's queue: at most one call is under way, so a half-open breaker lets
// exactly one probe through without further bookkeeping.
type breaker struct {
	threshold int           // silent failures in a row that open it
	base, max time.Duration // how long it stays open, doubled at each failed probe

	failures int
	open     time.Duration // zero while closed
	until    time.Time
	last     error
}

// allow returns nil when a call may go out, else an Unreachable fault that tells since when and why.
func (b *breaker) allow(now time.Time) error {
	if b.open == 0 || !now.Before(b.until) {
		return nil
	}
	return &fault.Error{Kind: fault.Unreachable, What: "not tried",
		Evidence: fmt.Sprintf("silent %d times in a row, next probe in %s", b.failures, b.until.Sub(now).Round(time.Millisecond)),
		Err:      b.last, Next: "check the management network and the BMC's power"}
}

// record takes the outcome of a call that went out. Only silence counts: a BMC that refuses is there.
func (b *breaker) record(now time.Time, err error) {
	if !fault.Is(err, fault.Unreachable) && !fault.Is(err, fault.Timeout) {
		b.failures, b.open, b.last = 0, 0, nil
		return
	}
	b.failures++
	b.last = err
	switch {
	case b.open > 0:
		b.open = min(b.open*2, b.max)
	case b.failures >= b.threshold:
		b.open = b.base
	default:
		return
	}
	b.until = now.Add(b.open)
}
