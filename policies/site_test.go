package policies

import (
	"fmt"
	"net/netip"

	"rerack.dev/rerack/orchestrator/topology"
)

// site builds topologies for tests.
type site struct{ *topology.Topology }

func newSite() site {
	t := topology.New()
	t.Sites["s1"] = topology.Site{Kind: topology.KindSite, Meta: topology.Meta{Name: "s1"}}
	t.MachinePools["spares"] = pool("spares", topology.UseSpare)
	t.MachinePools["production"] = pool("production", topology.UseProduction)
	t.MachinePools["never"] = pool("never", topology.UseNone)
	t.Switches["core"] = topology.Switch{Kind: topology.KindSwitch, Meta: topology.Meta{Name: "core"}, Spec: topology.SwitchSpec{Site: "s1"}}
	t.Networks["n1"] = topology.Network{Kind: topology.KindNetwork, Meta: topology.Meta{Name: "n1"}, Spec: topology.NetworkSpec{Site: "s1", VLAN: 10}}
	t.Networks["n2"] = topology.Network{Kind: topology.KindNetwork, Meta: topology.Meta{Name: "n2"}, Spec: topology.NetworkSpec{Site: "s2", VLAN: 10}}
	for image, firmware := range map[string][]topology.Firmware{"any": nil, "bios-only": {topology.BIOS}} {
		t.Images[image] = topology.Image{Kind: topology.KindImage, Meta: topology.Meta{Name: image}, Spec: topology.ImageSpec{Type: topology.ImageKernel, Arch: topology.X86_64, Firmware: firmware}}
	}
	for array, spec := range map[string]topology.ArraySpec{
		"ip": {Site: "s1"}, "ip2": {Site: "s2"},
		"fc": {Site: "s1", Targets: []topology.ArrayTarget{{Fabric: "fab-a"}, {Fabric: "fab-b"}}}, "fc2": {Site: "s1", Targets: []topology.ArrayTarget{{Fabric: "fab-c"}}},
	} {
		t.Arrays[array] = topology.Array{Kind: topology.KindArray, Meta: topology.Meta{Name: array}, Spec: spec}
		protocol := topology.ISCSI
		if len(spec.Targets) > 0 {
			protocol = topology.FC
		}
		t.Volumes["on-"+array] = topology.Volume{Kind: topology.KindVolume, Meta: topology.Meta{Name: "on-" + array}, Spec: topology.VolumeSpec{Array: array, Protocol: protocol}}
	}
	return site{t}
}

func pool(use string, u topology.PoolUse) topology.MachinePool {
	return topology.MachinePool{Kind: topology.KindMachinePool, Meta: topology.Meta{Name: use},
		Spec: topology.MachinePoolSpec{Selector: map[string]string{"use": use}, Use: u}}
}

// hardware declares a type "cpus-GiB" that boots both ways and may be a host, and returns its name.
func (s site) hardware(cpus, gib int) string {
	name := fmt.Sprintf("hw-%d-%d", cpus, gib)
	s.HardwareTypes[name] = topology.HardwareType{Kind: topology.KindHardwareType, Meta: topology.Meta{Name: name},
		Spec: topology.HardwareTypeSpec{Arch: topology.X86_64, CPUs: cpus, MemoryMiB: int64(gib) << 10,
			Firmware: []topology.Firmware{topology.BIOS, topology.UEFI}, Hypervisor: true}}
	return name
}

// machine declares a machine with one NIC on the rack's switch; use is spares, production, never or "".
func (s site) machine(name, rack, hw, use string) {
	if _, known := s.Racks[rack]; !known {
		s.Racks[rack] = topology.Rack{Kind: topology.KindRack, Meta: topology.Meta{Name: rack}, Spec: topology.RackSpec{Site: "s1"}}
		s.Switches["tor-"+rack] = topology.Switch{Kind: topology.KindSwitch, Meta: topology.Meta{Name: "tor-" + rack},
			Spec: topology.SwitchSpec{Rack: rack, Uplinks: []topology.Uplink{{Port: "up1", Switch: "core", PeerPort: rack}}}}
	}
	labels := map[string]string{}
	if use != "" {
		labels["use"] = use
	}
	s.Machines[name] = topology.Machine{Kind: topology.KindMachine, Meta: topology.Meta{Name: name, Labels: labels},
		Spec: topology.MachineSpec{Rack: rack, HardwareType: hw, NICs: []topology.NIC{{Name: "eth0", Switch: "tor-" + rack, Port: name}},
			Provisioning:   topology.Attachment{Network: "n1"},
			StorageAddress: netip.AddrFrom4([4]byte{10, 9, byte(len(s.Machines) >> 8), byte(len(s.Machines))})}}
}

// workload declares a workload that may run anywhere; more changes it.
func (s site) workload(name string, priority, cpus, gib int, more ...func(*topology.WorkloadSpec)) {
	spec := topology.WorkloadSpec{RunsOn: topology.Any, Arch: topology.X86_64, CPUs: cpus, MemoryMiB: int64(gib) << 10,
		Priority: priority, Networks: []topology.Attachment{{Network: "n1"}}}
	for _, f := range more {
		f(&spec)
	}
	s.Workloads[name] = topology.Workload{Kind: topology.KindWorkload, Meta: topology.Meta{Name: name}, Spec: spec}
}

func repurposable(w *topology.WorkloadSpec) { w.Repurposable = true }
func physical(w *topology.WorkloadSpec)     { w.RunsOn = topology.Physical }
func spread(group string) func(*topology.WorkloadSpec) {
	return func(w *topology.WorkloadSpec) { w.SpreadGroup = group }
}
