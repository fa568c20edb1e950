// Package workflowtest is a data centre without sockets: in-memory drivers on the simulated truth of
// test/world, on virtual time, for running the workflows' real activities thousands of times. The
// drivers keep the contracts of the real ones: they converge, they refuse stale epochs, they read back.
// The protocols are tested elsewhere, against the simulators of test/lab.
package workflowtest

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/bootplane"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/world"
	"rerack.dev/rerack/workflows"
)

// FirstEpoch is that of workloads which run before Rerack ever moved one.
const FirstEpoch = 1

// Config makes a DataCentre.
type Config struct {
	Topology *topology.Topology // not changed afterwards
	Store    store.Store        // the boot records are read from it, milestones are written to it
	Signals  bootplane.Signaller
	// Live makes the data centre go by time.Now, which in a bubble of testing/synctest is virtual, and lets
	// machines boot beside who turned them on. Otherwise time moves only while a device works, and a
	// machine has booted, as far as it gets, when the call that turned it on returns.
	Live bool
}

// Validate names the first key that is wrong.
func (c Config) Validate() error {
	switch {
	case c.Topology == nil:
		return fault.New(fault.Invalid, "workflowtest: Topology is missing")
	case c.Store == nil:
		return fault.New(fault.Invalid, "workflowtest: Store is missing")
	case c.Signals == nil:
		return fault.New(fault.Invalid, "workflowtest: Signals is missing")
	}
	return nil
}

// DataCentre implements workflows.Devices, workflows.Observer and workflows.Prober.
type DataCentre struct {
	World *world.World

	topo  *topology.Topology
	store store.Store
	plane *bootplane.Plane
	clock clock
	live  bool

	mu       sync.Mutex
	failures map[string]Failure
	defects  map[string]Defect
	hosts    map[string]*host // by machine, of its present life
	journal  []Act
	waiting  map[string]func(context.Context) // held targets, by boot record
	commits  map[string]int                   // by device
}

var (
	_ workflows.Devices  = (*DataCentre)(nil)
	_ workflows.Observer = (*DataCentre)(nil)
	_ workflows.Prober   = (*DataCentre)(nil)
)

// New builds the data centre as it is before anything burns: every workload serves at its home with its
// networks, zones and masks under FirstEpoch, everything else is off.
func New(ctx context.Context, c Config) (*DataCentre, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	d := &DataCentre{topo: c.Topology, store: c.Store, failures: map[string]Failure{}, defects: map[string]Defect{},
		hosts: map[string]*host{}, waiting: map[string]func(context.Context){}, commits: map[string]int{}, live: c.Live, clock: clock{live: c.Live, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}}
	d.plane = &bootplane.Plane{Store: c.Store, Signals: c.Signals, Now: d.clock.Now, Log: slog.New(slog.DiscardHandler)}
	w, err := world.New(world.Config{Topology: c.Topology, Now: d.clock.Now})
	if err != nil {
		return nil, err
	}
	d.World = w
	return d, d.settle()
}

// Now is virtual time: it moves only while a device works or somebody looks.
func (d *DataCentre) Now() time.Time { return d.clock.Now() }

// settle brings everything that has a home to life.
func (d *DataCentre) settle() error {
	zones := map[string][]world.Zone{}
	for _, name := range d.topo.Names(topology.KindWorkload) {
		w := d.topo.Workloads[name].Spec
		if w.Home == "" {
			continue
		}
		m := d.topo.Machines[w.Home]
		port := world.Port{Epoch: FirstEpoch}
		for i, n := range w.Networks {
			if vlan := d.topo.Networks[n.Network].Spec.VLAN; i == 0 {
				port.Untagged = vlan
			} else if vlan != port.Untagged {
				port.Tagged = append(port.Tagged, vlan)
			}
		}
		for _, nic := range m.Spec.NICs {
			if err := d.World.SetPort(nic.Switch, nic.Port, port); err != nil {
				return err
			}
		}
		for _, use := range w.Volumes {
			if err := d.wireHome(use.Volume, m, zones); err != nil {
				return err
			}
		}
	}
	for _, f := range slices.Sorted(maps.Keys(zones)) {
		if err := d.World.SetZones(f, zones[f]); err != nil {
			return err
		}
	}
	for _, name := range d.topo.Names(topology.KindWorkload) {
		if home := d.topo.Workloads[name].Spec.Home; home != "" {
			if err := d.World.Press(home, true, "operator"); err != nil {
				return err
			}
			life, _ := d.World.Life(home)
			if err := d.serve(life, "", name, FirstEpoch); err != nil {
				return err
			}
		}
	}
	return nil
}

// wireHome masks a volume for the machine that is home to its workload, and collects its zones.
func (d *DataCentre) wireHome(volume string, m topology.Machine, zones map[string][]world.Zone) error {
	v := d.topo.Volumes[volume].Spec
	mask := world.Mask{Epoch: FirstEpoch}
	if v.Protocol == topology.ISCSI {
		mask.Initiators = []string{m.Spec.StorageAddress.String()}
	} else {
		for _, h := range m.Spec.HBAs {
			mask.Initiators = append(mask.Initiators, string(h.WWPN))
			z := world.Zone{Name: "vol-" + volume, Members: []string{string(h.WWPN)}, Epoch: FirstEpoch}
			for _, t := range d.topo.Arrays[v.Array].Spec.Targets {
				if t.Fabric == h.Fabric {
					z.Members = append(z.Members, string(t.WWPN))
				}
			}
			zones[h.Fabric] = append(zones[h.Fabric], z)
		}
	}
	return d.World.SetMask(v.Array, world.DeviceName(v), mask)
}

// serve starts a workload, lets it write to its volumes and answer. It fails with Unreachable when a
// network or a volume is not there.
func (d *DataCentre) serve(l world.Life, vm, workload string, epoch uint64) error {
	if err := d.World.Start(l, vm, workload, epoch); err != nil {
		return err
	}
	spec := d.topo.Workloads[workload].Spec
	for _, n := range spec.Networks {
		vlan := d.topo.Networks[n.Network].Spec.VLAN
		if !d.World.RunReach(world.Run{Machine: l.Machine, VM: vm, Workload: workload}, vlan) {
			return &fault.Error{Kind: fault.Unreachable, Where: "workload " + workload, What: "reach network " + n.Network}
		}
	}
	for _, v := range spec.Volumes {
		if err := d.World.Write(l, vm, v.Volume, workload, epoch); err != nil {
			return err
		}
	}
	return d.World.Serve(l, vm, true)
}

// Judge implements workflows.Observer. It takes all evidence as having held long enough, and looking
// takes a second.
func (d *DataCentre) Judge(_ context.Context, domain, by, attestation string, attested time.Time) (policies.Verdict, error) {
	d.clock.Sleep(time.Second)
	t, now := d.topo, d.clock.Now()
	dom, err := t.Domain(domain)
	if err != nil {
		return policies.Verdict{}, err
	}
	f := policies.DomainFacts{Domain: dom.Name, Machines: dom.Machines, Switches: dom.Switches, Homes: map[string][]string{}, Total: len(t.Machines)}
	var ev []policies.Evidence
	add := func(k policies.EvidenceKind, subject, source string, s policies.Sign) {
		ev = append(ev, policies.Evidence{Kind: k, Subject: subject, Sign: s, At: now, Since: now.Add(-time.Hour), Source: source})
	}
	for _, s := range dom.Switches {
		for _, u := range t.Switches[s].Spec.Uplinks {
			add(policies.EvidenceLink, "switch/"+s, "switch/"+u.Switch, d.carrier(u.Switch, u.PeerPort))
		}
	}
	for name := range t.Machines {
		if !d.World.Power(name).Reachable {
			f.SilentAll++
		}
	}
	for _, m := range dom.Machines {
		sign := policies.SignDown
		if p := d.World.Power(m); p.Reachable && p.Reported {
			sign = policies.SignUp
		}
		add(policies.EvidenceBMC, "machine/"+m, "BMC", sign)
		for _, n := range t.Machines[m].Spec.NICs {
			f.Homes[m] = append(f.Homes[m], n.Switch)
			add(policies.EvidenceLink, "machine/"+m, "switch/"+n.Switch, d.carrier(n.Switch, n.Port))
		}
	}
	if attestation != "" {
		ev = append(ev, policies.Evidence{Kind: policies.EvidencePerson, Subject: domain, Sign: policies.SignDown, At: now,
			Since: attested, Source: by, Detail: attestation})
	}
	p := topology.EffectivePolicy(t, t.Racks[t.Machines[dom.Machines[0]].Spec.Rack].Spec.Policy)
	return policies.Judge(f, ev, p.Evidence, now), nil
}

// carrier is what the management of a switch says of a port.
func (d *DataCentre) carrier(sw, port string) policies.Sign {
	if _, reachable := d.World.SwitchState(sw); !reachable {
		return policies.SignUnknown
	}
	if d.World.Carrier(sw, port) {
		return policies.SignUp
	}
	return policies.SignDown
}

// SilentSwitches implements workflows.Observer.
func (d *DataCentre) SilentSwitches() map[string]bool {
	out := map[string]bool{}
	for name := range d.topo.Switches {
		if _, reachable := d.World.SwitchState(name); !reachable {
			out[name] = true
		}
	}
	return out
}

// LinkOf implements workflows.Observer: up when any port sees the machine's carrier.
func (d *DataCentre) LinkOf(machine string) policies.Sign {
	sign := policies.SignUnknown
	for _, n := range d.topo.Machines[machine].Spec.NICs {
		switch s := d.carrier(n.Switch, n.Port); s {
		case policies.SignUp:
			return s
		case policies.SignDown:
			sign = s
		case policies.SignUnknown:
		}
	}
	return sign
}

// Probe implements workflows.Prober: somebody serves at the address, once, and its network carries it.
func (d *DataCentre) Probe(_ context.Context, _ topology.Site, address string, _ topology.Health) error {
	for name, w := range d.topo.Workloads {
		for _, n := range w.Spec.Networks {
			if n.Address.String() != address {
				continue
			}
			held := d.Holders(name)
			if len(held) == 1 && held[0].Serving && d.World.RunReach(held[0], d.topo.Networks[n.Network].Spec.VLAN) {
				return nil
			}
		}
	}
	return &fault.Error{Kind: fault.Unreachable, Where: address, What: "health check", Evidence: "nobody answers"}
}

// Holders lists who runs a workload and can use its identity: on any of its networks or volumes. What
// is cut off from all of them runs on in vain.
func (d *DataCentre) Holders(workload string) []world.Run {
	return slices.DeleteFunc(d.World.Holders(workload), func(r world.Run) bool { return !d.able(r) })
}

func (d *DataCentre) able(r world.Run) bool {
	w := d.topo.Workloads[r.Workload].Spec
	return slices.ContainsFunc(w.Networks, func(n topology.Attachment) bool { return d.World.RunReach(r, d.topo.Networks[n.Network].Spec.VLAN) }) ||
		slices.ContainsFunc(w.Volumes, func(v topology.VolumeUse) bool { return d.World.CanWrite(r.Machine, v.Volume) })
}

// clock is virtual time: its own, or that of the bubble it is in.
type clock struct {
	live bool
	mu   sync.Mutex
	now  time.Time
}

func (c *clock) Now() time.Time {
	if c.live {
		return time.Now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Sleep(d time.Duration) {
	if c.live {
		time.Sleep(d)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// bootRecord is what the store says a machine or VM shall boot; ok is false when it says nothing.
func (d *DataCentre) bootRecord(ctx context.Context, name string) (state.Boot, bool) {
	rec, rev, err := state.Load[state.Boot](ctx, d.store, state.BootsAt+name)
	return rec, err == nil && rev != 0
}
