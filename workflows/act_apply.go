package workflows

import (
	"context"
	"fmt"
	"slices"

	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	san "rerack.dev/rerack/sanzoning/driver"
)

func (a *Activities) applySwitch(ctx context.Context, t *topology.Topology, name string, c fabric.Change) error {
	if len(c.Settings) == 0 {
		return nil
	}
	d, err := a.Devices.Switch(ctx, t.Switches[name])
	if err == nil {
		_, err = d.Apply(ctx, c)
	}
	return fault.Wrap(err, "set ports", "switch "+name)
}

func (a *Activities) applyFabric(ctx context.Context, t *topology.Topology, name string, c san.ZoneChange) error {
	if len(c.Zones) == 0 {
		return nil
	}
	d, err := a.Devices.Fabric(ctx, t.Fabrics[name])
	if err == nil {
		_, err = d.Apply(ctx, c)
	}
	return fault.Wrap(err, "set zones", "fabric "+name)
}

// applyArray sets masks. A volume that the array does not have keeps the others from nothing: missing are
// those, by their name in the topology, with a sentence about each.
func (a *Activities) applyArray(ctx context.Context, t *topology.Topology, name string, c san.MaskChange) (missing map[string]string, err error) {
	if len(c.Masks) == 0 {
		return nil, nil
	}
	d, err := a.Devices.Array(ctx, t.Arrays[name])
	if err == nil {
		_, err = d.Apply(ctx, c)
	}
	if !fault.Is(err, fault.NotFound) {
		return nil, fault.Wrap(err, "set masks", "array "+name)
	}
	have, rerr := d.Masks(ctx)
	if rerr != nil {
		return nil, fault.Wrap(rerr, "look for a volume that is missing", "array "+name)
	}
	has := func(m san.Mask) bool {
		return slices.ContainsFunc(have, func(h san.Mask) bool { return h.Volume == m.Volume })
	}
	missing = map[string]string{}
	for _, v := range t.Names(topology.KindVolume) {
		vol := t.Volumes[v]
		if vol.Spec.Array != name {
			continue
		}
		asked := slices.ContainsFunc(c.Masks, func(m san.Mask) bool { return m.Volume == arrayName(vol) && !has(m) })
		if asked {
			missing[v] = fmt.Sprintf("array %s has no volume %s, which %s is declared to be (next: compare its declaration with the array)", name, arrayName(vol), v)
		}
	}
	if len(missing) == 0 { // it is something else that was not found
		return nil, fault.Wrap(err, "set masks", "array "+name)
	}
	c.Masks = slices.DeleteFunc(slices.Clone(c.Masks), func(m san.Mask) bool { return !has(m) })
	if len(c.Masks) == 0 {
		return missing, nil
	}
	_, err = d.Apply(ctx, c)
	return missing, fault.Wrap(err, "set masks", "array "+name)
}
