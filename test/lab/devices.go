package lab

import "crypto/tls"

// devices are the simulated devices by name.
type devices struct {
	switches map[string]*netSwitch
	fabrics  map[string]*fcFabric
	arrays   map[string]arraySim
}

// tlsIdentity is a certificate with its key, and its fingerprint.
type tlsIdentity struct {
	tls.Certificate
	fingerprint string
}

// countDevices reads the counters of every device.
func (l *Lab) countDevices(out Counters) {
	for name, s := range l.switches {
		out["switch/"+name] = s.counters()
	}
	for name, f := range l.fabrics {
		out["fabric/"+name] = f.counters()
	}
	for name, a := range l.arrays {
		out["array/"+name] = a.counters()
	}
}
