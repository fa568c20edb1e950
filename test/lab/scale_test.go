package lab_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/lab"
)

// large is racks of 40 machines each under one spine; the first workloads machines run one, on an FC
// volume of their own.
func large(machines, workloads int) *topology.Topology {
	t := topology.New()
	t.Sites["s"] = topology.Site{Meta: topology.Meta{Name: "s"}}
	t.HardwareTypes["hw"] = topology.HardwareType{Meta: topology.Meta{Name: "hw"}, Spec: topology.HardwareTypeSpec{Arch: topology.X86_64, CPUs: 8, MemoryMiB: 16384,
		Firmware: []topology.Firmware{topology.UEFI}}}
	t.Networks["n"] = topology.Network{Meta: topology.Meta{Name: "n"}, Spec: topology.NetworkSpec{Site: "s", VLAN: 10, Subnet: netip.MustParsePrefix("10.1.0.0/16")}}
	t.Switches["spine"] = topology.Switch{Meta: topology.Meta{Name: "spine"}, Spec: topology.SwitchSpec{Site: "s", Driver: "ovs"}}
	t.Fabrics["f"] = topology.Fabric{Meta: topology.Meta{Name: "f"}, Spec: topology.FabricSpec{Site: "s", Driver: "brocade", Credentials: "san"}}
	t.Arrays["a"] = topology.Array{Meta: topology.Meta{Name: "a"}, Spec: topology.ArraySpec{Site: "s", Driver: "ontap", Credentials: "san",
		Targets: []topology.ArrayTarget{{WWPN: "50:00:00:00:00:00:00:01", Fabric: "f"}}}}
	t.Images["i"] = topology.Image{Meta: topology.Meta{Name: "i"}, Spec: topology.ImageSpec{Type: topology.ImageKernel, Arch: topology.X86_64}}
	for i := range machines {
		rack, tor := fmt.Sprintf("rack-%d", i/40), fmt.Sprintf("tor-%d", i/40)
		t.Racks[rack] = topology.Rack{Meta: topology.Meta{Name: rack}, Spec: topology.RackSpec{Site: "s"}}
		t.Switches[tor] = topology.Switch{Meta: topology.Meta{Name: tor}, Spec: topology.SwitchSpec{Rack: rack, Driver: "ovs",
			Uplinks: []topology.Uplink{{Port: "up", Switch: "spine", PeerPort: tor}}}}
		name := fmt.Sprintf("m%04d", i)
		t.Machines[name] = topology.Machine{Meta: topology.Meta{Name: name}, Spec: topology.MachineSpec{Rack: rack, HardwareType: "hw", BMC: topology.BMC{Credentials: "bmc"},
			NICs: []topology.NIC{{Name: "eth0", MAC: topology.MAC(fmt.Sprintf("52:54:00:00:%02x:%02x", i>>8, i&0xff)), Switch: tor, Port: fmt.Sprintf("p%d", i%40)}},
			HBAs: []topology.HBA{{Name: "h0", WWPN: topology.WWPN(fmt.Sprintf("20:00:00:00:00:00:%02x:%02x", i>>8, i&0xff)), Fabric: "f"}}}}
		if i >= workloads {
			continue
		}
		volume, workload := fmt.Sprintf("v%04d", i), fmt.Sprintf("w%04d", i)
		t.Volumes[volume] = topology.Volume{Meta: topology.Meta{Name: volume}, Spec: topology.VolumeSpec{Array: "a", Protocol: topology.FC, ArrayRef: "/vol/" + volume}}
		t.Workloads[workload] = topology.Workload{Meta: topology.Meta{Name: workload}, Spec: topology.WorkloadSpec{Home: name, Arch: topology.X86_64, CPUs: 1, MemoryMiB: 1, Image: "i",
			Networks: []topology.Attachment{{Network: "n", Address: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}},
			Volumes:  []topology.VolumeUse{{Volume: volume}}}}
	}
	return t
}

// TestThousandsOfMachines: machines that are off cost no goroutine of their own, and no more memory than
// two thousand of them in 4 GiB allow, with a lot to spare for the product beside them.
func TestThousandsOfMachines(t *testing.T) {
	if testing.Short() {
		t.Skip("opens thousands of sockets")
	}
	const machines, workloads = 2000, 200
	l := start(t, large(machines, workloads), func(c *lab.Config) { c.WriteEvery = time.Second })
	eventually(t, "every workload serves", func() bool { return l.Status().Serving == workloads })
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d goroutines, %d MiB", runtime.NumGoroutine(), m.Sys>>20)
	if m.Sys > 1<<30 {
		t.Errorf("%d MiB of memory", m.Sys>>20)
	}
	begin := time.Now()
	must(t, l.Burn("rack-0"))
	must(t, l.RestorePower("rack-0"))
	t.Logf("burning and restoring a rack took %s", time.Since(begin))
	eventually(t, "rack-0 is back", func() bool { return l.Status().Serving == workloads })
	clean(t, l)
}
