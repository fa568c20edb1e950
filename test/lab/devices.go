package lab

import (
	"context"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/world"
)

type devices struct{ switches map[string]*netSwitch }

func (l *Lab) startFabrics(context.Context) error { return nil }
func (l *Lab) startArrays(context.Context) error  { return nil }
func (l *Lab) plant(context.Context) error {
	for _, f := range l.topo.Names(topology.KindFabric) {
		if err := l.world.SetZones(f, l.zonesOf(f)); err != nil {
			return err
		}
	}
	for _, name := range l.topo.Names(topology.KindVolume) {
		v := l.topo.Volumes[name].Spec
		if err := l.world.SetMask(v.Array, world.DeviceName(v), world.Mask{Initiators: l.initiatorsOf(name), Epoch: firstEpoch}); err != nil {
			return err
		}
	}
	return nil
}
func (l *Lab) followFabric(string)                            {}
func (l *Lab) followArray(string)                             {}
func (l *Lab) fabricFault(name, what string, s setting) error { return nil }
func (l *Lab) arrayFault(name, what string, s setting) error  { return nil }
func (l *Lab) countDevices(out Counters)                      {}
