package lab

import (
	"context"
	"fmt"
	"sync"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/sanzoning/ontap"
	"rerack.dev/rerack/sanzoning/ontapsim"
	"rerack.dev/rerack/test/world"
)

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
	id, err := l.certificate(ln.Addr().String())
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
