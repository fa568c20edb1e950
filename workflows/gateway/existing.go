package gateway

import (
	"context"
	"crypto/tls"
	"time"

	bmcdriver "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// OpenHypervisor opens the hypervisor that a machine runs already; cert is ours.
type OpenHypervisor func(machine string, h topology.Hypervisor, cert tls.Certificate) (driver.Host, error)

// existing opens the hypervisor that a machine runs already.
func (g *Gateway) existing(ctx context.Context, machine string, h topology.Hypervisor) (driver.Host, error) {
	open, ok := g.cfg.Hypervisors[h.Driver]
	if !ok {
		return nil, undriven("hypervisor of machine", machine, string(h.Driver))
	}
	return kept(ctx, g, "host/"+machine, h, func() (driver.Host, error) {
		d, err := open(machine, h, g.cfg.AgentCert)
		if err != nil {
			return nil, err
		}
		return g.told(d, machine)
	})
}

// witness is the BMC of a machine whose hypervisor is not ours: it is asked, and nothing else.
type witness struct {
	control
	machine string
}

// Off implements workflows.MachineControl.
func (w witness) Off(context.Context, int, time.Duration) ([]bmcdriver.Reading, error) {
	return nil, w.refuse("power off")
}

// On implements workflows.MachineControl.
func (w witness) On(context.Context, bmcdriver.BootOverride, time.Duration) error {
	return w.refuse("power on")
}

// StayOff implements workflows.MachineControl.
func (w witness) StayOff(context.Context) error { return w.refuse("keep off") }

func (w witness) refuse(what string) error {
	return &fault.Error{Kind: fault.Unsafe, Where: "machine " + w.machine, What: what,
		Evidence: "it runs a hypervisor that is not Rerack's, and VMs of others", Next: "do it by hand when it must be done"}
}
