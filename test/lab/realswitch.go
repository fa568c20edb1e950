package lab

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/fabric/driver"
	ovsdriver "rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/fabric/ovssim"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/qemu/ovs"
	"rerack.dev/rerack/test/qemu/vswitch"
	"rerack.dev/rerack/test/world"
)

// trunkPort is where a real core switch is cabled to the gateways of all networks.
const trunkPort = "gateway"

// realBox is a real switch as the lab sees it.
type realBox struct {
	*ovs.Switch
	lab  *Lab
	name string
}

// SetLink implements switchBox.
func (b realBox) SetLink(port string, up bool) {
	p := b.Port(port)
	if p == nil {
		return
	}
	if err := p.SetLink(up); err != nil {
		b.lab.log.Error("carrier not set", "port", p.Name(), "err", err)
	}
}

// Revive implements switchBox.
func (b realBox) Revive() error { return b.Switch.Revive(b.lab.ctx) }

// vlans are those of all networks. What real uplinks carry ends with them: ports in quarantine on two
// switches do not see each other.
func (l *Lab) vlans() []int {
	var all []int
	for _, n := range l.topo.Networks {
		all = append(all, n.Spec.VLAN)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// realSwitch starts an Open vSwitch in the place of a simulated switch. What it is set to is read from it,
// the way the product does, and told to the world.
func (l *Lab) realSwitch(ctx context.Context, name string, ports map[string]ovssim.Port) (*netSwitch, error) {
	s := l.topo.Switches[name].Spec
	if len(s.Uplinks) > 1 {
		return nil, fault.Newf(fault.Unsupported, "%d uplinks: real switches know no spanning tree, and would make a loop", len(s.Uplinks))
	}
	at, err := freeAddress(l.address(s.Address))
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "rerack-ovs-") // short, for its sockets' sake
	if err != nil {
		return nil, fault.Wrap(err, "make directory", "switch "+name)
	}
	l.onClose(func() error { return os.RemoveAll(dir) })
	cfg := ovs.Config{Name: name, Dir: dir, Bridge: s.Bridge, Listen: at, Logger: l.log}
	for _, p := range slices.Sorted(maps.Keys(ports)) {
		c := ovs.PortConfig{Name: p, Untagged: ports[p].Untagged, Tagged: ports[p].Tagged, ExternalIDs: ports[p].ExternalIDs}
		if c.Untagged == 0 && len(c.Tagged) == 0 {
			c.Tagged = l.vlans()
		}
		cfg.Ports = append(cfg.Ports, c)
	}
	if len(s.Uplinks) == 0 {
		cfg.Ports = append(cfg.Ports, ovs.PortConfig{Name: trunkPort, Tagged: l.vlans()})
	}
	sw, err := ovs.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	l.onClose(sw.Close)
	return &netSwitch{box: realBox{sw, l, name}, real: sw}, l.watchSwitch(ctx, name, sw)
}

// freeAddress is an address to listen at; port 0 becomes one that is free now.
func freeAddress(at string) (netip.AddrPort, error) {
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return netip.AddrPort{}, fault.Wrap(err, "listen", at)
	}
	a, err := netip.ParseAddrPort(ln.Addr().String())
	return a, errors.Join(err, ln.Close())
}

// lookEvery is how long the world may lag behind a real switch. Frames do not wait for it.
const lookEvery = 100 * time.Millisecond

// watchSwitch tells the world what a real switch is set to, now and until the lab ends.
func (l *Lab) watchSwitch(ctx context.Context, name string, sw *ovs.Switch) error {
	d, err := ovsdriver.New(ovsdriver.Config{Endpoint: sw.Endpoint(), Bridge: l.topo.Switches[name].Spec.Bridge})
	if err != nil {
		return err
	}
	l.onClose(d.Close)
	known := map[string]world.Port{}
	look := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, lookLimit)
		defer cancel()
		ports, err := d.Ports(ctx)
		if err != nil {
			return err
		}
		for _, p := range ports {
			if now := worldPort(p); p.Name != trunkPort && !reflect.DeepEqual(known[p.Name], now) {
				if err := l.world.SetPort(name, p.Name, now); err != nil {
					return err
				}
				known[p.Name] = now
			}
		}
		return nil
	}
	if err := look(ctx); err != nil {
		return err
	}
	l.wg.Go(func() {
		for pause(l.ctx, lookEvery) {
			if err := look(l.ctx); err != nil {
				l.log.Debug("real switch not read", "switch", name, "err", err) // it may be without power
			}
		}
	})
	return nil
}

const lookLimit = 5 * time.Second

func worldPort(p driver.Port) world.Port {
	return world.Port{Untagged: p.Untagged, Tagged: p.Tagged, Trunk: p.AllVLANs, Shut: p.Shut, Epoch: p.Epoch, Owner: p.Owner}
}

// cableSwitches connects real switches with each other and with the gateways.
func (l *Lab) cableSwitches() error {
	ctx, cancel := context.WithCancel(l.ctx)
	var wires sync.WaitGroup
	l.onClose(func() error {
		cancel()
		wires.Wait()
		return nil
	})
	connect := func(a, b ovs.Plug) {
		wires.Go(func() {
			if err := ovs.Cable(ctx, a, b); err != nil {
				l.log.Error("a cable between switches is cut", "err", err)
			}
		})
	}
	for _, name := range l.topo.Names(topology.KindSwitch) {
		real := l.switches[name].real
		if real == nil {
			continue
		}
		uplinks := l.topo.Switches[name].Spec.Uplinks
		for _, u := range uplinks {
			connect(real.Port(u.Port), l.switches[u.Switch].real.Port(u.PeerPort))
		}
		if len(uplinks) > 0 {
			continue
		}
		p, err := l.real.sw.Add("core/"+name, vswitch.Settings{Tagged: l.vlans()})
		if err != nil {
			return err
		}
		if err := real.Port(trunkPort).SetLink(true); err != nil {
			return err
		}
		connect(p, real.Port(trunkPort))
	}
	return nil
}
