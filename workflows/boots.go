package workflows

import (
	"errors"
	"slices"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/policies"
)

// boots is the boot phase of one round: Hosts and workloads that wait for nothing are powered on at once,
// a VM when its Host is ready. A workload that waits for others is powered on with the rest and held in
// its boot loader, so that the minutes of its firmware pass beside theirs and not after them.
type boots struct {
	r     *recovery
	step  Step
	lost  losses
	lim   BootLimits
	slots workflow.Semaphore // of targets that are being booted
	// idle are the slots that held targets may take: half of them, so that those they wait for always
	// find one.
	idle  workflow.Semaphore
	holds bool            // false in runs that were begun before targets were held
	ready map[string]bool // Hosts of this round that run; false while they boot
	mine  map[string]bool // workloads of this round
}

// boot boots the targets of a round and returns when each is healthy or lost.
func (r *recovery) boot(ctx workflow.Context, round int, plan Planned, lost losses) {
	policy := r.scope.Policy.Recovery
	most := int64(max(policy.BootsAtOnce, 1))
	b := &boots{r: r, step: r.step(round), lost: lost, slots: workflow.NewSemaphore(ctx, most), idle: workflow.NewSemaphore(ctx, most/2),
		lim: BootLimits{Power: limits(r.scope).power, Host: limits(r.scope).device, Boot: policy.BootDeadline.Or(15 * time.Minute), Health: policy.HealthDeadline.Or(5 * time.Minute),
			Resend: policy.ResendOn.Or(30 * time.Second)},
		holds: workflow.GetVersion(ctx, "hold", workflow.DefaultVersion, 1) >= 1, ready: map[string]bool{}, mine: map[string]bool{}}
	wg := workflow.NewWaitGroup(ctx)
	start := func(f func(workflow.Context)) {
		wg.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer wg.Done()
			f(ctx)
		})
	}
	for _, h := range plan.NewHosts {
		if lost.Machines[h.Machine] == "" {
			b.ready[h.Machine] = false
			start(func(ctx workflow.Context) { b.host(ctx, h.Machine) })
		}
	}
	for _, a := range plan.Assignments {
		b.mine[a.Workload] = true
	}
	// What others wait for comes first to the slots.
	var waiting []PlannedTarget
	for _, a := range plan.Assignments {
		if b.holds && b.waits(a) {
			waiting = append(waiting, a)
			continue
		}
		start(func(ctx workflow.Context) { b.workload(ctx, a) })
	}
	for _, a := range waiting {
		start(func(ctx workflow.Context) { b.workload(ctx, a) })
	}
	wg.Wait(ctx)
}

func (b *boots) host(ctx workflow.Context, machine string) {
	in := BootInput{Step: b.step, Name: machine, Where: policies.Where{Machine: machine}, Host: true, Limits: b.lim}
	if err := b.run(ctx, in); err != nil {
		b.lost.Machines[machine] = reason(err)
		return
	}
	b.ready[machine] = true
}

// run boots one target as soon as there is a slot.
func (b *boots) run(ctx workflow.Context, in BootInput) error {
	if err := b.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer b.slots.Release(1)
	return b.begin(ctx, in).Get(ctx, nil)
}

func (b *boots) begin(ctx workflow.Context, in BootInput) workflow.ChildWorkflowFuture {
	if !in.Where.VM {
		b.r.started[in.Where.Machine] = true
	}
	return workflow.ExecuteChildWorkflow(workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID:        bootID(in.Step, in.Name, in.Host),
		ParentClosePolicy: enums.PARENT_CLOSE_POLICY_REQUEST_CANCEL,
		// A cancelled run is closed only when its targets are stopped.
		WaitForCancellation: true,
	}), BootTarget, in)
}

func (b *boots) workload(ctx workflow.Context, a PlannedTarget) {
	in := BootInput{Step: b.step, Name: a.Workload, Where: a.Where, Wave: a.Wave, Limits: b.lim}
	if b.holds {
		// Conditions read only this workflow's own maps, so every replay decides alike.
		if err := workflow.Await(ctx, func() bool { return b.gone(a) || b.placed(a) }); err != nil {
			return
		}
		if !b.gone(a) && b.waits(a) && b.idle.TryAcquire(ctx, 1) {
			defer b.idle.Release(1)
			if b.slots.TryAcquire(ctx, 1) {
				defer b.slots.Release(1)
				in.Held = true
				b.end(a, b.held(ctx, in, a))
				return
			}
		}
	}
	if err := workflow.Await(ctx, func() bool { return b.gone(a) || b.blocked(a) != "" || b.placed(a) && !b.waits(a) }); err != nil {
		return
	}
	switch dep := b.blocked(a); {
	case b.gone(a):
		if b.lost.Workloads[a.Workload] == "" {
			b.lost.Workloads[a.Workload] = b.lost.Machines[a.Machine]
		}
	case dep != "":
		b.lost.Workloads[a.Workload] = waitsInVain(dep)
	default:
		b.end(a, b.run(ctx, in))
	}
}

// held boots a target that waits for others: it is released when they are healthy, and stopped when one
// of them will not be.
func (b *boots) held(ctx workflow.Context, in BootInput, a PlannedTarget) error {
	child, cancel := workflow.WithCancel(ctx)
	defer cancel()
	target := b.begin(child, in)
	if err := workflow.Await(ctx, func() bool { return target.IsReady() || b.blocked(a) != "" || !b.waits(a) }); err != nil {
		return target.Get(ctx, nil)
	}
	dep := b.blocked(a)
	switch {
	case target.IsReady():
	case dep != "":
		cancel()
	default:
		m := Milestone{Kind: milestoneReleased, At: workflow.Now(ctx), Epoch: in.Epoch}
		// One that has ended meanwhile says so itself.
		_ = target.SignalChildWorkflow(ctx, SignalMilestone, m).Get(ctx, nil)
	}
	err := target.Get(ctx, nil)
	if dep != "" && temporal.IsCanceledError(err) {
		b.lost.Workloads[a.Workload] = waitsInVain(dep)
	}
	return err
}

// end records how the boot of a workload ended.
func (b *boots) end(a PlannedTarget, err error) {
	switch {
	case err == nil:
		b.r.healthy[a.Workload] = true
		return
	case b.lost.Workloads[a.Workload] != "" && temporal.IsCanceledError(err):
		return // its machine is off again and as good as before
	}
	b.lost.Workloads[a.Workload] = reason(err)
	if overtook(err) {
		return // by a newer run; its machine was stopped and is as good as before
	}
	if !a.VM || silent(err) {
		b.lost.Machines[a.Machine] = reason(err)
	}
}

func waitsInVain(dep string) string { return "waits for " + dep + ", which did not come back" }

// gone reports whether the workload or its place was lost before it was started.
func (b *boots) gone(a PlannedTarget) bool {
	return b.lost.Machines[a.Machine] != "" || b.lost.Workloads[a.Workload] != ""
}

// placed reports whether the workload's place is there: a machine always is, a Host when it runs.
func (b *boots) placed(a PlannedTarget) bool {
	up, boots := b.ready[a.Machine]
	return !a.VM || up || !boots
}

// settled reports whether a dependency is healthy, or not a matter of this run.
func (b *boots) settled(dep string) bool {
	return b.r.healthy[dep] || !b.mine[dep] && !slices.Contains(b.r.pending, dep)
}

// waits reports whether the workload depends on one that is not healthy yet.
func (b *boots) waits(a PlannedTarget) bool {
	return slices.ContainsFunc(a.DependsOn, func(dep string) bool { return !b.settled(dep) })
}

// blocked names a dependency that will not be healthy in this round, or "".
func (b *boots) blocked(a PlannedTarget) string {
	for _, dep := range a.DependsOn {
		if !b.settled(dep) && (b.lost.Workloads[dep] != "" || !b.mine[dep]) {
			return dep
		}
	}
	return ""
}

// overtook reports whether a target failed because a newer run has taken what it needs.
func overtook(err error) bool {
	var app *temporal.ApplicationError
	return errors.As(err, &app) && app.Type() == fault.Stale.String()
}

// silent reports whether a target failed because its device did not answer: for a VM that is its Host,
// which then is no place for the next one either.
func silent(err error) bool {
	var app *temporal.ApplicationError
	return errors.As(err, &app) && app.Type() == fault.Unreachable.String()
}
