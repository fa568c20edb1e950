package chaos

import (
	"context"
	"reflect"
	"slices"

	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/orchestrator/topology"
	san "rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/test/world"
	"rerack.dev/rerack/workflows"
)

// Switch implements workflows.Devices.
func (d *devices) Switch(ctx context.Context, sw topology.Switch) (workflows.Switch, error) {
	inner, err := d.Devices.Switch(ctx, sw)
	return &netSwitch{inner, d.s, d.c.s.dc.World, d.deaf, sw.Meta.Name}, err
}

type netSwitch struct {
	workflows.Switch
	s    *schedule
	w    *world.World
	deaf bool
	name string
}

// Ports implements workflows.Switch.
func (n *netSwitch) Ports(ctx context.Context) ([]fabric.Port, error) {
	return ask(ctx, n.s, reading, "ports of "+n.name, n.Switch.Ports)
}

func (n *netSwitch) ports(c fabric.Change) (out []world.Port) {
	for _, p := range c.Settings {
		is, _ := n.w.PortState(n.name, p.Port)
		out = append(out, is)
	}
	return out
}

// Apply implements workflows.Switch. The transaction names what it saw: late, it fails when that has changed.
func (n *netSwitch) Apply(ctx context.Context, c fabric.Change) (fabric.Result, error) {
	var out fabric.Result
	if n.deaf {
		c.Settings = slices.DeleteFunc(slices.Clone(c.Settings), func(p fabric.Setting) bool { return p.Shut })
	}
	err := n.s.send(ctx, change, "set ports of "+n.name, func(ctx context.Context) (err error) {
		out, err = n.Switch.Apply(ctx, c)
		return err
	}, func() func(context.Context) error {
		was := n.ports(c)
		return func(ctx context.Context) error {
			if !reflect.DeepEqual(was, n.ports(c)) {
				return nil
			}
			_, err := n.Switch.Apply(ctx, c)
			return err
		}
	})
	return out, err
}

// Fabric implements workflows.Devices.
func (d *devices) Fabric(ctx context.Context, f topology.Fabric) (workflows.Fabric, error) {
	inner, err := d.Devices.Fabric(ctx, f)
	return &sanFabric{inner, d.s, d.c.s.dc.World, d.deaf, f.Meta.Name}, err
}

type sanFabric struct {
	workflows.Fabric
	s    *schedule
	w    *world.World
	deaf bool
	name string
}

// Apply implements workflows.Fabric. The commit carries the checksum of what it saw: late, it fails when that has
// changed.
func (f *sanFabric) Apply(ctx context.Context, c san.ZoneChange) (san.ZoneResult, error) {
	var out san.ZoneResult
	if f.deaf {
		was := f.w.Zones(f.name)
		defer func() { must(f.w.SetZones(f.name, join(f.w.Zones(f.name), was))) }()
	}
	err := f.s.send(ctx, change, "set zones of "+f.name, func(ctx context.Context) (err error) {
		out, err = f.Fabric.Apply(ctx, c)
		return err
	}, func() func(context.Context) error {
		was := f.w.Zones(f.name)
		return func(ctx context.Context) error {
			if !reflect.DeepEqual(was, f.w.Zones(f.name)) {
				return nil
			}
			_, err := f.Fabric.Apply(ctx, c)
			return err
		}
	})
	return out, err
}

// Array implements workflows.Devices.
func (d *devices) Array(ctx context.Context, a topology.Array) (workflows.Array, error) {
	inner, err := d.Devices.Array(ctx, a)
	return &array{inner, d.s, d.c.s.dc.World, d.deaf, a.Meta.Name}, err
}

type array struct {
	workflows.Array
	s    *schedule
	w    *world.World
	deaf bool
	name string
}

// Masks implements workflows.Array.
func (a *array) Masks(ctx context.Context) ([]san.Mask, error) {
	return ask(ctx, a.s, reading, "masks of "+a.name, a.Array.Masks)
}

// Apply implements workflows.Array. An array is told whom to let in and whom not any more, one request for each:
// late, they are still about those, and nothing is compared.
func (a *array) Apply(ctx context.Context, c san.MaskChange) (san.MaskResult, error) {
	var out san.MaskResult
	if a.deaf {
		for _, m := range c.Masks {
			was, _ := a.w.MaskOf(a.name, m.Volume)
			defer func() { must(a.request(san.Mask{Volume: m.Volume, Initiators: was.Initiators, Epoch: m.Epoch}, nil)) }()
		}
	}
	err := a.s.send(ctx, change, "set masks of "+a.name, func(ctx context.Context) (err error) {
		out, err = a.Array.Apply(ctx, c)
		return err
	}, func() func(context.Context) error {
		var requests []func() error
		for _, m := range c.Masks {
			was, _ := a.w.MaskOf(a.name, m.Volume)
			if was.Epoch <= m.Epoch {
				requests = append(requests, func() error { return a.request(m, was.Initiators) })
			}
		}
		return func(context.Context) error {
			for _, r := range requests {
				if err := r(); err != nil {
					return err
				}
			}
			return nil
		}
	})
	return out, err
}

// request takes away from a volume who was let in and shall not be, and lets in who was not and shall be.
func (a *array) request(m san.Mask, was []string) error {
	if _, reachable := a.w.ArrayState(a.name); !reachable {
		return nil
	}
	now, _ := a.w.MaskOf(a.name, m.Volume)
	now.Initiators = slices.DeleteFunc(now.Initiators, func(i string) bool { return slices.Contains(was, i) && !slices.Contains(m.Initiators, i) })
	for _, i := range m.Initiators {
		if !slices.Contains(was, i) && !slices.Contains(now.Initiators, i) {
			now.Initiators = append(now.Initiators, i)
		}
	}
	now.Epoch = max(now.Epoch, m.Epoch)
	return a.w.SetMask(a.name, m.Volume, now)
}

// join gives the zones the members that they had before.
func join(zones, was []world.Zone) []world.Zone {
	for i, z := range zones {
		for _, o := range was {
			if o.Name == z.Name {
				zones[i].Members = slices.Compact(slices.Sorted(slices.Values(slices.Concat(z.Members, o.Members))))
			}
		}
	}
	return zones
}
