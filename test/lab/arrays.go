package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/ontap"
	"rerack.dev/rerack/sanzoning/ontapsim"
	"rerack.dev/rerack/sanzoning/tgt"
	"rerack.dev/rerack/sanzoning/tgtsim"
	"rerack.dev/rerack/test/world"
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
		switch a.Spec.Driver {
		case "tgt":
			l.arrays[name], err = l.startTgt(name, &a.Spec)
		case "ontap":
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

// certificate signs one for a listener's address and returns its fingerprint.
func (l *Lab) certificate(ln net.Listener) (c tlsIdentity, err error) {
	host, _, err := net.SplitHostPort(ln.Addr().String())
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

// ontapArray is a simulated ONTAP system: Fibre Channel only, so its data path is the world's.
type ontapArray struct {
	sim *ontapsim.Sim

	mu     sync.Mutex
	asked  ontapsim.Faults
	silent bool
}

func (l *Lab) startOntap(ctx context.Context, name string, spec *topology.ArraySpec) (arraySim, error) {
	volumes, err := l.volumesOf(name, topology.FC)
	if err != nil {
		return nil, err
	}
	cred, err := l.secrets.of(spec.Credentials)
	if err != nil {
		return nil, err
	}
	ln, err := l.listen(ctx, spec.Address)
	if err != nil {
		return nil, err
	}
	id, err := l.certificate(ln)
	if err != nil {
		return nil, err
	}
	backend := &ontapBackend{lab: l, array: name}
	const svm = "svm1"
	cfg := ontapsim.Config{Listener: ln, Certificate: id.Certificate, Username: cred.Username, Password: cred.Password,
		Backend: backend, LUNs: []ontapsim.LUN{{Name: foreignLUN, SVM: svm}}, Logger: l.log}
	for _, v := range volumes {
		cfg.LUNs = append(cfg.LUNs, ontapsim.LUN{Name: world.DeviceName(l.topo.Volumes[v].Spec), SVM: svm})
	}
	sim, err := ontapsim.Start(cfg)
	if err != nil {
		return nil, err
	}
	l.onClose(sim.Close)
	backend.sim = sim
	for _, v := range volumes {
		if initiators := l.initiatorsOf(v); len(initiators) > 0 {
			ref := world.DeviceName(l.topo.Volumes[v].Spec)
			sim.Plant(ontapsim.Group{Name: ontap.GroupName(ref), Comment: ontap.Comment(firstEpoch, labOwner),
				Initiators: initiators, LUNs: []string{ref}})
		}
	}
	sim.Plant(ontapsim.Group{Name: "backup", Comment: "tape library", Initiators: []string{foreignWWPN}, LUNs: []string{foreignLUN}})
	spec.Address, spec.Fingerprint = "https://"+ln.Addr().String(), id.fingerprint
	return &ontapArray{sim: sim}, l.world.Protect("mask", name, foreignLUN)
}

// ontapBackend tells the world who may reach which LUN.
type ontapBackend struct {
	lab   *Lab
	array string
	sim   *ontapsim.Sim
}

// Masked implements ontapsim.Backend.
func (b *ontapBackend) Masked(volume string, wwpns []string) {
	m := world.Mask{Initiators: wwpns}
	for _, g := range b.sim.Groups() {
		if g.Name == ontap.GroupName(volume) {
			// The epoch stands where the driver keeps it; a comment of another form has none.
			_, _ = fmt.Sscanf(g.Comment, "rerack epoch=%d ", &m.Epoch)
		}
	}
	if err := b.lab.world.SetMask(b.array, volume, m); err != nil {
		b.lab.log.Error("mask not recorded", "array", b.array, "volume", volume, "err", err)
	}
}

// Logins implements ontapsim.Backend.
func (b *ontapBackend) Logins() []string { return b.lab.world.ArrayLogins(b.array) }

func (a *ontapArray) follow(_, reachable bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = !reachable
	a.apply()
}

func (a *ontapArray) fault(what string, s setting) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := knobs[ontapsim.Faults]{
		"hang":       func(f *ontapsim.Faults, s setting) { f.Hang = s.on },
		"delay":      func(f *ontapsim.Faults, s setting) { f.Delay = s.d },
		"refuse":     func(f *ontapsim.Faults, s setting) { f.Refuse = s.on },
		"drop-reply": func(f *ontapsim.Faults, s setting) { f.DropReply = s.on },
		"fail-write": func(f *ontapsim.Faults, s setting) { f.FailWrite = s.n },
		"dead":       func(f *ontapsim.Faults, s setting) { f.Dead = s.on },
	}.apply(&a.asked, what, s)
	a.apply()
	return err
}

func (a *ontapArray) apply() {
	f := a.asked
	f.Dead = f.Dead || a.silent
	a.sim.SetFaults(f)
}

func (a *ontapArray) counters() map[string]int {
	c := a.sim.Counters()
	return map[string]int{"reads": c.Reads, "writes": c.Writes}
}

// tgtArray is a simulated tgtd with a real iSCSI portal.
type tgtArray struct {
	sim *tgtsim.Sim

	mu                sync.Mutex
	deadFault, hanged bool // asked for by a fault, beside what the world says
	alive, reachable  bool
}

// tgtLUN is where tgtsim puts the disk of a target; LUN 0 is the controller.
const tgtLUN = 1

func (l *Lab) startTgt(name string, spec *topology.ArraySpec) (arraySim, error) {
	volumes, err := l.volumesOf(name, topology.ISCSI)
	if err != nil {
		return nil, err
	}
	dir, err := l.socketDir()
	if err != nil {
		return nil, err
	}
	portal := ""
	if len(spec.Portals) > 0 {
		portal = spec.Portals[0]
	}
	sim, err := tgtsim.New(tgtsim.Config{Socket: filepath.Join(dir, name+".0"), Portal: l.address(portal), Persistent: true,
		Backend: tgtBackend{l, name}, Logger: l.log})
	if err != nil {
		return nil, err
	}
	l.onClose(sim.Close)
	for _, v := range volumes {
		vol := l.topo.Volumes[v].Spec
		if vol.LUN != tgtLUN {
			return nil, fault.Newf(fault.Unsupported, "volume %s: lun %d: the simulated tgt has its disks at LUN %d", v, vol.LUN, tgtLUN)
		}
		var rules []string
		if rules = l.initiatorsOf(v); len(rules) > 0 {
			rules = append(rules, epochRule(firstEpoch))
		}
		if err := sim.AddVolume(tgtsim.Volume{Target: string(vol.Target), Rules: rules}); err != nil {
			return nil, err
		}
	}
	if err := sim.AddVolume(tgtsim.Volume{Target: foreignTarget, Rules: []string{foreignHost}}); err != nil {
		return nil, err
	}
	spec.Address, spec.Portals = "unix:"+sim.Socket(), []string{sim.Portal()}
	return &tgtArray{sim: sim, alive: true, reachable: true}, l.world.Protect("mask", name, foreignTarget)
}

// epochRule is the rule in which the tgt driver keeps a mask's epoch; see tgt.ParseRules.
func epochRule(epoch uint32) string {
	return netip.AddrFrom4([4]byte{0xf0 | byte(epoch>>24), byte(epoch >> 16), byte(epoch >> 8), byte(epoch)}).String()
}

// tgtBackend tells the world of rules, sessions and writes. The simulator may hold its lock meanwhile:
// nothing here calls it back.
type tgtBackend struct {
	lab   *Lab
	array string
}

// Rules implements tgtsim.Backend.
func (b tgtBackend) Rules(volume string, rules []string) {
	r := tgt.ParseRules(rules)
	m := world.Mask{Epoch: r.Epoch, Initiators: slices.Clone(r.Loose)}
	for _, a := range r.Addresses {
		m.Initiators = append(m.Initiators, a.String())
	}
	if err := b.lab.world.SetMask(b.array, volume, m); err != nil {
		b.lab.log.Error("mask not recorded", "array", b.array, "volume", volume, "err", err)
	}
}

// Session implements tgtsim.Backend.
func (b tgtBackend) Session(volume string, by iscsi.Identity, open bool) {
	if err := b.lab.world.SetSession(b.array, volume, by.Address.String(), open); err != nil {
		b.lab.log.Error("session not recorded", "array", b.array, "volume", volume, "err", err)
	}
}

// Wrote implements tgtsim.Backend.
func (b tgtBackend) Wrote(w tgtsim.Write) {
	s, ok := readStamp(w.Data)
	name := b.lab.plan.targets[topology.IQN(w.Volume)]
	if !ok || name == "" {
		return // data of somebody else: no workload of the lab wrote it
	}
	if err := b.lab.world.Arrived(s.Machine, s.VM, name, s.Workload, s.Epoch); err != nil {
		b.lab.log.Error("write not recorded", "array", b.array, "volume", w.Volume, "err", err)
	}
}

func (a *tgtArray) follow(alive, reachable bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.alive, a.reachable = alive, reachable
	a.sim.SetFaults(a.mix)
}

// mix puts together what faults ask for and what the world says.
func (a *tgtArray) mix(f *tgtsim.Faults) {
	f.Dead = a.deadFault || !a.alive
	f.Hang = a.hanged || !a.reachable
}

func (a *tgtArray) fault(what string, s setting) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sim.SetFaults(func(f *tgtsim.Faults) {
		err = knobs[tgtsim.Faults]{
			"hang":          func(_ *tgtsim.Faults, s setting) { a.hanged = s.on },
			"dead":          func(_ *tgtsim.Faults, s setting) { a.deadFault = s.on },
			"delay":         func(f *tgtsim.Faults, s setting) { f.Delay = s.d },
			"refuse":        func(f *tgtsim.Faults, s setting) { f.Refuse = s.n },
			"drop":          func(f *tgtsim.Faults, s setting) { f.Drop = s.n },
			"drop-reply":    func(f *tgtsim.Faults, s setting) { f.DropReply = s.n },
			"forget":        func(f *tgtsim.Faults, s setting) { f.Forget = s.n },
			"keep-sessions": func(f *tgtsim.Faults, s setting) { f.KeepSessions = s.on },
		}.apply(f, what, s)
		if what == "" {
			a.hanged, a.deadFault = false, false
		}
		a.mix(f)
	})
	return err
}

func (a *tgtArray) counters() map[string]int {
	out := map[string]int{}
	for k, n := range a.sim.Counters() {
		out[k] = int(n)
	}
	return out
}

// maxSocketPath leaves room for a name in a unix socket's path, which ends at 108 bytes.
const maxSocketPath = 60

// socketDir is a directory for unix sockets: the lab's, unless its path is too long.
func (l *Lab) socketDir() (string, error) {
	dir := filepath.Join(l.cfg.Dir, "run")
	if len(dir) <= maxSocketPath {
		return dir, fault.Wrap(os.MkdirAll(dir, 0o700), "make directory", dir)
	}
	dir, err := os.MkdirTemp("", "rerack-lab-")
	if err != nil {
		return "", fault.Wrap(err, "make directory", "for sockets")
	}
	l.onClose(func() error { return os.RemoveAll(dir) })
	return dir, nil
}
