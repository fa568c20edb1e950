package lab

import (
	"context"
	"encoding/hex"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/test/world"
)

// Pauses of the firmware. A real one waits 1, 2, 4 and 8 s for DHCP; the lab's has no spanning tree and
// no slow switch to wait for.
const (
	dhcpTimeout = 100 * time.Millisecond
	bootRetry   = 500 * time.Millisecond
	lookForLink = 20 * time.Millisecond
	// bootRounds is how often a machine with a disk tries the network before it goes on to that.
	bootRounds = 3
)

// netBoot boots from the first NIC that gets anywhere, as often as it takes. A machine that has a disk
// goes on to that after some rounds without success, as boot orders do.
func (b *box) netBoot(ctx context.Context) {
	again := &backoff{lookForLink, bootRetry}
	for round := 1; ; round++ {
		for _, nic := range b.nics {
			at, ok := nic.at()
			if !ok {
				continue // no frame gets through: nothing is sent
			}
			b.vlan = at.vlan
			out, err := b.bootOnce(ctx, nic, at)
			if err != nil {
				if ctx.Err() != nil {
					return
				}
				b.log.Error("cannot boot", "err", err)
				continue
			}
			if b.started(ctx, out) {
				return
			}
			b.log.Debug("network boot found nothing", "reason", out.Reason)
		}
		if round >= bootRounds && b.vm == "" && b.machine.installed() {
			b.machine.runDisk(ctx, b)
			return
		}
		b.enter("no boot device")
		if !again.wait(ctx) {
			return
		}
	}
}

// bootOnce is one try from one NIC.
func (b *box) bootOnce(ctx context.Context, nic bootNIC, at outlet) (bootclient.Outcome, error) {
	mac, err := pxe.ParseMAC(nic.mac)
	if err != nil {
		return bootclient.Outcome{}, err
	}
	link, ok := b.lab.linkAddress(b.machine.spec.Rack, at.vlan)
	if !ok {
		return bootclient.Outcome{End: bootclient.EndLocal, Reason: "no relay on this VLAN"}, nil
	}
	b.enter("dhcp")
	tftp := b.lab.tftp.Load()
	return bootclient.Run(ctx, bootclient.Config{
		MAC: mac, UUID: b.uuid, Arch: b.firmware, IPXE: tftp == nil,
		DHCPServer: *b.lab.boot.Load(), Relay: b.lab.relays[at.sw], LinkSelection: link, CircuitID: circuit(at),
		DHCPTimeout: dhcpTimeout, TFTPServer: orZero(tftp),
		ListenPacket: b.listenPacket, DialContext: b.dial,
		OnStep: func(s bootclient.Step) {
			b.log.Debug("firmware", "step", s.What, "detail", s.Detail)
			if s.What == "tftp" || s.What == "script" {
				b.enter(s.What)
			}
		},
	})
}

// started does what the firmware left for, until the power goes. It is false when that was nothing.
func (b *box) started(ctx context.Context, out bootclient.Outcome) bool {
	switch out.End {
	case bootclient.EndKernel:
		b.runSoftware(ctx, out)
	case bootclient.EndSAN, bootclient.EndLocalDisk:
		b.runFromVolume(ctx, out)
	case bootclient.EndImage:
		b.panics(ctx, "the lab has no system for an image booted alone")
	case bootclient.EndLocal:
		return false
	}
	return ctx.Err() == nil || out.End != bootclient.EndLocal
}

// runFromVolume runs the system that is installed on the workload's own boot volume. It takes the epoch
// from the volume's mask: a system on a disk has no command line that could tell it.
func (b *box) runFromVolume(ctx context.Context, out bootclient.Outcome) {
	for _, name := range b.lab.topo.Names(topology.KindWorkload) {
		for _, use := range b.lab.topo.Workloads[name].Spec.Volumes {
			v := b.lab.topo.Volumes[use.Volume].Spec
			if !use.Boot || !b.boots(v, use.Volume, out) {
				continue
			}
			mask, _ := b.lab.world.MaskOf(v.Array, world.DeviceName(v))
			p := b.lab.installed(&install{workload: name, epoch: mask.Epoch})
			p.PhoneHome = out.PhoneHome
			if out.End == bootclient.EndSAN { // the firmware hands on what it was told
				for i := range p.Volumes {
					if p.Volumes[i].Target == out.Target.Name {
						p.Volumes[i].Login = iscsi.Account{User: out.Login.User, Secret: out.Login.Secret.Reveal()}
					}
				}
			}
			b.runWorkload(ctx, p)
			return
		}
	}
	b.panics(ctx, "nothing to boot on the volume")
}

func (b *box) boots(v topology.VolumeSpec, name string, out bootclient.Outcome) bool {
	if out.End == bootclient.EndSAN {
		return out.Target != nil && string(v.Target) == out.Target.Name
	}
	return v.Protocol == topology.FC && b.lab.world.CanWrite(b.machine.name, name)
}

// linkAddress is the relay's own address on a VLAN, by which a DHCP server knows the subnet.
func (l *Lab) linkAddress(rack string, vlan int) (netip.Addr, bool) {
	subnet, ok := l.plan.subnets[siteVLAN{l.topo.Racks[rack].Spec.Site, vlan}]
	return subnet.Masked().Addr().Next(), ok && subnet.Addr().Is4()
}

// circuit names the port as the relay does (RFC 3046 section 2.0), within the client's limit.
func circuit(at outlet) string {
	s := at.sw + "/" + at.port
	return s[:min(len(s), 64)]
}

// relayAddresses gives every switch the loopback address from which it relays.
func relayAddresses(t *topology.Topology) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	base := RelayPrefix.Addr().As4()
	for i, name := range t.Names(topology.KindSwitch) {
		out[name] = netip.AddrFrom4([4]byte{base[0], base[1], byte(i / 250), byte(i%250 + 1)})
	}
	return out
}

// ownAddress is where the box's connections come from on loopback, so that limits per client hold for
// clients and not for the whole lab.
func (b *box) ownAddress() net.IP {
	h := fnv.New32a()
	_, _ = h.Write([]byte(b.machine.name + "/" + b.vm)) // never fails
	n := h.Sum32()
	return net.IPv4(127, 5, byte(n>>8), max(byte(n), 1))
}

// listenPacket binds sockets that do not care to the box's own address.
func (b *box) listenPacket(network, address string) (net.PacketConn, error) {
	if host, port, err := net.SplitHostPort(address); err == nil && (host == "" || host == "0.0.0.0") {
		address = net.JoinHostPort(b.ownAddress().String(), port)
	}
	c, err := net.ListenPacket(network, address)
	if err != nil {
		return nil, err
	}
	return &gatedPackets{c, b.reaches}, nil
}

// gatedPackets is a datagram socket on the simulated network: what does not get through is lost.
type gatedPackets struct {
	net.PacketConn
	pass func() bool
}

// WriteTo implements net.PacketConn.
func (g *gatedPackets) WriteTo(p []byte, to net.Addr) (int, error) {
	if !g.pass() {
		return len(p), nil
	}
	return g.PacketConn.WriteTo(p, to)
}

// ReadFrom implements net.PacketConn.
func (g *gatedPackets) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := g.PacketConn.ReadFrom(p)
		if err != nil || g.pass() {
			return n, from, err
		}
	}
}

// firmwareArch is what a machine's firmware says of itself in option 93.
func firmwareArch(arch topology.Arch, mode string, http bool) pxe.Arch {
	switch {
	case arch == topology.ARM64 && http:
		return pxe.ArchHTTPARM64
	case arch == topology.ARM64:
		return pxe.ArchEFIARM64
	case http:
		return pxe.ArchHTTPX64
	case mode == string(topology.BIOS):
		return pxe.ArchBIOS
	}
	return pxe.ArchEFIX64
}

func parseUUID(s string) (u [16]byte) {
	if raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", "")); err == nil && len(raw) == len(u) {
		copy(u[:], raw)
	}
	return u
}

func orZero(p *netip.AddrPort) netip.AddrPort {
	if p == nil {
		return netip.AddrPort{}
	}
	return *p
}

// systemOf says what the fetched kernel and initial RAM disks make of a machine: linux, hypervisor or capture.
// Files that the lab did not make, or damaged ones, make nothing of it.
func (l *Lab) systemOf(out bootclient.Outcome, arch topology.Arch) (string, bool) {
	if l.catalog[out.Kernel] != kernelMagic+string(arch) {
		return "", false
	}
	heads := make([]string, len(out.Initrds))
	for i, d := range out.Initrds {
		if heads[i] = l.catalog[d]; !strings.HasPrefix(heads[i], initrdMagic) {
			return "", false
		}
	}
	for _, system := range []string{systemHyper, systemCopy} {
		if slices.Contains(heads, initrdMagic+system) {
			return system, true
		}
	}
	return systemLinux, true
}
