package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"
)

// DeviceStep is one device's share of a round.
type DeviceStep struct {
	Step
	Device string `json:"device"`
	Lost   losses `json:"lost"`
}

// RewirePlan lists what a round touches, in a stable order.
type RewirePlan struct {
	Switches []string `json:"switches"`
	Fabrics  []string `json:"fabrics"`
	Arrays   []string `json:"arrays"`
	// Behind says who depends on a device: machines on a switch, workloads on a fabric or array.
	Behind map[string][]string `json:"behind"`
}

// rewire commits the round's plan to all devices at once, one commit each. What hangs on a device that
// fails is lost for this round: machines behind a switch, workloads behind a fabric or array.
func rewire(ctx workflow.Context, s Step, limit time.Duration, lost losses) (devices int, err error) {
	var d RewirePlan
	in := DeviceStep{Step: s, Lost: lost}
	if err := workflow.ExecuteActivity(quick(ctx), (*Activities).PlanRewire, in).Get(ctx, &d); err != nil {
		return 0, err
	}
	type call struct {
		key    string
		future workflow.Future
		out    map[string]string
	}
	var calls []call
	start := func(names []string, key string, act any, out map[string]string) {
		for _, n := range names {
			one := in
			one.Device = n
			calls = append(calls, call{key + n, workflow.ExecuteActivity(device(ctx, limit), act, one), out})
		}
	}
	start(d.Switches, "switch/", (*Activities).ApplySwitch, lost.Machines)
	start(d.Fabrics, "fabric/", (*Activities).ApplyFabric, lost.Workloads)
	start(d.Arrays, "array/", (*Activities).ApplyArray, lost.Workloads)
	for _, c := range calls {
		var without map[string]string // workloads; of an array
		if err := c.future.Get(ctx, &without); err != nil {
			for _, name := range d.Behind[c.key] {
				c.out[name] = c.key + ": " + reason(err)
			}
			continue
		}
		for _, name := range d.Behind[c.key] {
			if why := without[name]; why != "" {
				c.out[name] = why
			}
		}
	}
	return len(calls), ctx.Err()
}
