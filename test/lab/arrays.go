package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// arraySim is what the lab asks of a simulated array of any make.
type arraySim interface {
	// follow makes it as dead as the world says: data and management, or management alone.
	follow(alive, reachable bool)
	fault(what string, s setting) error
	counters() map[string]int
}

// What is planted on every array and nobody may touch.
const (
	foreignLUN    = "/vol/foreign/tape"
	foreignTarget = "iqn.2026-01.dev.rerack.lab:foreign-tape"
	foreignHost   = "10.255.255.1"
	foreignWWPN   = "10:00:00:00:c9:ff:ff:01"
)

// startArrays starts every array with its masks as if Rerack had set those of the homes.
func (l *Lab) startArrays(ctx context.Context) error {
	l.arrays = map[string]arraySim{}
	for _, name := range l.topo.Names(topology.KindArray) {
		a := l.topo.Arrays[name]
		var err error
		switch real := l.isRealArray(a); {
		case real && a.Spec.Driver != "tgt":
			err = fault.Newf(fault.Unsupported, "array %s: driver %q: real arrays of the lab are tgt", name, a.Spec.Driver)
		case real:
			l.arrays[name], err = l.startRealTgt(ctx, name, &a.Spec)
		case a.Spec.Driver == "tgt":
			l.arrays[name], err = l.startTgt(name, &a.Spec)
		case a.Spec.Driver == "ontap":
			l.arrays[name], err = l.startOntap(ctx, name, &a.Spec)
		default:
			err = fault.Newf(fault.Unsupported, "array %s: the lab has no simulator for driver %q", name, a.Spec.Driver)
		}
		if err != nil {
			return err
		}
		l.topo.Arrays[name] = a
	}
	return nil
}

// volumesOf lists the volumes of an array, all of which must speak its protocol.
func (l *Lab) volumesOf(array string, p topology.Protocol) ([]string, error) {
	var out []string
	for _, name := range l.topo.Names(topology.KindVolume) {
		v := l.topo.Volumes[name].Spec
		if v.Array != array {
			continue
		}
		if v.Protocol != p {
			return nil, fault.Newf(fault.Unsupported, "volume %s: the simulated array %s speaks %s only", name, array, p)
		}
		out = append(out, name)
	}
	return out, nil
}

func (l *Lab) followArray(name string) {
	if a := l.arrays[name]; a != nil {
		a.follow(l.world.ArrayState(name))
	}
}

func (l *Lab) arrayFault(name, what string, s setting) error {
	if a := l.arrays[name]; a != nil {
		return a.fault(what, s)
	}
	return fault.Newf(fault.NotFound, "no array %q", name)
}

// certificate signs one for a listener's host:port and tells its fingerprint.
func (l *Lab) certificate(address string) (c tlsIdentity, err error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return c, err
	}
	cert, err := l.ca.Certificate(host, time.Now().Add(-time.Hour))
	if err != nil {
		return c, err
	}
	sum := sha256.Sum256(cert.Certificate[0])
	return tlsIdentity{*cert, hex.EncodeToString(sum[:])}, nil
}
