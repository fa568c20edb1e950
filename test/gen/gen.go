// Package gen makes valid topologies of any size for scale tests and benchmarks. The same Config always
// makes the same topology.
package gen

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// Config says how large the data centre is.
type Config struct {
	Machines     int // 2 to 60,000
	PerRack      int // machines in a rack, 2 to 60; default 40
	SparePercent int // machines of every rack but the first that run nothing, 1 to 100; default 20
}

// Validate names the key that is wrong.
func (c Config) Validate() error {
	switch c = c.withDefaults(); {
	case c.Machines < 2 || c.Machines > 60_000:
		return fault.Newf(fault.Invalid, "Machines is %d, want 2 to 60000", c.Machines)
	case c.PerRack < 2 || c.PerRack > 60:
		return fault.Newf(fault.Invalid, "PerRack is %d, want 2 to 60", c.PerRack)
	case c.SparePercent < 1 || c.SparePercent > 100:
		return fault.Newf(fault.Invalid, "SparePercent is %d, want 1 to 100", c.SparePercent)
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.PerRack == 0 {
		c.PerRack = 40
	}
	if c.SparePercent == 0 {
		c.SparePercent = 20
	}
	return c
}

// Names of what every generated topology has. Every ten racks share a power feed.
const (
	Site        = "hall-1"
	Policy      = "default"
	Runbook     = "rack-0000-burns" // of the first rack, which is full
	FeedRunbook = "feed-001-burns"  // of the second power feed, where it exists
	feedRacks   = 10
)

// Feed, Rack and Machine name the things by their number from 0.
func Feed(i int) string    { return fmt.Sprintf("feed-%03d", i) }
func Rack(i int) string    { return fmt.Sprintf("rack-%04d", i) }
func Machine(i int) string { return fmt.Sprintf("m%05d", i) }

// Workload names the workload whose home is machine i.
func Workload(i int) string { return fmt.Sprintf("w%05d", i) }

// Topology makes a topology: the first rack is full of workloads; of every other rack the last
// SparePercent of the machines are spares and the rest run workloads, each tenth of them repurposable.
// A third of the workloads has an FC volume, a third an iSCSI volume, a third none; every fifth is on two
// networks; every sixteenth runs on arm64. The failure detector may recover the first rack and the second
// power feed by itself.
func Topology(c Config) (*topology.Topology, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	g := generator{c: c.withDefaults(), t: topology.New()}
	g.common()
	for i := range (g.c.Machines + g.c.PerRack - 1) / g.c.PerRack {
		g.rack(i)
	}
	for i := range g.c.Machines {
		g.machine(i)
		if !g.spare(i) {
			g.workload(i)
		}
	}
	return g.t, nil
}

type generator struct {
	c Config
	t *topology.Topology
}

const (
	big, arm  = "std-x86", "std-arm"
	networks  = 4
	perArray  = 4000 // volumes on one array
	spines    = 2
	bootNet   = "boot"
	linuxX86  = "linux-x86"
	linuxARM  = "linux-arm"
	hypervise = "hypervisor-x86"
)

// spare reports whether machine i runs nothing.
func (g *generator) spare(i int) bool {
	rack, place := i/g.c.PerRack, i%g.c.PerRack
	return rack > 0 && place >= g.c.PerRack-(g.c.PerRack*g.c.SparePercent+99)/100
}

func (g *generator) arm(i int) bool { return i%16 == 15 }

func meta(name string) topology.Meta { return topology.Meta{Name: name} }

func digest(s string) topology.Digest {
	h := sha256.Sum256([]byte(s))
	return topology.Digest("sha256:" + hex.EncodeToString(h[:]))
}

// common makes what does not grow with the number of machines.
func (g *generator) common() {
	t := g.t
	t.Sites[Site] = topology.Site{Kind: topology.KindSite, Meta: meta(Site)}
	t.Policies[Policy] = topology.Policy{Kind: topology.KindPolicy, Meta: meta(Policy)}
	hardware := func(name string, s topology.HardwareTypeSpec) {
		t.HardwareTypes[name] = topology.HardwareType{Kind: topology.KindHardwareType, Meta: meta(name), Spec: s}
	}
	hardware(big, topology.HardwareTypeSpec{Arch: topology.X86_64, CPUs: 32, MemoryMiB: 65536, Firmware: []topology.Firmware{topology.BIOS, topology.UEFI}, Hypervisor: true})
	hardware(arm, topology.HardwareTypeSpec{Arch: topology.ARM64, CPUs: 32, MemoryMiB: 65536, Firmware: []topology.Firmware{topology.UEFI}})
	image := func(name string, kind topology.ImageType, arch topology.Arch) {
		t.Images[name] = topology.Image{Kind: topology.KindImage, Meta: meta(name), Spec: topology.ImageSpec{
			Type: kind, Arch: arch, Kernel: digest("kernel " + name), Initrds: []topology.Digest{digest("initrd " + name)}}}
	}
	image(linuxX86, topology.ImageKernel, topology.X86_64)
	image(linuxARM, topology.ImageKernel, topology.ARM64)
	image(hypervise, topology.ImageHypervisor, topology.X86_64)
	for i := range networks {
		g.network(fmt.Sprintf("net-%d", i), 110+i, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i)}), 16))
	}
	g.network(bootNet, 100, netip.MustParsePrefix("10.100.0.0/16"))
	for _, f := range []string{"a", "b"} {
		t.Fabrics["fab-"+f] = topology.Fabric{Kind: topology.KindFabric, Meta: meta("fab-" + f), Spec: topology.FabricSpec{
			Site: Site, Driver: "brocade", Address: fmt.Sprintf("https://127.6.0.%d:8443", f[0]-'a'+1), Credentials: "san"}}
	}
	for i := range spines {
		name := fmt.Sprintf("spine%d", i)
		t.Switches[name] = topology.Switch{Kind: topology.KindSwitch, Meta: meta(name), Spec: topology.SwitchSpec{
			Site: Site, Driver: "ovs", Address: fmt.Sprintf("tcp:127.5.0.%d:6640", i+1)}}
	}
	for _, use := range []topology.PoolUse{topology.UseSpare, topology.UseProduction} {
		name := string(use)
		t.MachinePools[name] = topology.MachinePool{Kind: topology.KindMachinePool, Meta: meta(name), Spec: topology.MachinePoolSpec{
			Selector: map[string]string{"pool": name}, Use: use}}
	}
	g.runbook(Runbook, "rack/"+Rack(0))
	if g.c.Machines > feedRacks*g.c.PerRack {
		g.runbook(FeedRunbook, "powerfeed/"+Feed(1))
	}
}

func (g *generator) runbook(name, domain string) {
	g.t.Runbooks[name] = topology.Runbook{Kind: topology.KindRunbook, Meta: meta(name), Spec: topology.RunbookSpec{
		Scope: []string{domain}, Policy: Policy, HypervisorImage: hypervise, Triggers: topology.Triggers{Person: true, API: true, Detector: true}}}
}

func (g *generator) network(name string, vlan int, subnet netip.Prefix) {
	g.t.Networks[name] = topology.Network{Kind: topology.KindNetwork, Meta: meta(name), Spec: topology.NetworkSpec{
		Site: Site, VLAN: vlan, Subnet: subnet, Gateway: subnet.Addr().Next()}}
}
