package bmc

import (
	"context"
	"fmt"
	"time"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// PollPolicy is how EnsurePower waits. Zero fields have the defaults of hazard H04.
type PollPolicy struct {
	Every   time.Duration // between readings; default 2 s
	ReSend  time.Duration // until a request that shows no effect is sent again; default 30 s
	Timeout time.Duration // of the whole; default 300 s
	// ForceAfter turns a shutdown that the operating system ignores into off (H06). Zero never does.
	ForceAfter time.Duration
}

func (p PollPolicy) withDefaults() PollPolicy {
	if p.Every <= 0 {
		p.Every = 2 * time.Second
	}
	if p.ReSend <= 0 {
		p.ReSend = 30 * time.Second
	}
	if p.Timeout <= 0 {
		p.Timeout = 300 * time.Second
	}
	return p
}

// EnsurePower makes the machine's power state t and returns the reading that shows it.
//
// It observes first: on a machine that is there already nothing is sent. It acts only on a state it has
// read, because an unknown state is never taken for off or on. A request without effect is sent again
// every ReSend: BMCs drop a power-on that comes while the machine is still going down. A state that is
// neither on nor off counts as on.
//
// Errors: Unverified when the BMC was readable and the state did not come; Timeout when it was not
// readable at the end; anything that waiting does not mend (Unauthorized, Unsafe, Unsupported) at once.
func (c *Client) EnsurePower(ctx context.Context, t driver.Target, policy PollPolicy) (driver.Reading, error) {
	p := policy.withDefaults()
	clock := c.cfg.Clock
	start := clock.Now()
	want := driver.PowerOff
	if t == driver.On {
		want = driver.PowerOn
	}
	var (
		sent     time.Time
		sends    int
		observed = driver.Reading{State: driver.PowerUnknown}
		lastErr  error
	)
	for {
		r, err := c.Power(ctx)
		if err == nil {
			observed, lastErr = r, nil
			if r.State == want {
				return r, nil
			}
			now := clock.Now()
			if t == driver.ShutDown && p.ForceAfter > 0 && sends > 0 && now.Sub(sent) >= p.ForceAfter {
				c.cfg.Logger.WarnContext(ctx, "shutdown ignored, powering off", "machine", c.ep.Machine, "after", p.ForceAfter)
				t, sends = driver.Off, 0
			}
			if due(t, r.State, sends, now.Sub(sent), p.ReSend) {
				err = c.SetPower(ctx, t)
				// A lost answer may have had its effect: it counts as sent.
				if err == nil || fault.Is(err, fault.Timeout) {
					sent, sends = clock.Now(), sends+1
				}
			}
		} else {
			observed = driver.Reading{State: driver.PowerUnknown}
		}
		if err != nil {
			if ctx.Err() != nil || !fault.KindOf(err).Retryable() {
				return observed, err
			}
			lastErr = err
		}
		if waited := clock.Now().Sub(start); waited+p.Every > p.Timeout {
			kind := fault.Unverified
			if observed.State == driver.PowerUnknown {
				kind = fault.Timeout
			}
			return observed, &fault.Error{Kind: kind, Where: c.ep.where(), What: "set power " + string(t), Err: lastErr,
				Evidence: fmt.Sprintf("sent %d times in %s, state reads %s", sends, waited.Round(time.Millisecond), observed.State),
				Next:     "fence the machine by other means"}
		}
		if err := clock.Sleep(ctx, p.Every); err != nil {
			return observed, &fault.Error{Kind: fault.Timeout, Where: c.ep.where(), What: "set power " + string(t),
				Evidence: fmt.Sprintf("given up while the state reads %s", observed.State), Err: err}
		}
	}
}

// due decides whether to send t now, on a machine whose state was read and is not t's.
func due(t driver.Target, state driver.PowerState, sends int, since, reSend time.Duration) bool {
	switch {
	case state == driver.PowerUnknown:
		return false
	case t == driver.On && state != driver.PowerOff:
		return false // still going down or already coming up: a power-on now is dropped or a cycle
	case sends == 0:
		return true
	case t == driver.ShutDown:
		return false // a second press of the button wakes some operating systems' abort dialogue
	}
	return since >= reSend
}

// ReadOff is rule F3: it reads until n consecutive readings of Off, at least gap apart, and returns them.
// Any other state, and any error that may pass, starts the count again; it gives up when ctx ends or
// after n*gap + 5 min with fault.Unverified. Cached readings are never used.
func (c *Client) ReadOff(ctx context.Context, n int, gap time.Duration) ([]driver.Reading, error) {
	if n < 1 || gap < 0 {
		return nil, fault.Newf(fault.Invalid, "confirm off by %d readings %s apart", n, gap)
	}
	clock := c.cfg.Clock
	end := clock.Now().Add(time.Duration(n)*gap + 5*time.Minute)
	var (
		streak []driver.Reading
		last   string
	)
	for {
		r, err := c.Power(ctx)
		switch {
		case err != nil && (ctx.Err() != nil || !fault.KindOf(err).Retryable()):
			return nil, err
		case err != nil:
			streak, last = nil, err.Error()
		case r.State != driver.PowerOff:
			streak, last = nil, "state reads "+string(r.State)
		default:
			streak, last = append(streak, r), "state reads off"
		}
		if ConfirmOff(streak, n, gap) {
			return streak, nil
		}
		notConfirmed := &fault.Error{Kind: fault.Unverified, Where: c.ep.where(), What: fmt.Sprintf("confirm off by %d readings", n),
			Evidence: last, Next: "fence the machine by other means"}
		if !clock.Now().Before(end) {
			return nil, notConfirmed
		}
		if err := clock.Sleep(ctx, max(gap, 10*time.Millisecond)); err != nil {
			notConfirmed.Err = err
			return nil, notConfirmed
		}
	}
}
