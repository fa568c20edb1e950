package lab

import (
	"context"
	"crypto/tls"
	"slices"
	"sync"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/sanzoning/brocade"
	"rerack.dev/rerack/sanzoning/brocadesim"
	"rerack.dev/rerack/test/world"
)

// fcFabric is one simulated fabric.
type fcFabric struct {
	sim *brocadesim.Switch

	life sync.Mutex
	down bool
}

// foreignZone joins somebody else's tape library with somebody else's host on every fabric.
const foreignZone = "tape_backup"

// startFabrics starts every fabric with its zones as if Rerack had set those of the homes.
func (l *Lab) startFabrics(context.Context) error {
	l.fabrics = map[string]*fcFabric{}
	for _, name := range l.topo.Names(topology.KindFabric) {
		f := l.topo.Fabrics[name]
		if f.Spec.Driver != "brocade" {
			return fault.Newf(fault.Unsupported, "fabric %s: the lab has no simulator for driver %q", name, f.Spec.Driver)
		}
		cred, err := l.secrets.of(f.Spec.Credentials)
		if err != nil {
			return err
		}
		address := l.address(f.Spec.Address)
		id, err := l.certificate(address)
		if err != nil {
			return err
		}
		backend := fabricBackend{l, name}
		sim, err := brocadesim.Start(brocadesim.Config{Address: address, User: cred.Username, Password: cred.Password,
			TLS:    &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{id.Certificate}},
			Active: "production", Zones: l.zonesOf(name), Backend: backend, VirtualFabric: f.Spec.VirtualID})
		if err != nil {
			return fault.Wrap(err, "start", "fabric "+name)
		}
		l.onClose(func() error { sim.Close(); return nil })
		backend.ZonesChanged(sim.Effective())
		if err := l.world.Protect("zone", name, foreignZone); err != nil {
			return err
		}
		l.fabrics[name] = &fcFabric{sim: sim}
		f.Spec.Address, f.Spec.Fingerprint = sim.URL(), id.fingerprint
		l.topo.Fabrics[name] = f
	}
	return nil
}

// zonesOf are the zones of a fabric: those that join the homes of each volume with its array's targets,
// and a foreign one.
func (l *Lab) zonesOf(fabric string) []brocadesim.Zone {
	out := []brocadesim.Zone{{Name: foreignZone, Members: []string{foreignWWPN, "50:00:00:00:c9:ff:ff:02"}}}
	for _, name := range l.topo.Names(topology.KindVolume) {
		v := l.topo.Volumes[name].Spec
		if v.Protocol != topology.FC {
			continue
		}
		z := brocadesim.Zone{Name: brocade.ZoneName("vol-"+name, firstEpoch), Peer: true}
		for _, m := range l.homesOf(name) {
			for _, h := range l.topo.Machines[m].Spec.HBAs {
				if h.Fabric == fabric {
					z.Members = append(z.Members, string(h.WWPN))
				}
			}
		}
		for _, t := range l.topo.Arrays[v.Array].Spec.Targets {
			if t.Fabric == fabric {
				z.Principals = append(z.Principals, string(t.WWPN))
			}
		}
		if len(z.Members) > 0 && len(z.Principals) > 0 {
			out = append(out, z)
		}
	}
	return out
}

// fabricBackend tells the world of zones in force, and the fabric who is logged in.
type fabricBackend struct {
	lab  *Lab
	name string
}

// ZonesChanged implements brocadesim.Backend. A zone of ours is known by its stable name; while several
// epochs of it are in force, the newest is.
func (b fabricBackend) ZonesChanged(effective []brocadesim.Zone) {
	newest := map[string]uint64{}
	for _, z := range effective {
		if name, epoch, ours := brocade.ParseZoneName(z.Name); ours {
			newest[name] = max(newest[name], epoch)
		}
	}
	zones := make([]world.Zone, len(effective))
	for i, z := range effective {
		zones[i] = world.Zone{Name: z.Name, Members: slices.Concat(z.Members, z.Principals)}
		if name, epoch, ours := brocade.ParseZoneName(z.Name); ours {
			zones[i].Epoch = epoch
			if epoch == newest[name] {
				zones[i].Name = name
			}
		}
	}
	if err := b.lab.world.SetZones(b.name, zones); err != nil {
		b.lab.log.Error("zones not recorded", "fabric", b.name, "err", err)
	}
}

// Logins implements brocadesim.Backend.
func (b fabricBackend) Logins() []brocadesim.Login {
	var out []brocadesim.Login
	for _, wwpn := range b.lab.world.Logins(b.name) {
		out = append(out, brocadesim.Login{PortName: wwpn, NodeName: wwpn})
	}
	return out
}

// followFabric makes a fabric's management as dead as the world says.
func (l *Lab) followFabric(name string) {
	f := l.fabrics[name]
	if f == nil {
		return
	}
	f.life.Lock()
	defer f.life.Unlock()
	_, reachable := l.world.FabricState(name)
	if reachable != f.down {
		return
	}
	f.down = !reachable
	if f.down {
		f.sim.Kill()
	} else if err := f.sim.Revive(); err != nil {
		l.log.Error("fabric does not come back", "fabric", name, "err", err)
	}
}

func (l *Lab) fabricFault(name, what string, s setting) (err error) {
	f := l.fabrics[name]
	if f == nil {
		return fault.Newf(fault.NotFound, "no fabric %q", name)
	}
	f.sim.SetFaults(func(faults *brocadesim.Faults) {
		err = knobs[brocadesim.Faults]{
			"hang":       func(f *brocadesim.Faults, s setting) { f.Hang = s.on },
			"delay":      func(f *brocadesim.Faults, s setting) { f.Delay = s.d },
			"refuse":     func(f *brocadesim.Faults, s setting) { f.Refuse503 = s.n },
			"drop-reply": func(f *brocadesim.Faults, s setting) { f.DropReplyAfterCommit = s.n },
			"auth-fail":  func(f *brocadesim.Faults, s setting) { f.AuthFail = s.on },
			"locked": func(f *brocadesim.Faults, s setting) {
				f.LockedBy = ""
				if s.on {
					f.LockedBy = "a person"
				}
			},
		}.apply(faults, what, s)
	})
	return err
}

func (f *fcFabric) counters() map[string]int {
	c := f.sim.Counters()
	return map[string]int{"requests": c.Requests, "logins": c.Logins, "commits": c.Commits, "refused": c.Refused, "aborts": c.Aborts}
}
