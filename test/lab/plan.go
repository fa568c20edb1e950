package lab

import (
	"net/netip"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/world"
)

// firstEpoch is that of workloads which run before Rerack ever moved one.
const firstEpoch = 1

// plan is what the topology says about addresses and homes, looked up once.
type plan struct {
	installs  map[string]*install   // machine -> the operating system on its disk
	addresses map[netip.Addr]tenant // who answers at an address
	subnets   map[siteVLAN]netip.Prefix
	targets   map[topology.IQN]string // iSCSI target -> volume
}

type siteVLAN struct {
	site string
	vlan int
}

// tenant is a workload on one of its networks.
type tenant struct {
	workload string
	vlan     int
	ports    []uint16
}

// defaultPort is where a workload listens that declares no health check.
const defaultPort = 80

func (t tenant) listens(port uint16) bool {
	for _, p := range t.ports {
		if p == port {
			return true
		}
	}
	return false
}

func planOf(t *topology.Topology) plan {
	p := plan{installs: map[string]*install{}, addresses: map[netip.Addr]tenant{}, subnets: map[siteVLAN]netip.Prefix{},
		targets: map[topology.IQN]string{}}
	for name, v := range t.Volumes {
		if v.Spec.Target != "" {
			p.targets[v.Spec.Target] = name
		}
	}
	for _, n := range t.Networks {
		p.subnets[siteVLAN{n.Spec.Site, n.Spec.VLAN}] = n.Spec.Subnet
	}
	for _, name := range t.Names(topology.KindWorkload) {
		w := t.Workloads[name].Spec
		ports := []uint16{}
		for _, port := range []int{w.Health.HTTPPort, w.Health.TCPPort} {
			if port != 0 {
				ports = append(ports, uint16(port))
			}
		}
		if len(ports) == 0 {
			ports = append(ports, defaultPort)
		}
		for _, n := range w.Networks {
			p.addresses[n.Address] = tenant{workload: name, vlan: t.Networks[n.Network].Spec.VLAN, ports: ports}
		}
		if w.Home != "" {
			p.installs[w.Home] = &install{workload: name, epoch: firstEpoch, running: true}
		}
	}
	return p
}

// useLoopback gives machines whose storage address lies outside 127.0.0.0/8 one inside: it is the source
// of real connections here.
func useLoopback(t *topology.Topology) {
	taken := map[netip.Addr]bool{}
	for _, m := range t.Machines {
		taken[m.Spec.StorageAddress] = true
	}
	next := netip.AddrFrom4([4]byte{127, 10, 0, 1})
	for _, name := range t.Names(topology.KindMachine) {
		m := t.Machines[name]
		if a := m.Spec.StorageAddress; !a.IsValid() || a.Is4() && a.IsLoopback() {
			continue
		}
		for taken[next] {
			next = next.Next()
		}
		taken[next] = true
		m.Spec.StorageAddress = next
		t.Machines[name] = m
	}
}

// installed is what an operating system finds in its own configuration: its workload, volumes and
// initiator name as they were when it was installed.
func (l *Lab) installed(on *install) params {
	w := l.topo.Workloads[on.workload].Spec
	p := params{Workload: on.workload, Epoch: on.epoch, Initiator: string(w.InitiatorIQN)}
	for _, use := range w.Volumes {
		if d, ok := l.diskOf(use.Volume); ok {
			p.Volumes = append(p.Volumes, d)
		}
	}
	return p
}

// diskOf says where a volume is; ok is false when its array has no way in.
func (l *Lab) diskOf(volume string) (disk, bool) {
	v := l.topo.Volumes[volume].Spec
	a := l.topo.Arrays[v.Array].Spec
	if v.Protocol == topology.ISCSI {
		if len(a.Portals) == 0 {
			return disk{}, false
		}
		portal, err := netip.ParseAddrPort(a.Portals[0])
		if err != nil {
			return disk{}, false
		}
		account, err := l.accountOf(v)
		return disk{Volume: volume, ISCSI: true, Portal: portal, Target: string(v.Target), LUN: v.LUN, Login: account}, err == nil
	}
	if len(a.Targets) == 0 {
		return disk{}, false
	}
	return disk{Volume: volume, Target: string(a.Targets[0].WWPN), LUN: v.LUN}, true
}

// foreignVLAN is that of somebody else's ports, which nobody may touch.
const foreignVLAN = 4001

// wantedPort is what the ports of a workload's home are set to: its first network untagged, the
// others tagged.
func wantedPort(t *topology.Topology, workload string) world.Port {
	p := world.Port{Epoch: firstEpoch}
	for i, n := range t.Workloads[workload].Spec.Networks {
		vlan := t.Networks[n.Network].Spec.VLAN
		if i == 0 {
			p.Untagged = vlan
		} else if vlan != p.Untagged {
			p.Tagged = append(p.Tagged, vlan)
		}
	}
	return p
}
