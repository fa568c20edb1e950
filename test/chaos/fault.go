package chaos

import (
	"context"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Fault is one kind of misfortune.
type Fault string

const (
	Refused   Fault = "call fails before its effect"
	Lost      Fault = "reply lost after the effect"
	Late      Fault = "call times out, effect comes later"
	Twice     Fault = "call delivered twice"
	Slow      Fault = "call delayed"
	Blind     Fault = "reading fails"
	NotStored Fault = "store write fails before its effect"
	AckLost   Fault = "store write done, answer lost"
	NoRead    Fault = "store read fails"
	Redone    Fault = "activity done, its answer lost"

	Crashed   Fault = "controller crashes"
	Paused    Fault = "controller pauses and wakes"
	Fire      Fault = "rack burns"
	Liar      Fault = "rack half burns, its BMCs lie"
	SwitchOut Fault = "top-of-rack switch burns"
	Partition Fault = "management network cut"
	Blackout  Fault = "power lost and returned"
	Return    Fault = "power returns to a burned rack"
	Person    Fault = "person edits a device"
	BadSpare  Fault = "spare is broken"
	Cancel    Fault = "person cancels a run"
)

// faultsOf lists what may happen to a call of each class.
var faultsOf = [...][]Fault{
	internal: nil,
	change:   {Refused, Lost, Late, Twice, Slow},
	reading:  {Blind, Slow},
	write:    {NotStored, AckLost, Slow},
	look:     {NoRead, Slow},
	reply:    {Redone},
}

// longest bounds how long each kind of delay is. A device has ended what a client asked it for soon after that
// client has given up: that much is asked of devices, and no more.
var longest = map[Fault]time.Duration{Late: patience + grace, Twice: grace, Slow: 12 * time.Second}

const (
	patience = 10 * time.Second // of a client with a device that does not answer
	grace    = 3 * time.Second  // within which the device ends what it was asked for
)

func unreachable(what, why string) error {
	return &fault.Error{Kind: fault.Unreachable, Where: what, What: "call", Evidence: why}
}

// do makes one call: what is done to it is drawn when its turn comes. Delivered late or twice it has the same
// effect as at once.
func (s *schedule) do(ctx context.Context, c class, what string, effect func(context.Context) error) error {
	return s.send(ctx, c, what, effect, func() func(context.Context) error { return effect })
}

// send is do for a device to which it makes a difference when a request arrives: sent is called when the request
// is sent, and returns what it does when it arrives late, or a second time.
func (s *schedule) send(ctx context.Context, c class, what string, effect func(context.Context) error, sent func() func(context.Context) error) error {
	f := s.cut(ctx, c, what)
	if err := ctx.Err(); err != nil && f.fault == "" {
		return fault.Wrap(err, "call", what)
	}
	switch f.fault {
	case Crashed:
		return dead(what)
	case Refused, Blind, NotStored, NoRead:
		return unreachable(what, "connection refused")
	case Lost, AckLost:
		if err := effect(ctx); err != nil {
			return err
		}
		return unreachable(what, "connection reset after the request was sent")
	case Late:
		go s.later(f.after, what, sent())
		time.Sleep(min(patience, max(f.after-grace, 0)+f.after/2))
		if s.cut(ctx, internal, what+" (given up)").fault == Crashed {
			return dead(what)
		}
		return &fault.Error{Kind: fault.Timeout, Where: what, What: "call", Evidence: "no answer"}
	case Twice:
		again := sent()
		err := effect(ctx)
		go s.later(f.after, what, again)
		return err
	case Slow:
		time.Sleep(f.after)
		if s.cut(ctx, internal, what+" (slow)").fault == Crashed {
			return dead(what)
		}
		if err := ctx.Err(); err != nil {
			return fault.Wrap(err, "call", what)
		}
	}
	return effect(ctx)
}

func dead(what string) error {
	return &fault.Error{Kind: fault.Unreachable, Where: what, What: "call", Evidence: "this process is dead", Err: context.Canceled}
}

// later delivers a request whose sender does not wait for it any more.
func (s *schedule) later(after time.Duration, what string, effect func(context.Context) error) {
	time.Sleep(after)
	s.cut(context.Background(), internal, what+" (delivered late)")
	_ = effect(context.Background()) // nobody hears of it
}
