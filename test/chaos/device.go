package chaos

import (
	"context"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	hypervisor "rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	san "rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/workflows"
)

// devices lets every call to a device pass a cut.
type devices struct {
	workflows.Devices
	s *schedule
	c *checker
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

// Switch implements workflows.Devices.
func (d *devices) Switch(ctx context.Context, sw topology.Switch) (workflows.Switch, error) {
	inner, err := d.Devices.Switch(ctx, sw)
	return &netSwitch{inner, d.s, sw.Meta.Name}, err
}

type netSwitch struct {
	workflows.Switch
	s    *schedule
	name string
}

// Ports implements workflows.Switch.
func (n *netSwitch) Ports(ctx context.Context) ([]fabric.Port, error) {
	return ask(ctx, n.s, reading, "ports of "+n.name, n.Switch.Ports)
}

// Apply implements workflows.Switch.
func (n *netSwitch) Apply(ctx context.Context, c fabric.Change) (fabric.Result, error) {
	return ask(ctx, n.s, change, "set ports of "+n.name, func(ctx context.Context) (fabric.Result, error) { return n.Switch.Apply(ctx, c) })
}

// Fabric implements workflows.Devices.
func (d *devices) Fabric(ctx context.Context, f topology.Fabric) (workflows.Fabric, error) {
	inner, err := d.Devices.Fabric(ctx, f)
	return &sanFabric{inner, d.s, f.Meta.Name}, err
}

type sanFabric struct {
	workflows.Fabric
	s    *schedule
	name string
}

// Apply implements workflows.Fabric.
func (f *sanFabric) Apply(ctx context.Context, c san.ZoneChange) (san.ZoneResult, error) {
	return ask(ctx, f.s, change, "set zones of "+f.name, func(ctx context.Context) (san.ZoneResult, error) { return f.Fabric.Apply(ctx, c) })
}

// Array implements workflows.Devices.
func (d *devices) Array(ctx context.Context, a topology.Array) (workflows.Array, error) {
	inner, err := d.Devices.Array(ctx, a)
	return &array{inner, d.s, a.Meta.Name}, err
}

type array struct {
	workflows.Array
	s    *schedule
	name string
}

// Masks implements workflows.Array.
func (a *array) Masks(ctx context.Context) ([]san.Mask, error) {
	return ask(ctx, a.s, reading, "masks of "+a.name, a.Array.Masks)
}

// Apply implements workflows.Array.
func (a *array) Apply(ctx context.Context, c san.MaskChange) (san.MaskResult, error) {
	return ask(ctx, a.s, change, "set masks of "+a.name, func(ctx context.Context) (san.MaskResult, error) { return a.Array.Apply(ctx, c) })
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
