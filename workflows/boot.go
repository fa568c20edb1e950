package workflows

import (
	"fmt"
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
	Power  time.Duration `json:"power,omitempty"` // one act on a BMC
	Host   time.Duration `json:"host,omitempty"`  // one act on a Host; as Power when it is not there
	Boot   time.Duration `json:"boot"`            // power-on to phone-home
	Health time.Duration `json:"health"`          // phone-home to healthy
	Resend time.Duration `json:"resend"`          // a power-on that is not seen is sent again
}

// act is the limit of one act on what turns the target on and off; inputs of older versions name none.
func (in BootInput) act() time.Duration {
	if in.Where.VM && in.Limits.Host != 0 {
		return in.Limits.Host
	}
	if in.Limits.Power == 0 {
		return time.Minute
	}
	return in.Limits.Power
}

// token is how long the token of a target is good that is on.
func (l BootLimits) token() time.Duration { return l.Boot + l.Health }

// BootTarget powers a target on and follows its milestones until it is healthy. When it does not get
// there, the target is stopped again and its boot record withdrawn before the error is returned.
func BootTarget(ctx workflow.Context, in BootInput) error {
	heard := &milestones{in: in, ch: workflow.GetSignalChannel(ctx, SignalMilestone)}
	err := boot(ctx, in, heard)
	// What comes after the one that decided is of no more interest; unread it would be warned of. This is
	// not deferred: a workflow that is only put aside must not be touched any more.
	heard.take()
	return err
}

func boot(ctx workflow.Context, in BootInput, heard *milestones) (err error) {
	defer func() {
		if err == nil {
			return
		}
		// The cause is returned unchanged; a stop that fails too is seen by the fence that follows.
		undo, _ := workflow.NewDisconnectedContext(ctx)
		stop := workflow.ExecuteActivity(device(undo, in.act()), (*Activities).StopTarget, in, reason(err)).Get(undo, nil)
		if stop == nil {
			return
		}
		workflow.GetLogger(ctx).Warn("stopping a target that did not boot failed", "target", in.Name, "error", stop)
		if in.Held && temporal.IsCanceledError(err) || overtook(err) {
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
	if err := workflow.ExecuteActivity(device(ctx, in.act()), start, in).Get(ctx, nil); err != nil {
		// Its BMC did not say, but the target itself did: it is on.
		if !unanswered(err) || !heard.any() || workflow.GetVersion(ctx, "heard", workflow.DefaultVersion, 1) < 1 {
			return err
		}
	}
	if in.Held {
		if err := heard.release(ctx); err != nil {
			return err
		}
	}
	phoned, err := heard.await(ctx, in.Limits.Boot, "phone-home")
	if err != nil {
		return err
	}
	if in.Host {
		return workflow.ExecuteActivity(device(ctx, in.Limits.Health), (*Activities).HostReady, in, phoned).Get(ctx, nil)
	}
	if _, err := heard.await(ctx, in.Limits.Health, "healthy"); err != nil {
		return err
	}
	return workflow.ExecuteActivity(device(ctx, in.Limits.Health), (*Activities).Verify, in).Get(ctx, nil)
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
