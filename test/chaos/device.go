package chaos

import (
	"context"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	hypervisor "rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/workflows"
)

// devices lets every call to a device pass a cut.
type devices struct {
	workflows.Devices
	s *schedule
	c *checker

	deaf bool
}

// ask is a call that returns something; what an effect that comes later returns is nobody's.
func ask[T any](ctx context.Context, s *schedule, c class, what string, effect func(context.Context) (T, error)) (T, error) {
	var out T
	err := s.do(ctx, c, what, func(ctx context.Context) error {
		v, err := effect(ctx)
		if ctx.Value(processKey{}) != nil {
			out = v
		}
		return err
	})
	if err != nil && c != change {
		var none T
		return none, err
	}
	return out, err
}

// Machine implements workflows.Devices.
func (d *devices) Machine(ctx context.Context, m topology.Machine) (workflows.MachineControl, error) {
	inner, err := d.Devices.Machine(ctx, m)
	return &machine{inner, d, m.Meta.Name}, err
}

type machine struct {
	workflows.MachineControl
	d    *devices
	name string
}

// Power implements workflows.MachineControl.
func (m *machine) Power(ctx context.Context) (bmc.Reading, error) {
	return ask(ctx, m.d.s, reading, "power of "+m.name, m.MachineControl.Power)
}

// Off implements workflows.MachineControl.
func (m *machine) Off(ctx context.Context, readings int, gap time.Duration) ([]bmc.Reading, error) {
	r, err := ask(ctx, m.d.s, change, "power off "+m.name, func(ctx context.Context) ([]bmc.Reading, error) {
		m.d.c.touches(ctx, m.name)
		return m.MachineControl.Off(ctx, readings, gap)
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// On implements workflows.MachineControl.
func (m *machine) On(ctx context.Context, b bmc.BootOverride, resend time.Duration) error {
	return m.d.s.do(ctx, change, "power on "+m.name, func(ctx context.Context) error {
		m.d.c.touches(ctx, m.name)
		return m.MachineControl.On(ctx, b, resend)
	})
}

// StayOff implements workflows.MachineControl.
func (m *machine) StayOff(ctx context.Context) error {
	return m.d.s.do(ctx, change, "keep off "+m.name, m.MachineControl.StayOff)
}

// Host implements workflows.Devices.
func (d *devices) Host(ctx context.Context, machine string, h state.Host) (hypervisor.Host, error) {
	if d.s.cut(ctx, reading, "reach host "+machine).fault != "" {
		return nil, unreachable("host "+machine, "no route")
	}
	inner, err := d.Devices.Host(ctx, machine, h)
	if err != nil {
		return nil, err
	}
	return &host{inner, d, machine}, nil
}

type host struct {
	hypervisor.Host
	d    *devices
	name string
}

func (h *host) change(ctx context.Context, what string, effect func(context.Context) error) error {
	return h.d.s.do(ctx, change, what+" on "+h.name, func(ctx context.Context) error { return effect(ctx) })
}

// VMs implements hypervisor.Host.
func (h *host) VMs(ctx context.Context) ([]hypervisor.VM, error) {
	return ask(ctx, h.d.s, reading, "VMs of "+h.name, h.Host.VMs)
}

// Capacity implements hypervisor.Host.
func (h *host) Capacity(ctx context.Context) (hypervisor.Capacity, error) {
	return ask(ctx, h.d.s, reading, "capacity of "+h.name, h.Host.Capacity)
}

// Define implements hypervisor.Host.
func (h *host) Define(ctx context.Context, v hypervisor.Spec) error {
	return h.change(ctx, "define "+v.Name, func(ctx context.Context) error { return h.Host.Define(ctx, v) })
}

// Start implements hypervisor.Host.
func (h *host) Start(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "start "+name, func(ctx context.Context) error { return h.Host.Start(ctx, name, epoch) })
}

// Stop implements hypervisor.Host.
func (h *host) Stop(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "stop "+name, func(ctx context.Context) error { return h.Host.Stop(ctx, name, epoch) })
}

// Undefine implements hypervisor.Host.
func (h *host) Undefine(ctx context.Context, name string, epoch uint64) error {
	return h.change(ctx, "undefine "+name, func(ctx context.Context) error { return h.Host.Undefine(ctx, name, epoch) })
}
