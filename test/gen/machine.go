package gen

import (
	"fmt"
	"net/netip"

	"rerack.dev/rerack/orchestrator/topology"
)

// rack makes rack i with its feed and its switch.
func (g *generator) rack(i int) {
	feed, sw := Feed(i/feedRacks), fmt.Sprintf("tor-%04d", i)
	g.t.PowerFeeds[feed] = topology.PowerFeed{Kind: topology.KindPowerFeed, Meta: meta(feed), Spec: topology.PowerFeedSpec{Site: Site}}
	g.t.Racks[Rack(i)] = topology.Rack{Kind: topology.KindRack, Meta: meta(Rack(i)), Spec: topology.RackSpec{
		Site: Site, Units: 60, Feeds: []string{feed}, Policy: Policy}}
	s := topology.SwitchSpec{Rack: Rack(i), Driver: "ovs", Address: "tcp:" + at(127, 7, i) + ":6640"}
	for n := range spines {
		s.Uplinks = append(s.Uplinks, topology.Uplink{Port: fmt.Sprintf("up%d", n), Switch: fmt.Sprintf("spine%d", n), PeerPort: fmt.Sprintf("p%d", i)})
	}
	g.t.Switches[sw] = topology.Switch{Kind: topology.KindSwitch, Meta: meta(sw), Spec: s}
}

func (g *generator) machine(i int) {
	rack, place := i/g.c.PerRack, i%g.c.PerRack
	hardware, pool := big, topology.UseProduction
	if g.arm(i) {
		hardware = arm
	}
	if g.spare(i) {
		pool = topology.UseSpare
	}
	hi, lo := byte(i>>8), byte(i)
	g.t.Machines[Machine(i)] = topology.Machine{Kind: topology.KindMachine,
		Meta: topology.Meta{Name: Machine(i), Labels: map[string]string{"pool": string(pool)}},
		Spec: topology.MachineSpec{
			Rack: Rack(rack), Unit: place + 1, HardwareType: hardware,
			Serial: fmt.Sprintf("SN%05d", i), UUID: fmt.Sprintf("00000000-0000-4000-8000-%012x", i+1),
			BMC:  topology.BMC{Address: "https://" + at(127, 8, i) + ":8443", Credentials: "bmc"},
			NICs: []topology.NIC{{Name: "eth0", MAC: topology.MAC(fmt.Sprintf("52:54:00:00:%02x:%02x", hi, lo)), Switch: fmt.Sprintf("tor-%04d", rack), Port: fmt.Sprintf("p%d", place+1)}},
			HBAs: []topology.HBA{
				{Name: "fc0", WWPN: topology.WWPN(fmt.Sprintf("20:00:00:25:b5:0a:%02x:%02x", hi, lo)), Fabric: "fab-a"},
				{Name: "fc1", WWPN: topology.WWPN(fmt.Sprintf("20:00:00:25:b5:0b:%02x:%02x", hi, lo)), Fabric: "fab-b"},
			},
			StorageAddress: netip.MustParseAddr(at(127, 9, i)),
			Provisioning:   topology.Attachment{Network: bootNet, Address: netip.MustParseAddr(at(10, 100, i))},
		}}
}

// at makes the address number i of a /16, leaving out the network's own address and its gateway.
func at(a, b byte, i int) string {
	return netip.AddrFrom4([4]byte{a, b, byte((i + 10) >> 8), byte(i + 10)}).String()
}

func (g *generator) workload(i int) {
	name, net := Workload(i), i%networks
	s := topology.WorkloadSpec{
		Home: Machine(i), RunsOn: topology.Any, Arch: topology.X86_64, Image: linuxX86,
		CPUs: 2 << (i % 4), MemoryMiB: 4096 << (i % 4), Priority: i * 7 % 900,
		Repurposable: i >= g.c.PerRack && i%10 == 0,
		Networks:     []topology.Attachment{{Network: fmt.Sprintf("net-%d", net), Address: netip.MustParseAddr(at(10, byte(1+net), i))}},
	}
	if i%5 == 4 {
		second := (net + 1) % networks
		s.Networks = append(s.Networks, topology.Attachment{Network: fmt.Sprintf("net-%d", second), Address: netip.MustParseAddr(at(10, byte(1+second), i))})
	}
	if g.arm(i) {
		s.Arch, s.Image = topology.ARM64, linuxARM
	}
	switch i % 3 {
	case 0:
		array := g.array("fc", i, topology.ArraySpec{Driver: "ontap", Address: "https://" + at(127, 4, i/perArray) + ":8443", Credentials: "array",
			Targets: []topology.ArrayTarget{
				{WWPN: topology.WWPN(fmt.Sprintf("50:0a:09:81:00:00:00:%02x", i/perArray)), Fabric: "fab-a"},
				{WWPN: topology.WWPN(fmt.Sprintf("50:0a:09:82:00:00:00:%02x", i/perArray)), Fabric: "fab-b"},
			}})
		g.volume(&s, name, topology.VolumeSpec{Array: array, Protocol: topology.FC, ArrayRef: "/vol/v1/" + name})
	case 1:
		array := g.array("iscsi", i, topology.ArraySpec{Driver: "tgt", Address: fmt.Sprintf("unix:/run/tgt/socket.%d", i/perArray),
			Portals: []string{at(127, 3, i/perArray) + ":3260"}})
		s.InitiatorIQN = topology.IQN("iqn.2026-01.org.example:host-" + name)
		g.volume(&s, name, topology.VolumeSpec{Array: array, Protocol: topology.ISCSI, Target: topology.IQN("iqn.2026-01.org.example:" + name), LUN: 1})
	}
	g.t.Workloads[name] = topology.Workload{Kind: topology.KindWorkload, Meta: meta(name), Spec: s}
}

// array makes the array for volume i when it is not there yet.
func (g *generator) array(kind string, i int, s topology.ArraySpec) string {
	name := fmt.Sprintf("%s-%02d", kind, i/perArray)
	s.Site = Site
	g.t.Arrays[name] = topology.Array{Kind: topology.KindArray, Meta: meta(name), Spec: s}
	return name
}

func (g *generator) volume(w *topology.WorkloadSpec, name string, s topology.VolumeSpec) {
	g.t.Volumes[name] = topology.Volume{Kind: topology.KindVolume, Meta: meta(name), Spec: s}
	w.Volumes = []topology.VolumeUse{{Volume: name}}
}
