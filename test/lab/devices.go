package lab

import (
	"context"
	"crypto/tls"
)

// devices are the simulated devices by name.
type devices struct {
	switches map[string]*netSwitch
	arrays   map[string]arraySim
}

// tlsIdentity is a certificate with its key, and its fingerprint.
type tlsIdentity struct {
	tls.Certificate
	fingerprint string
}

func (l *Lab) startFabrics(context.Context) error             { return nil }
func (l *Lab) followFabric(string)                            {}
func (l *Lab) fabricFault(name, what string, s setting) error { return nil }

// countDevices reads the counters of every device.
func (l *Lab) countDevices(out Counters) {
	for name, s := range l.switches {
		out["switch/"+name] = s.counters()
	}
	for name, a := range l.arrays {
		out["array/"+name] = a.counters()
	}
}

func (l *Lab) plant(context.Context) error {
	for _, f := range l.topo.Names("Fabric") {
		if err := l.world.SetZones(f, l.zonesOf(f)); err != nil {
			return err
		}
	}
	return nil
}
