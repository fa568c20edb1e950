package workflows

import (
	"fmt"
	"slices"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/policies"
)

// SignalMilestone carries a Milestone from the boot plane to the workflow that boots the target.
const SignalMilestone = "milestone"

// Milestone is one step that a booting machine or VM was seen to reach.
type Milestone struct {
	Kind     string    `json:"kind"` // dhcp, bootfile, script, kernel, phone-home, healthy, failed; released
	At       time.Time `json:"at"`
	Epoch    uint64    `json:"epoch"`
	AgentURL string    `json:"agentURL,omitempty"`
	Detail   string    `json:"detail,omitempty"`
}

// milestoneReleased is the one that does not come from a machine: what a held target waits for is healthy.
const milestoneReleased = "released"

// holdAtMost bounds a hold that nobody ends. A held target's token is good for the hold script alone.
const holdAtMost = 24 * time.Hour

// BootInput boots one target: a workload on a machine, a workload as a VM, or a Host.
type BootInput struct {
	Step
	Name   string         `json:"name"` // workload, or machine for a Host
	Where  policies.Where `json:"where"`
	Host   bool           `json:"host,omitempty"`
	Wave   int            `json:"wave,omitempty"`
	Held   bool           `json:"held,omitempty"` // waits in its boot loader until it is released
	Limits BootLimits     `json:"limits"`
}

// BootLimits are the deadlines of a boot.
type BootLimits struct {
	Boot   time.Duration `json:"boot"`   // power-on to phone-home
	Health time.Duration `json:"health"` // phone-home to healthy
	Resend time.Duration `json:"resend"` // a power-on that is not seen is sent again
}

// BootTarget powers a target on and follows its milestones until it is healthy. When it does not get
// there, the target is stopped again and its boot record withdrawn before the error is returned.
func BootTarget(ctx workflow.Context, in BootInput) (err error) {
	signals := workflow.GetSignalChannel(ctx, SignalMilestone)
	// What comes after the one that decided is of no more interest; unread it would be warned of.
	defer func() {
		for signals.ReceiveAsync(nil) {
		}
	}()
	defer func() {
		if err == nil {
			return
		}
		// The cause is returned unchanged; a stop that fails too is seen by the fence that follows.
		undo, _ := workflow.NewDisconnectedContext(ctx)
		stop := workflow.ExecuteActivity(device(undo, time.Minute), (*Activities).StopTarget, in, reason(err)).Get(undo, nil)
		if stop == nil {
			return
		}
		workflow.GetLogger(ctx).Warn("stopping a target that did not boot failed", "target", in.Name, "error", stop)
		if in.Held && temporal.IsCanceledError(err) {
			err = failure(fault.Unverified, "it was powered on, was no more needed, and was not seen to stop: %s", reason(stop))
		}
	}()
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).PrepareBoot, in).Get(ctx, nil); err != nil {
		return err
	}
	start := (*Activities).PowerOn
	if in.Where.VM {
		start = (*Activities).StartVM
	}
	if err := workflow.ExecuteActivity(device(ctx, in.Limits.Boot), start, in).Get(ctx, nil); err != nil {
		return err
	}
	if in.Held {
		if err := release(ctx, signals, in); err != nil {
			return err
		}
	}
	phoned, err := await(ctx, signals, in, in.Limits.Boot, "phone-home")
	if err != nil {
		return err
	}
	if in.Host {
		return workflow.ExecuteActivity(device(ctx, in.Limits.Health), (*Activities).HostReady, in, phoned).Get(ctx, nil)
	}
	if _, err := await(ctx, signals, in, in.Limits.Health, "healthy"); err != nil {
		return err
	}
	return workflow.ExecuteActivity(device(ctx, in.Limits.Health), (*Activities).Verify, in).Get(ctx, nil)
}

// release follows a held target into its boot loader, and lets it boot when what it depends on is
// healthy, whichever comes first.
func release(ctx workflow.Context, ch workflow.ReceiveChannel, in BootInput) error {
	m, err := await(ctx, ch, in, in.Limits.Boot, "script", milestoneReleased)
	if err == nil && m.Kind != milestoneReleased {
		_, err = await(ctx, ch, in, holdAtMost, milestoneReleased)
	}
	if err != nil {
		return err
	}
	return workflow.ExecuteActivity(quick(ctx), (*Activities).ReleaseBoot, in).Get(ctx, nil)
}

// await receives milestones until one that is wanted, a failure reported by the target, or the deadline.
func await(ctx workflow.Context, ch workflow.ReceiveChannel, in BootInput, limit time.Duration, want ...string) (Milestone, error) {
	timed, cancel := workflow.WithCancel(ctx)
	defer cancel()
	timer := workflow.NewTimer(timed, limit)
	last := "power-on"
	for {
		var m Milestone
		var late, got bool
		workflow.NewSelector(ctx).
			AddFuture(timer, func(workflow.Future) { late = true }).
			AddReceive(ch, func(c workflow.ReceiveChannel, _ bool) { c.Receive(ctx, &m); got = true }).
			Select(ctx)
		switch {
		case ctx.Err() != nil:
			return m, ctx.Err()
		case got && m.Epoch != in.Epoch:
			continue // of an earlier boot of the same target
		case got && slices.Contains(want, m.Kind):
			return m, nil
		case got && m.Kind == "failed":
			return m, failure(fault.Unverified, "%s reported a failure: %s", in.Where.Machine, m.Detail)
		case got:
			last = m.Kind
		case late:
			return m, failure(fault.Timeout, "no %s within %s; last seen: %s", want[0], limit, last)
		}
	}
}

// failure is an error of workflow code itself: final, because the time for retries is over.
func failure(k fault.Kind, format string, args ...any) error {
	return temporal.NewNonRetryableApplicationError(fmt.Sprintf(format, args...), k.String(), nil)
}

func bootID(s Step, name string, host bool) string {
	kind := "workload"
	if host {
		kind = "host"
	}
	return fmt.Sprintf("boot/%s/%d/%s/%s", s.Run, s.Round, kind, name)
}
