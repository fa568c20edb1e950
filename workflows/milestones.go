package workflows

import (
	"errors"
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/internal/fault"
)

// milestones is what a target was heard to reach in one boot: their signals carry the boot in their
// address.
type milestones struct {
	in    BootInput
	ch    workflow.ReceiveChannel
	taken []Milestone // received and not yet awaited
}

// take receives what has arrived.
func (h *milestones) take() {
	for {
		var m Milestone
		if !h.ch.ReceiveAsync(&m) {
			return
		}
		h.add(m)
	}
}

func (h *milestones) add(m Milestone) {
	if m.Epoch == h.in.Epoch { // else of an earlier boot of the same target
		h.taken = append(h.taken, m)
	}
}

// any reports whether the target itself was heard of.
func (h *milestones) any() bool {
	h.take()
	return slices.ContainsFunc(h.taken, func(m Milestone) bool { return m.Kind != milestoneReleased })
}

// unanswered reports whether an act on a device may have been done although it failed.
func unanswered(err error) bool {
	var app *temporal.ApplicationError
	if errors.As(err, &app) {
		switch fault.ParseKind(app.Type()) {
		case fault.Timeout, fault.Unreachable, fault.Unverified, fault.Busy:
			return true
		}
		return false
	}
	var late *temporal.TimeoutError
	return errors.As(err, &late)
}

// release follows a held target into its boot loader, and lets it boot when what it depends on is
// healthy, whichever comes first.
func (h *milestones) release(ctx workflow.Context) error {
	m, err := h.await(ctx, h.in.Limits.Boot, "script", milestoneReleased)
	if err == nil && m.Kind != milestoneReleased {
		_, err = h.await(ctx, holdAtMost, milestoneReleased)
	}
	if err != nil {
		return err
	}
	return workflow.ExecuteActivity(quick(ctx), (*Activities).ReleaseBoot, h.in).Get(ctx, nil)
}

// await receives milestones until one that is wanted, a failure reported by the target, or the deadline.
func (h *milestones) await(ctx workflow.Context, limit time.Duration, want ...string) (Milestone, error) {
	timed, cancel := workflow.WithCancel(ctx)
	defer cancel()
	timer := workflow.NewTimer(timed, limit)
	last := "power-on"
	for {
		for len(h.taken) > 0 {
			m := h.taken[0]
			h.taken = h.taken[1:]
			switch {
			case slices.Contains(want, m.Kind):
				return m, nil
			case m.Kind == MilestoneRefused:
				return m, blameless(m.Detail)
			case m.Kind == "failed":
				return m, failure(fault.Unverified, "%s reported a failure: %s", h.in.Where.Machine, m.Detail)
			}
			last = m.Kind
		}
		late := false
		workflow.NewSelector(ctx).
			AddFuture(timer, func(workflow.Future) { late = true }).
			AddReceive(h.ch, func(c workflow.ReceiveChannel, _ bool) {
				var m Milestone
				c.Receive(ctx, &m)
				h.add(m)
			}).
			Select(ctx)
		switch {
		case ctx.Err() != nil:
			return Milestone{}, ctx.Err()
		case late:
			return Milestone{}, failure(fault.Timeout, "no %s within %s; last seen: %s", want[0], limit, last)
		}
	}
}
