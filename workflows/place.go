package workflows

import (
	"fmt"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/orchestrator/state"
)

// PlaceWorkload starts one workload that runs nowhere, on the machine or Host that fits it best. A
// target that does not boot is fenced and replaced by the next, as in a recovery.
func PlaceWorkload(ctx workflow.Context, in RecoverInput) (RecoverResult, error) {
	r := newRecovery(in)
	return r.closing(ctx, func(ctx workflow.Context) (RecoverResult, error) {
		if err := workflow.ExecuteActivity(quick(ctx), (*Activities).OpenPlacement, in.Run).Get(ctx, &r.scope); err != nil {
			return RecoverResult{}, err
		}
		for _, a := range r.scope.Affected {
			r.pending = append(r.pending, a.Workload)
		}
		return r.rounds(ctx)
	})
}

// ReleaseWorkload stops one workload and takes its identity and volumes back: power off or VM stopped,
// read back; then masks, zones and ports. When it cannot be stopped it keeps what it has. What is stopped already
// when an error or a cancellation comes is disconnected all the same: half a release is neither.
func ReleaseWorkload(ctx workflow.Context, in RecoverInput) (RecoverResult, error) {
	r := newRecovery(in)
	return r.closing(ctx, func(ctx workflow.Context) (res RecoverResult, err error) {
		if err := workflow.ExecuteActivity(quick(ctx), (*Activities).OpenRelease, in.Run).Get(ctx, &r.scope); err != nil {
			return res, err
		}
		step, lim := r.step(1), limits(r.scope)
		err = r.phase(ctx, "stop", func() (string, error) {
			return "stopped", workflow.ExecuteActivity(device(ctx, lim.power), (*Activities).StopWorkload, step, r.scope).Get(ctx, nil)
		})
		if err != nil {
			// The lease goes back first: the workload is still running and nothing else may have it.
			undo, _ := workflow.NewDisconnectedContext(ctx)
			stopped := false
			if uerr := workflow.ExecuteActivity(device(undo, lim.power), (*Activities).KeepWorkload, step, r.scope).Get(undo, &stopped); uerr != nil {
				return res, uerr
			}
			if !stopped {
				return res, err
			}
			return r.forward(ctx, step, err)
		}
		if err = r.disconnecting(ctx, step); temporal.IsCanceledError(err) {
			return r.forward(ctx, step, err)
		}
		return RecoverResult{State: state.RunDone, Reason: "released"}, err
	})
}

// forward finishes the release of what is stopped already, whatever came between.
func (r *recovery) forward(ctx workflow.Context, step Step, came error) (res RecoverResult, err error) {
	last, _ := workflow.NewDisconnectedContext(ctx)
	if workflow.GetVersion(last, "forward", workflow.DefaultVersion, 1) < 1 {
		return res, came
	}
	if err := r.disconnecting(last, step); err != nil {
		return res, err
	}
	if temporal.IsCanceledError(came) {
		return RecoverResult{Reason: "cancelled by a person when it was off already: it is released"}, came
	}
	return RecoverResult{State: state.RunDone, Reason: "released; that it was off was read after: " + reason(came)}, nil
}

func (r *recovery) disconnecting(ctx workflow.Context, step Step) error {
	return r.phase(ctx, "disconnect", func() (string, error) {
		n, err := r.disconnect(ctx, step)
		return fmt.Sprintf("%d devices, one commit each", n), err
	})
}

// disconnect takes the volumes away from everybody and puts the machine's ports back to where a free
// machine's are.
func (r *recovery) disconnect(ctx workflow.Context, s Step) (int, error) {
	in := FenceInput{Run: s.Run, Epoch: s.Epoch}
	for _, a := range r.scope.Affected {
		in.Workloads = append(in.Workloads, a.Workload)
	}
	lim := limits(r.scope)
	var d StorageDevices
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).PlanStorageFence, in).Get(ctx, &d); err != nil {
		return 0, err
	}
	var futures []workflow.Future
	each := func(names []string, act any, arg func(FenceInput) any) {
		for _, n := range names {
			one := in
			one.Device = n
			futures = append(futures, workflow.ExecuteActivity(device(ctx, lim.device), act, arg(one)))
		}
	}
	same := func(f FenceInput) any { return f }
	each(d.Fabrics, (*Activities).FenceFabric, same)
	each(d.Arrays, (*Activities).FenceArray, same)
	each(r.scope.Switches, (*Activities).FreePorts, func(f FenceInput) any { f.Machines = r.scope.Machines; return f })
	for _, f := range futures {
		if err := f.Get(ctx, nil); err != nil {
			return len(futures), err
		}
	}
	return len(futures), nil
}
