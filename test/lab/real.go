package lab

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/kvmprobe"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe/imagebuild"
	"rerack.dev/rerack/test/qemu/gateway"
	"rerack.dev/rerack/test/qemu/image"
	qemu "rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/netstack"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// RealLabel on a HardwareType or an Image, with the value RealQEMU, says that in a lab with Config.QEMU its
// machines are processes of QEMU, and that it is the real test system. Without Config.QEMU all are
// simulated.
const (
	RealLabel = "lab"
	RealQEMU  = "qemu"
)

// BootAddress is where real machines find the boot server, on every network: an address of the block for
// tests between networks (RFC 2544 appendix C.2.2), which their gateways take in.
var BootAddress = netip.AddrFrom4([4]byte{198, 18, 0, 1})

// QEMU makes machines real. See RealLabel.
type QEMU struct {
	Kernel  []string       // folders in which to look for a kernel with its modules, see image.Find
	Loaders string         // folder with iPXE, as Debian's package has it
	HTTP    netip.AddrPort // the boot server's
	// Switches is SwitchesOVS for a real Open vSwitch in the place of every simulated one. It needs root.
	Switches string
	KVM      *kvmprobe.Probe // optional: says whether machines may run on KVM
	// Agent is the program rerack-agent. Only labs whose hypervisor is real need it.
	Agent string
}

// buildHypervisor makes the initial RAM disk of Rerack's own hypervisor from what is installed here.
func (q *QEMU) buildHypervisor() ([]byte, error) {
	k, err := imagebuild.FindKernel(q.Kernel...)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	r := imagebuild.Hypervisor(k, "/", q.Agent)
	err = r.Build(&b)
	return b.Bytes(), err
}

// SwitchesOVS is the value of QEMU.Switches for real switches.
const SwitchesOVS = "ovs"

func (q *QEMU) validate() error {
	switch {
	case len(q.Kernel) == 0:
		return fault.New(fault.Invalid, "lab: QEMU.Kernel is empty")
	case q.Loaders == "":
		return fault.New(fault.Invalid, "lab: QEMU.Loaders is missing")
	case !q.HTTP.IsValid():
		return fault.New(fault.Invalid, "lab: QEMU.HTTP is missing")
	case q.Switches != "" && q.Switches != SwitchesOVS:
		return fault.Newf(fault.Invalid, "lab: QEMU.Switches is %q; want %q or nothing", q.Switches, SwitchesOVS)
	}
	return nil
}

// reality is the real part of a lab: one switch in user space that carries every network of the site,
// whose ports follow what the simulated switches are set to.
type reality struct {
	sw             *vswitch.Switch
	nets           map[int]*netstack.Host // the gateways, by VLAN
	kernel, initrd []byte
	hypervisor     []byte   // initial RAM disk; nil when no image asks for it
	roots          []string // with the parts of systems on disks
	dir            string

	mu    sync.Mutex // held while ports are brought up to date
	ports map[string][]cable
}

// cable is the port that stands for a network card's; nil when the card is plugged into a real switch.
type cable struct {
	nic  topology.NIC
	port *vswitch.Port
}

func (l *Lab) isReal(m topology.MachineSpec) bool {
	return l.cfg.QEMU != nil && l.topo.HardwareTypes[m.HardwareType].Meta.Labels[RealLabel] == RealQEMU
}

// buildSystem makes the test system that real machines run. It does nothing in a lab without any.
func (l *Lab) buildSystem() error {
	if l.cfg.QEMU == nil {
		return nil
	}
	src, err := image.Find(l.cfg.QEMU.Kernel...)
	if err != nil {
		return err
	}
	r := &reality{sw: vswitch.New(nil), nets: map[int]*netstack.Host{}, dir: filepath.Join(l.cfg.Dir, "qemu"),
		roots: l.cfg.QEMU.Kernel, ports: map[string][]cable{}}
	if r.kernel, r.initrd, err = image.Build(src); err != nil {
		return err
	}
	for _, img := range l.topo.Images {
		if img.Spec.Type == topology.ImageHypervisor && img.Meta.Labels[RealLabel] == RealQEMU {
			if r.hypervisor, err = l.cfg.QEMU.buildHypervisor(); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return fault.Wrap(err, "make directory", r.dir)
	}
	for path, b := range map[string][]byte{r.kernelPath(): r.kernel, r.initrdPath(): r.initrd} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return fault.Wrap(err, "write the test system", path)
		}
	}
	l.real = r
	return nil
}

func (r *reality) diskPath(volume string) string { return filepath.Join(r.dir, volume+".disk") }

// installOn makes a disk with the test system on it, which is told these kernel parameters.
func (r *reality) installOn(ctx context.Context, path, params string) error {
	src, err := image.Find(r.roots...)
	if err != nil {
		return err
	}
	loader, err := image.FindLoader(src.Roots...)
	if err != nil {
		return err
	}
	kernel, initrd, err := image.BuildForDisk(src)
	if err != nil {
		return err
	}
	return loader.WriteDisk(ctx, path, kernel, initrd, ownParams+params)
}

// ownParams are for every system that boots by itself: a machine that is emulated on a busy computer loses
// timer interrupts, and boots all the same with the last two.
const ownParams = "console=ttyS0 quiet no_timer_check tsc=reliable "

func (r *reality) kernelPath() string { return filepath.Join(r.dir, "vmlinuz") }
func (r *reality) initrdPath() string { return filepath.Join(r.dir, "initrd") }

// startReal opens the gateways of all networks and plugs the real machines in. They are still off.
func (l *Lab) startReal(context.Context) error {
	if l.real == nil {
		return nil
	}
	l.onClose(l.closeNets)
	for i, name := range l.topo.Names(topology.KindNetwork) {
		if err := l.openNet(name, byte(i+1)); err != nil {
			return err
		}
	}
	if err := l.cableSwitches(); err != nil {
		return err
	}
	for _, name := range l.topo.Names(topology.KindMachine) {
		if m := l.machines[name]; l.isReal(m.spec) {
			if err := l.plugIn(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// openNet puts a gateway on a network.
func (l *Lab) openNet(name string, number byte) error {
	n := l.topo.Networks[name].Spec
	if !n.Subnet.Addr().Is4() {
		return nil
	}
	if l.real.nets[n.VLAN] != nil {
		return fault.Newf(fault.Unsupported, "network %s: real machines know one network of VLAN %d", name, n.VLAN)
	}
	link := n.Gateway
	if !link.IsValid() {
		link = n.Subnet.Masked().Addr().Next()
	}
	p, err := l.real.sw.Add("gateway/"+name, vswitch.Settings{Access: n.VLAN})
	if err != nil {
		return err
	}
	c := netstack.Config{Port: p, MAC: vswitch.MAC{0x02, 'R', 'R', 0, 0, number}, Logger: l.log,
		Addresses: []netip.Prefix{netip.PrefixFrom(link, n.Subnet.Bits()), netip.PrefixFrom(BootAddress, 32)}}
	for at := range l.portals() {
		if own := netip.PrefixFrom(at.Addr(), 32); at.Addr() != link && !slices.Contains(c.Addresses, own) {
			c.Addresses = append(c.Addresses, own)
		}
	}
	h, err := netstack.New(c)
	if err != nil {
		return err
	}
	l.real.nets[n.VLAN] = h
	relay := RelayPrefix.Addr().As4()
	relay[2], relay[3] = 255, number
	g, err := gateway.Open(gateway.Config{Host: h, Link: link, Boot: BootAddress, Relay: netip.AddrFrom4(relay),
		Circuit: func(mac [6]byte) string { return l.circuitOf(n.VLAN, mac) },
		From:    netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 4}), 16), Logger: l.log,
		Servers: func() gateway.Servers {
			return gateway.Servers{DHCP: *l.boot.Load(), TFTP: orZero(l.tftp.Load()), HTTP: l.cfg.QEMU.HTTP}
		}})
	if err != nil {
		return err
	}
	l.onClose(g.Close)
	return l.openPortals(h, n.VLAN)
}

func (l *Lab) closeNets() error {
	var errs []error
	for _, h := range l.real.nets {
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

// plugIn makes a machine real.
func (l *Lab) plugIn(m *machine) error {
	hw := l.topo.HardwareTypes[m.spec.HardwareType].Spec
	c := qemu.Config{Name: m.name, Dir: l.real.dir, Console: filepath.Join(l.real.dir, m.name+".console"), MemoryMiB: hw.MemoryMiB,
		CPUs: hw.CPUs, Firmware: qemu.Firmware(hw.Firmware[0]), UUID: m.identity.UUID, Serial: m.identity.Serial, OnLine: m.heard, KVM: l.cfg.QEMU.KVM, Logger: m.log}
	for _, n := range m.spec.NICs {
		mac, err := net.ParseMAC(string(n.MAC))
		if err != nil {
			return &fault.Error{Kind: fault.Invalid, Where: "machine " + m.name, What: "Ethernet address", Err: err}
		}
		if real := l.switches[n.Switch].real; real != nil {
			c.NICs = append(c.NICs, qemu.NIC{MAC: mac, Port: real.Port(n.Port)})
			l.real.ports[m.name] = append(l.real.ports[m.name], cable{nic: n})
			continue
		}
		p, err := l.real.sw.Add(m.name+"/"+n.Name, vswitch.Settings{})
		if err != nil {
			return err
		}
		c.NICs = append(c.NICs, qemu.NIC{MAC: mac, Port: p})
		l.real.ports[m.name] = append(l.real.ports[m.name], cable{n, p})
	}
	var err error
	m.real, err = qemu.New(c)
	return err
}

// circuitOf names the switch port by which frames from an Ethernet address come in, as a switch that relays does.
func (l *Lab) circuitOf(vlan int, mac vswitch.MAC) string {
	if c, _, ok := l.cableOf(vlan, mac); ok {
		return circuit(outlet{sw: c.nic.Switch, port: c.nic.Port})
	}
	return ""
}

// cableOf finds whose cable frames from an Ethernet address come in by. It may be that of a virtual machine.
func (l *Lab) cableOf(vlan int, mac vswitch.MAC) (cable, *machine, bool) {
	port, _ := l.real.sw.Locate(vlan, mac)
	name, nic, _ := strings.Cut(port, "/")
	for _, c := range l.real.ports[name] {
		if c.nic.Name == nic {
			return c, l.machines[name], true
		}
	}
	for name, cables := range l.real.ports { // behind a switch of another make
		for _, c := range cables {
			if hw, err := net.ParseMAC(string(c.nic.MAC)); err == nil && vswitch.MAC(hw) == mac {
				return c, l.machines[name], true
			}
		}
	}
	return cable{}, nil, false
}

// followWires lets the real ports carry what the simulated switches are set to and live uplinks lead to.
func (l *Lab) followWires() {
	if l.real == nil {
		return
	}
	l.real.mu.Lock()
	defer l.real.mu.Unlock()
	for name, cables := range l.real.ports {
		for _, c := range cables {
			if c.port == nil {
				continue // a real switch knows itself
			}
			want := l.carried(name, c.nic)
			if have := c.port.Settings(); have.Access == want.Access && slices.Equal(have.Tagged, want.Tagged) {
				continue
			}
			if err := c.port.Set(want); err != nil {
				l.log.Error("real port not set", "port", c.port.Name(), "err", err)
			}
		}
	}
}

// carried are the VLANs whose frames pass a machine's port now.
func (l *Lab) carried(name string, nic topology.NIC) vswitch.Settings {
	var s vswitch.Settings
	if _, _, vlan, ok := l.world.Untagged(name, nic.Name); ok {
		s.Access = vlan
	}
	state, _ := l.world.PortState(nic.Switch, nic.Port)
	for vlan := range l.real.nets {
		if vlan != s.Access && (state.Trunk || slices.Contains(state.Tagged, vlan)) && !state.Shut && l.world.Reach(name, vlan) {
			s.Tagged = append(s.Tagged, vlan)
		}
	}
	slices.Sort(s.Tagged)
	return s
}
