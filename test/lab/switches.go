package lab

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"

	"rerack.dev/rerack/fabric/ovssim"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/qemu/ovs"
	"rerack.dev/rerack/test/world"
)

// netSwitch is one switch, simulated or real, and what the lab told it last.
type netSwitch struct {
	box  switchBox
	sim  *ovssim.Switch // nil when it is real
	real *ovs.Switch    // nil when it is simulated

	// Two locks, because stopping the switch waits for transactions that may be telling the world of a
	// port, which in turn looks at its carrier.
	life  sync.Mutex
	down  bool
	mu    sync.Mutex
	links map[string]bool // every port, and whether it was told that it has a carrier
}

// switchBox is what a switch is to the lab, whoever makes it.
type switchBox interface {
	Endpoint() string
	SetLink(port string, up bool)
	Kill()
	Revive() error
}

// parkingVLAN carries nothing: ports of machines that run nothing of ours are in it.
const parkingVLAN = 1

// labOwner is recorded on devices as the author of what the lab planted.
const labOwner = "lab"

// switchBackend tells the world what a switch really does.
type switchBackend struct {
	lab  *Lab
	name string
}

// PortChanged implements ovssim.Backend.
func (b switchBackend) PortChanged(port string, s ovssim.PortState) {
	if err := b.lab.world.SetPort(b.name, port, portOf(s)); err != nil {
		b.lab.log.Error("port not recorded", "switch", b.name, "port", port, "err", err)
	}
}

func portOf(s ovssim.PortState) world.Port {
	return world.Port{Untagged: s.Untagged, Tagged: s.Tagged, Trunk: s.AllVLANs, Shut: s.Quarantined, Epoch: s.Epoch, Owner: s.Owner}
}

// startSwitches starts every switch with its ports as if Rerack had set those of the homes.
func (l *Lab) startSwitches(ctx context.Context) error {
	l.switches = map[string]*netSwitch{}
	for _, name := range l.topo.Names(topology.KindSwitch) {
		s := l.topo.Switches[name]
		if s.Spec.Driver != "ovs" {
			return fault.Newf(fault.Unsupported, "switch %s: the lab has no simulator for driver %q", name, s.Spec.Driver)
		}
		ports := l.portsOf(name)
		start := l.simulateSwitch
		if l.cfg.QEMU != nil && l.cfg.QEMU.Switches == SwitchesOVS {
			start = l.realSwitch
		}
		n, err := start(ctx, name, ports)
		if err != nil {
			return fault.Wrap(err, "start", "switch "+name)
		}
		n.links = map[string]bool{}
		for p := range ports {
			n.links[p] = false
		}
		if err := l.world.Protect("port", name, foreignPort); err != nil {
			return err
		}
		for _, p := range s.Spec.Protected {
			if err := l.world.Protect("port", name, p); err != nil {
				return err
			}
		}
		l.switches[name] = n
		s.Spec.Address = n.box.Endpoint()
		l.topo.Switches[name] = s
	}
	return nil
}

func (l *Lab) simulateSwitch(_ context.Context, name string, ports map[string]ovssim.Port) (*netSwitch, error) {
	s := l.topo.Switches[name].Spec
	cfg := ovssim.Config{Bridge: s.Bridge, Address: l.address(s.Address), Backend: switchBackend{l, name}}
	for _, p := range slices.Sorted(maps.Keys(ports)) {
		cfg.Ports = append(cfg.Ports, ports[p])
	}
	sim, err := ovssim.Start(cfg)
	if err != nil {
		return nil, err
	}
	l.onClose(func() error { sim.Close(); return nil })
	for p := range ports {
		state, _ := sim.Port(p)
		if err := l.world.SetPort(name, p, portOf(state)); err != nil {
			return nil, err
		}
	}
	return &netSwitch{box: sim, sim: sim}, nil
}

// foreignPort is a port on every switch that nobody may touch.
const foreignPort = "foreign1"

// portsOf lists the ports of a switch as they are before Rerack first looks at them.
func (l *Lab) portsOf(sw string) map[string]ovssim.Port {
	ports := map[string]ovssim.Port{
		foreignPort: {Name: foreignPort, Untagged: foreignVLAN, ExternalIDs: map[string]string{"owner": "building management"}},
	}
	for _, p := range l.topo.Switches[sw].Spec.Protected {
		ports[p] = ovssim.Port{Name: p}
	}
	for name, s := range l.topo.Switches {
		for _, u := range s.Spec.Uplinks { // a port with no VLAN at all carries every one
			if name == sw {
				ports[u.Port] = ovssim.Port{Name: u.Port}
			}
			if u.Switch == sw {
				ports[u.PeerPort] = ovssim.Port{Name: u.PeerPort}
			}
		}
	}
	for name, m := range l.topo.Machines {
		for _, n := range m.Spec.NICs {
			if n.Switch != sw {
				continue
			}
			p := ovssim.Port{Name: n.Port, Untagged: parkingVLAN}
			if net, ok := l.topo.Networks[m.Spec.Provisioning.Network]; ok {
				p.Untagged = net.Spec.VLAN
			}
			if at := l.plan.installs[name]; at != nil {
				want := wantedPort(l.topo, at.workload)
				p.Untagged, p.Tagged = want.Untagged, want.Tagged
				p.ExternalIDs = map[string]string{"rerack-epoch": strconv.Itoa(firstEpoch), "rerack-owner": labOwner}
			}
			ports[n.Port] = p
		}
	}
	return ports
}

// followSwitch makes the management of a switch as dead as the world says, and its carriers right.
// port narrows it to one; then nothing is started or stopped, because the switch itself may be waiting.
func (l *Lab) followSwitch(name, port string) {
	n := l.switches[name]
	if n == nil {
		return
	}
	if port == "" {
		n.follow(l, name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for p, was := range n.links {
		if port != "" && p != port {
			continue
		}
		if up := l.world.Carrier(name, p); up != was {
			n.links[p] = up
			n.box.SetLink(p, up)
		}
	}
}

func (n *netSwitch) follow(l *Lab, name string) {
	n.life.Lock()
	defer n.life.Unlock()
	_, reachable := l.world.SwitchState(name)
	if reachable != n.down {
		return
	}
	n.down = !reachable
	if n.down {
		n.box.Kill()
	} else if err := n.box.Revive(); err != nil {
		l.log.Error("switch does not come back", "switch", name, "err", err)
	}
}

func switchKnobs() knobs[ovssim.Faults] {
	return knobs[ovssim.Faults]{
		"hang":       func(f *ovssim.Faults, s setting) { f.Hang = s.on },
		"delay":      func(f *ovssim.Faults, s setting) { f.Delay = s.d },
		"refuse":     func(f *ovssim.Faults, s setting) { f.Refuse = s.n },
		"lose-reply": func(f *ovssim.Faults, s setting) { f.LoseReply = s.n },
		"stalled":    func(f *ovssim.Faults, s setting) { f.Stalled = s.on },
	}
}

func (l *Lab) switchFault(name, what string, s setting) (err error) {
	n := l.switches[name]
	if n == nil {
		return fault.Newf(fault.NotFound, "no switch %q", name)
	}
	if n.sim == nil {
		return fault.Newf(fault.Unsupported, "switch %q is real: it has no faults to set", name)
	}
	n.sim.SetFaults(func(f *ovssim.Faults) { err = switchKnobs().apply(f, what, s) })
	return err
}

func (n *netSwitch) counters() map[string]int {
	if n.sim == nil {
		return nil
	}
	c := n.sim.Counters()
	return map[string]int{"connections": c.Connections, "transactions": c.Transactions, "commits": c.Commits, "failed": c.Failed}
}
