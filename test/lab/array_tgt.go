package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/tgt"
	"rerack.dev/rerack/sanzoning/tgtsim"
	"rerack.dev/rerack/test/world"
)

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
		account, err := l.accountOf(vol)
		if err != nil {
			return nil, err
		}
		if err := sim.AddVolume(tgtsim.Volume{Target: string(vol.Target), Rules: rules, Account: account}); err != nil {
			return nil, err
		}
	}
	if err := sim.AddVolume(tgtsim.Volume{Target: foreignTarget, Rules: []string{foreignHost}}); err != nil {
		return nil, err
	}
	spec.Address, spec.Portals = "unix:"+sim.Socket(), []string{sim.Portal()}
	return &tgtArray{sim: sim, alive: true, reachable: true}, l.world.Protect("mask", name, foreignTarget)
}

// accountOf is what the target of a volume asks for.
func (l *Lab) accountOf(v topology.VolumeSpec) (iscsi.Account, error) {
	if v.CHAP == "" {
		return iscsi.Account{}, nil
	}
	c, err := l.secrets.of(v.CHAP)
	return iscsi.Account{User: c.Username, Secret: c.Password}, err
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
