package workflowtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	san "rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/test/world"
	"rerack.dev/rerack/workflows"
)

// Switch implements workflows.Devices.
func (d *DataCentre) Switch(_ context.Context, s topology.Switch) (workflows.Switch, error) {
	return &netSwitch{d, s.Meta.Name}, nil
}

// Fabric implements workflows.Devices.
func (d *DataCentre) Fabric(_ context.Context, f topology.Fabric) (workflows.Fabric, error) {
	return &sanFabric{d, f.Meta.Name}, nil
}

// Array implements workflows.Devices.
func (d *DataCentre) Array(_ context.Context, a topology.Array) (workflows.Array, error) {
	return &array{d, a.Meta.Name}, nil
}

func stale(where, what string, have, want uint64) error {
	return &fault.Error{Kind: fault.Stale, Where: where, What: what, Evidence: fmt.Sprintf("epoch %d, it has %d", want, have)}
}

func silent(where string) error {
	return &fault.Error{Kind: fault.Unreachable, Where: where, What: "reach its management"}
}

type netSwitch struct {
	d    *DataCentre
	name string
}

// Ports lists what is cabled.
func (s *netSwitch) Ports(context.Context) ([]fabric.Port, error) {
	if _, reachable := s.d.World.SwitchState(s.name); !reachable {
		return nil, silent("switch/" + s.name)
	}
	names := map[string]bool{}
	for _, m := range s.d.topo.Machines {
		for _, n := range m.Spec.NICs {
			names[n.Port] = names[n.Port] || n.Switch == s.name
		}
	}
	for _, sw := range s.d.topo.Switches {
		for _, u := range sw.Spec.Uplinks {
			names[u.Port] = names[u.Port] || sw.Meta.Name == s.name
			names[u.PeerPort] = names[u.PeerPort] || u.Switch == s.name
		}
	}
	var out []fabric.Port
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if p, cabled := s.d.World.PortState(s.name, name); cabled && names[name] {
			out = append(out, fabric.Port{Name: name, Untagged: p.Untagged, Tagged: p.Tagged, AllVLANs: p.Trunk, Shut: p.Shut, Epoch: p.Epoch, Owner: p.Owner})
		}
	}
	return out, nil
}

// Apply sets all ports or none.
func (s *netSwitch) Apply(ctx context.Context, c fabric.Change) (fabric.Result, error) {
	var out fabric.Result
	key := "switch/" + s.name
	err := s.d.do(ctx, key, func() error {
		if _, reachable := s.d.World.SwitchState(s.name); !reachable {
			return silent(key)
		}
		for _, p := range c.Settings {
			if have, _ := s.d.World.PortState(s.name, p.Port); have.Epoch > p.Epoch {
				return stale(key, "set port "+p.Port, have.Epoch, p.Epoch)
			}
		}
		for _, p := range c.Settings {
			have, _ := s.d.World.PortState(s.name, p.Port)
			want := world.Port{Untagged: p.Untagged, Tagged: p.Tagged, Shut: p.Shut, Epoch: p.Epoch, Owner: c.Owner}
			// A quarantined port of a trunk keeps what it is; nobody but its owner may change that.
			want.Trunk = have.Trunk
			if samePort(have, want) && have.Epoch == want.Epoch {
				continue
			}
			if out.Changed = append(out.Changed, p.Port); len(out.Changed) == 1 {
				s.d.commit(key)
			}
			s.d.note(Act{key, p.Port, p.Epoch, fmt.Sprintf("untagged %d tagged %v shut %t", p.Untagged, p.Tagged, p.Shut)})
			if err := s.d.World.SetPort(s.name, p.Port, want); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func samePort(a, b world.Port) bool {
	return a.Untagged == b.Untagged && slices.Equal(a.Tagged, b.Tagged) && a.Shut == b.Shut && a.Trunk == b.Trunk
}

type sanFabric struct {
	d    *DataCentre
	name string
}

// Apply replaces the zones it is given in one commit and leaves all others.
func (f *sanFabric) Apply(ctx context.Context, c san.ZoneChange) (san.ZoneResult, error) {
	var out san.ZoneResult
	key := "fabric/" + f.name
	err := f.d.do(ctx, key, func() error {
		if _, reachable := f.d.World.FabricState(f.name); !reachable {
			return silent(key)
		}
		zones := f.d.World.Zones(f.name)
		var acts []Act
		for _, z := range c.Zones {
			want := world.Zone{Name: z.Name, Epoch: z.Epoch, Members: slices.Sorted(slices.Values(slices.Concat(z.Initiators, z.Targets)))}
			if len(z.Initiators) == 0 {
				want.Members = nil // nobody sees the volume; the epoch stays
			}
			i := slices.IndexFunc(zones, func(have world.Zone) bool { return have.Name == z.Name })
			switch {
			case i < 0:
				zones = append(zones, want)
			case zones[i].Epoch > z.Epoch:
				return stale(key, "set zone "+z.Name, zones[i].Epoch, z.Epoch)
			case zones[i].Epoch == z.Epoch && slices.Equal(zones[i].Members, want.Members):
				continue
			default:
				zones[i] = want
			}
			out.Changed = append(out.Changed, z.Name)
			acts = append(acts, Act{key, z.Name, z.Epoch, strings.Join(z.Initiators, " ")})
		}
		if len(acts) == 0 {
			return nil
		}
		f.d.commit(key)
		for _, a := range acts {
			f.d.note(a)
		}
		return f.d.World.SetZones(f.name, zones)
	})
	return out, err
}

type array struct {
	d    *DataCentre
	name string
}

// Masks lists the masks of the volumes that the topology names.
func (a *array) Masks(context.Context) ([]san.Mask, error) {
	if _, reachable := a.d.World.ArrayState(a.name); !reachable {
		return nil, silent("array/" + a.name)
	}
	var out []san.Mask
	for _, name := range a.d.topo.Names(topology.KindVolume) {
		v := a.d.topo.Volumes[name].Spec
		if v.Array != a.name {
			continue
		}
		m, _ := a.d.World.MaskOf(a.name, world.DeviceName(v))
		out = append(out, san.Mask{Volume: world.DeviceName(v), Initiators: m.Initiators, Epoch: m.Epoch})
	}
	return out, nil
}

// Sessions lists the machines that may reach a volume and are on: they log in as soon as they can.
func (a *array) Sessions(context.Context) ([]san.Session, error) {
	if _, reachable := a.d.World.ArrayState(a.name); !reachable {
		return nil, silent("array/" + a.name)
	}
	var out []san.Session
	for _, name := range a.d.topo.Names(topology.KindVolume) {
		v := a.d.topo.Volumes[name].Spec
		for _, m := range a.d.topo.Names(topology.KindMachine) {
			if v.Array != a.name || !a.d.World.CanWrite(m, name) {
				continue
			}
			spec := a.d.topo.Machines[m].Spec
			if v.Protocol == topology.ISCSI {
				out = append(out, san.Session{Volume: world.DeviceName(v), Initiator: spec.StorageAddress.String()})
				continue
			}
			for _, h := range spec.HBAs {
				out = append(out, san.Session{Volume: world.DeviceName(v), Initiator: string(h.WWPN)})
			}
		}
	}
	return out, nil
}

// Apply sets the masks it is given: all that revoke before any that grants.
func (a *array) Apply(ctx context.Context, c san.MaskChange) (san.MaskResult, error) {
	var out san.MaskResult
	key := "array/" + a.name
	err := a.d.do(ctx, key, func() error {
		if _, reachable := a.d.World.ArrayState(a.name); !reachable {
			return silent(key)
		}
		for _, m := range c.Masks {
			if have, _ := a.d.World.MaskOf(a.name, m.Volume); have.Epoch > m.Epoch {
				return stale(key, "set mask of "+m.Volume, have.Epoch, m.Epoch)
			}
		}
		for _, m := range c.Masks {
			have, _ := a.d.World.MaskOf(a.name, m.Volume)
			want := slices.Sorted(slices.Values(m.Initiators))
			if have.Epoch == m.Epoch && slices.Equal(have.Initiators, want) {
				continue
			}
			if out.Changed = append(out.Changed, m.Volume); len(out.Changed) == 1 {
				a.d.commit(key)
			}
			a.d.note(Act{key, m.Volume, m.Epoch, strings.Join(want, " ")})
			if err := a.d.World.SetMask(a.name, m.Volume, world.Mask{Epoch: m.Epoch}); err != nil {
				return err
			}
			if err := a.d.World.SetMask(a.name, m.Volume, world.Mask{Initiators: want, Epoch: m.Epoch}); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}
