package workflows

import (
	"errors"
	"fmt"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/policies"
)

// SignalMilestone carries a Milestone from the boot plane to the workflow that boots the target.
const SignalMilestone = "milestone"

// Milestone is one step that a booting machine or VM was seen to reach.
type Milestone struct {
	Kind     string    `json:"kind"` // dhcp, bootfile, script, kernel, phone-home, healthy, failed
	At       time.Time `json:"at"`
	Epoch    uint64    `json:"epoch"`
	AgentURL string    `json:"agentURL,omitempty"`
	Detail   string    `json:"detail,omitempty"`
}

// BootInput boots one target: a workload on a machine, a workload as a VM, or a Host.
type BootInput struct {
	Step
	Name   string         `json:"name"` // workload, or machine for a Host
	Where  policies.Where `json:"where"`
	Host   bool           `json:"host,omitempty"`
	Wave   int            `json:"wave,omitempty"`
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
	defer func() {
		if err == nil {
			return
		}
		// The cause is returned unchanged; a stop that fails too is seen by the fence that follows.
		undo, _ := workflow.NewDisconnectedContext(ctx)
		stop := workflow.ExecuteActivity(device(undo, time.Minute), (*Activities).StopTarget, in, reason(err)).Get(undo, nil)
		if stop != nil {
			workflow.GetLogger(ctx).Warn("stopping a target that did not boot failed", "target", in.Name, "error", stop)
		}
	}()
	signals := workflow.GetSignalChannel(ctx, SignalMilestone)
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
	phoned, err := await(ctx, signals, in, "phone-home", in.Limits.Boot)
	if err != nil {
		return err
	}
	if in.Host {
		return workflow.ExecuteActivity(device(ctx, in.Limits.Health), (*Activities).HostReady, in, phoned).Get(ctx, nil)
	}
	if _, err := await(ctx, signals, in, "healthy", in.Limits.Health); err != nil {
		return err
	}
	return workflow.ExecuteActivity(device(ctx, in.Limits.Health), (*Activities).Verify, in).Get(ctx, nil)
}

// await receives milestones until the wanted one, a failure reported by the target, or the deadline.
func await(ctx workflow.Context, ch workflow.ReceiveChannel, in BootInput, want string, limit time.Duration) (Milestone, error) {
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
		case got && m.Kind == want:
			return m, nil
		case got && m.Kind == "failed":
			return m, failure(fault.Unverified, "%s reported a failure: %s", in.Where.Machine, m.Detail)
		case got:
			last = m.Kind
		case late:
			return m, failure(fault.Timeout, "no %s within %s; last seen: %s", want, limit, last)
		}
	}
}

// failure is an error of workflow code itself: final, because the time for retries is over.
func failure(k fault.Kind, format string, args ...any) error {
	return temporal.NewNonRetryableApplicationError(fmt.Sprintf(format, args...), k.String(), nil)
}

// boot starts the round's targets: Hosts and bare-metal workloads at once, a VM when its Host is ready,
// and each workload when those it depends on are healthy.
func (r *recovery) boot(ctx workflow.Context, round int, plan Planned, lost losses) {
	policy := r.scope.Policy.Recovery
	lim := BootLimits{Boot: policy.BootDeadline.Or(15 * time.Minute), Health: policy.HealthDeadline.Or(5 * time.Minute),
		Resend: policy.ResendOn.Or(30 * time.Second)}
	slots := workflow.NewSemaphore(ctx, int64(max(policy.BootsAtOnce, 1)))
	wg := workflow.NewWaitGroup(ctx)
	run := func(ctx workflow.Context, in BootInput) error {
		if err := slots.Acquire(ctx, 1); err != nil {
			return err
		}
		defer slots.Release(1)
		if !in.Where.VM {
			r.started[in.Where.Machine] = true
		}
		child := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
			WorkflowID:        bootID(in.Step, in.Name, in.Host),
			ParentClosePolicy: enums.PARENT_CLOSE_POLICY_REQUEST_CANCEL,
			// A cancelled run is closed only when its targets are stopped.
			WaitForCancellation: true,
		})
		return workflow.ExecuteChildWorkflow(child, BootTarget, in).Get(ctx, nil)
	}
	ready := map[string]bool{} // Hosts
	for _, h := range plan.NewHosts {
		if lost.Machines[h.Machine] != "" {
			continue
		}
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			in := BootInput{Step: r.step(round), Name: h.Machine, Where: policies.Where{Machine: h.Machine}, Host: true, Limits: lim}
			if err := run(ctx, in); err != nil {
				lost.Machines[h.Machine] = reason(err)
				return
			}
			ready[h.Machine] = true
		})
	}
	mine := map[string]bool{}
	for _, a := range plan.Assignments {
		mine[a.Workload] = true
	}
	isNew := map[string]bool{}
	for _, h := range plan.NewHosts {
		isNew[h.Machine] = true
	}
	for _, a := range plan.Assignments {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			var blocked string
			// Conditions read only this workflow's own maps, so every replay decides alike.
			err := workflow.Await(ctx, func() bool {
				blocked = ""
				if lost.Machines[a.Machine] != "" || lost.Workloads[a.Workload] != "" {
					return true
				}
				for _, dep := range a.DependsOn {
					switch {
					case r.healthy[dep] || !mine[dep] && !r.isPending(dep):
					case lost.Workloads[dep] != "" || !mine[dep]:
						blocked = dep
						return true
					default:
						return false
					}
				}
				return !a.VM || !isNew[a.Machine] || ready[a.Machine]
			})
			switch {
			case err != nil:
				return
			case lost.Machines[a.Machine] != "":
				lost.Workloads[a.Workload] = lost.Machines[a.Machine]
				return
			case lost.Workloads[a.Workload] != "":
				return
			case blocked != "":
				lost.Workloads[a.Workload] = "waits for " + blocked + ", which did not come back"
				return
			}
			err = run(ctx, BootInput{Step: r.step(round), Name: a.Workload, Where: a.Where, Wave: a.Wave, Limits: lim})
			if err == nil {
				r.healthy[a.Workload] = true
				return
			}
			lost.Workloads[a.Workload] = reason(err)
			if !a.VM || silent(err) {
				lost.Machines[a.Machine] = reason(err)
			}
		})
	}
	wg.Wait(ctx)
}

// silent reports whether a target failed because its device did not answer: for a VM that is its Host,
// which then is no place for the next one either.
func silent(err error) bool {
	var app *temporal.ApplicationError
	return errors.As(err, &app) && app.Type() == fault.Unreachable.String()
}

func (r *recovery) isPending(w string) bool {
	for _, p := range r.pending {
		if p == w {
			return true
		}
	}
	return false
}

func bootID(s Step, name string, host bool) string {
	kind := "workload"
	if host {
		kind = "host"
	}
	return fmt.Sprintf("boot/%s/%d/%s/%s", s.Run, s.Round, kind, name)
}
