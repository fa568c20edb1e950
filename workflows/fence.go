package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"rerack.dev/rerack/policies"
)

// Step names one round of one run to an activity, which reads the rest from the store.
type Step struct {
	Run   string `json:"run"`
	Round int    `json:"round"`
	Epoch uint64 `json:"epoch"`
}

// FenceInput asks for the fences of some machines of a run.
type FenceInput struct {
	Run       string   `json:"run"`
	Epoch     uint64   `json:"epoch"`
	Machines  []string `json:"machines"`
	Workloads []string `json:"workloads"` // whose volumes are taken away from everybody
	Device    string   `json:"device,omitempty"`
	Dead      []string `json:"dead,omitempty"` // switches that do not answer
	// Ports are what to close on the device: exactly those that are taken for closed when it is done.
	Ports []policies.PortRef `json:"ports,omitempty"`
}

// Fences maps a machine, or "workload/<name>" for what belongs to a workload, to what was read back.
type Fences map[string]policies.Fence

type deviceLimits struct{ power, device time.Duration }

func limits(s Scope) deviceLimits {
	return deviceLimits{
		power:  s.Policy.Fencing.PowerLimit.Or(time.Minute),
		device: s.Policy.Fencing.DeviceLimit.Or(time.Minute),
	}
}

// fence cuts the machines off in every way at once and returns the workloads whose fencing
// requirement is met. Power, ports, zones and masks do not wait for each other, and a workload that is
// fenced without its former machine's power does not wait for that either: the power fence of a rack
// whose BMCs are dead goes on behind, and late is what it found. late is returned with an error too: nothing may
// turn a machine off any more when its run has ended.
func fence(ctx workflow.Context, run string, s Scope, machines, workloads []string) (met []string, late latePower, err error) {
	in := FenceInput{Run: run, Epoch: s.Epoch, Machines: machines, Workloads: workloads}
	lim := limits(s)
	powering, cancel := workflow.WithCancel(ctx)
	power := workflow.ExecuteActivity(device(powering, lim.power), (*Activities).FencePower, in)
	got := map[policies.FenceKind]Fences{policies.FencePower: {}}
	late = latePower{in: in, got: got, future: power, cancel: cancel}
	wg := workflow.NewWaitGroup(ctx)
	var networkErr, storageErr error
	wg.Add(2)
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer wg.Done()
		got[policies.FenceNetwork], networkErr = fenceNetwork(ctx, in, lim.device)
	})
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer wg.Done()
		got[policies.FenceStorage], storageErr = fenceStorage(ctx, in, lim.device)
	})
	wg.Wait(ctx)
	for _, err := range []error{networkErr, storageErr, ctx.Err()} {
		if err != nil {
			return nil, late, err
		}
	}
	if power.IsReady() {
		return late.judge(ctx)
	}
	judge := JudgeInput{FenceInput: in, Got: got, PowerPending: true}
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).JudgeFences, judge).Get(ctx, &met); err != nil {
		return nil, late, err
	}
	if len(met) == len(workloads) {
		return met, late, nil
	}
	return late.judge(ctx)
}

// latePower is a power fence that was not waited for.
type latePower struct {
	in     FenceInput
	got    map[policies.FenceKind]Fences
	future workflow.Future // nil when there is none
	cancel workflow.CancelFunc
}

// judge waits for the power fence and decides with it.
func (l latePower) judge(ctx workflow.Context) ([]string, latePower, error) {
	var f Fences
	if err := l.future.Get(ctx, &f); err != nil { // the other fences may do without it
		f = unconfirmed(policies.FencePower, l.in.Machines, reason(err))
	}
	l.got[policies.FencePower] = f
	var met []string
	err := workflow.ExecuteActivity(quick(ctx), (*Activities).JudgeFences, JudgeInput{FenceInput: l.in, Got: l.got}).Get(ctx, &met)
	return met, latePower{}, err
}

// record writes down what a power fence that nobody waited for has found.
func (l latePower) record(ctx workflow.Context) error {
	if l.future == nil {
		return nil
	}
	l.in.Workloads = nil // they are decided already
	_, _, err := l.judge(ctx)
	return err
}

// abandon ends a power fence whose result nobody wants any more, and returns when it has ended.
func (l latePower) abandon(ctx workflow.Context) {
	if l.future == nil || l.future.IsReady() || workflow.GetVersion(ctx, "abandon", workflow.DefaultVersion, 1) < 1 {
		return
	}
	l.cancel()
	_ = l.future.Get(ctx, nil) // what it did is in the machines' power state
}

// fenceNetwork closes ports switch by switch, all switches at once. A switch that fails counts as dead
// from then on, and the ports behind which it stands are closed instead.
func fenceNetwork(ctx workflow.Context, in FenceInput, limit time.Duration) (Fences, error) {
	all := Fences{}
	for {
		var plan NetworkFence
		if err := workflow.ExecuteActivity(quick(ctx), (*Activities).PlanNetworkFence, in).Get(ctx, &plan); err != nil {
			return nil, err
		}
		futures := make([]workflow.Future, len(plan.Switches))
		for i, sw := range plan.Switches {
			one := in
			one.Device, one.Ports = sw, plan.on(sw)
			futures[i] = workflow.ExecuteActivity(device(ctx, limit), (*Activities).FenceSwitch, one)
		}
		closed, theirs := map[string]bool{}, map[policies.PortRef]bool{}
		var dead []string
		for i, sw := range plan.Switches {
			var done SwitchFence
			if err := futures[i].Get(ctx, &done); err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				dead = append(dead, sw)
			} else {
				closed[sw] = true
			}
			for _, p := range done.Theirs {
				theirs[p] = true
			}
		}
		for _, iso := range plan.Isolations {
			all[iso.Machine] = networkFence(iso, closed, theirs)
		}
		if len(dead) == 0 {
			return all, nil
		}
		in.Dead = append(plan.Dead, dead...)
	}
}

func networkFence(iso policies.Isolation, closed map[string]bool, theirs map[policies.PortRef]bool) policies.Fence {
	f := policies.Fence{Kind: policies.FenceNetwork, Confirmed: iso.Impossible == "" && len(iso.Ports) > 0}
	f.Detail = iso.Impossible
	for _, p := range iso.Ports {
		if !closed[p.Switch] {
			f.Confirmed = false
			f.Detail = "switch " + p.Switch + " did not close port " + p.Port
			return f
		}
		if theirs[p] {
			f.Confirmed = false
			f.Detail = "port " + p.Port + " of switch " + p.Switch + " is a newer run's, and open"
			return f
		}
		if f.Detail != "" {
			f.Detail += ", "
		}
		f.Detail += p.Switch + " port " + p.Port + " closed"
	}
	return f
}

// fenceStorage takes every volume of the workloads away from everybody: zones and masks, one commit
// per fabric and array.
func fenceStorage(ctx workflow.Context, in FenceInput, limit time.Duration) (Fences, error) {
	var devices StorageDevices
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).PlanStorageFence, in).Get(ctx, &devices); err != nil {
		return nil, err
	}
	type call struct {
		device string
		future workflow.Future
	}
	var calls []call
	for _, f := range devices.Fabrics {
		one := in
		one.Device = f
		calls = append(calls, call{"fabric " + f, workflow.ExecuteActivity(device(ctx, limit), (*Activities).FenceFabric, one)})
	}
	for _, a := range devices.Arrays {
		one := in
		one.Device = a
		calls = append(calls, call{"array " + a, workflow.ExecuteActivity(device(ctx, limit), (*Activities).FenceArray, one)})
	}
	failed := map[string]string{}
	for _, c := range calls {
		var missing map[string]string // volumes; of an array
		if err := c.future.Get(ctx, &missing); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			failed[c.device] = reason(err)
		}
		for _, v := range sortedKeys(missing) {
			failed["volume "+v] = missing[v]
		}
	}
	out := Fences{}
	for _, w := range sortedKeys(devices.Volumes) {
		out["workload/"+w] = storageFence(devices.Volumes[w], failed)
	}
	return out, nil
}

// storageFence holds when every volume is unmasked on its array or, failing that, unzoned on every
// fabric that leads to it: either alone cuts the data path.
func storageFence(volumes []VolumePath, failed map[string]string) policies.Fence {
	f := policies.Fence{Kind: policies.FenceStorage, Confirmed: true}
	for _, v := range volumes {
		why, bad := failed["array "+v.Array]
		if !bad {
			why, bad = failed["volume "+v.Volume]
		}
		if !bad {
			f.Detail = join(f.Detail, v.Volume+" unmasked on "+v.Array)
			continue
		}
		unzoned := len(v.Fabrics) > 0
		for _, fab := range v.Fabrics {
			unzoned = unzoned && failed["fabric "+fab] == ""
		}
		if unzoned {
			f.Detail = join(f.Detail, v.Volume+" unzoned, while array "+v.Array+" failed: "+why)
			continue
		}
		f.Confirmed = false
		f.Detail = join(f.Detail, v.Volume+" still reachable, array "+v.Array+": "+why)
	}
	return f
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

func unconfirmed(kind policies.FenceKind, machines []string, why string) Fences {
	f := Fences{}
	for _, m := range machines {
		f[m] = policies.Fence{Kind: kind, Detail: why}
	}
	return f
}
