package workflows

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// existing is how to open a hypervisor that is declared and not ours.
func existing(m topology.Machine) state.Host { return state.Host{Existing: &m.Spec.Hypervisor} }

// existingRoom asks hypervisors that are not ours for their room. Nobody here knows what else runs there, and
// so one that does not say is no target.
func (a *Activities) existingRoom(ctx context.Context, machines []topology.Machine, in policies.PlacementInput) {
	ctx, cancel := context.WithTimeout(ctx, spareReading)
	defer cancel()
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(powerAtOnce)
	for _, m := range machines {
		g.Go(func() error {
			h, err := a.Devices.Host(ctx, m.Meta.Name, existing(m))
			var c driver.Capacity
			if err == nil {
				c, err = h.Capacity(ctx)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				in.Unusable[m.Meta.Name] = "its hypervisor does not say what room it has: " + err.Error()
			case c.Draining:
				in.Unusable[m.Meta.Name] = "its hypervisor drains"
			default:
				in.Hosts[m.Meta.Name] = policies.HostRoom{FreeCPUs: c.FreeCPUs, FreeMemory: c.FreeMemory}
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return no error
}
