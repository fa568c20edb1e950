package lab

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/test/world"
)

// box is one life of a computer: a machine, or a VM on one, from its power-on to its power-off.
type box struct {
	lab      *Lab
	machine  *machine
	vm       string // empty: the machine itself
	life     world.Life
	arch     topology.Arch
	uuid     [16]byte
	firmware pxe.Arch
	nics     []bootNIC
	disks    []disk // that the host attached; a machine finds its own
	log      *slog.Logger

	vlan int // on which it booted; 0: it did not boot from the network
}

// bootNIC is one NIC to boot from, and where its frames come out now.
type bootNIC struct {
	mac string
	at  func() (outlet, bool) // false: no frame gets through
}

// outlet is a switch port, with the VLAN on which a NIC's frames travel there.
type outlet struct {
	sw, port string
	vlan     int
}

// newBox is the machine itself.
func (m *machine) newBox(life world.Life) *box {
	b := &box{lab: m.lab, machine: m, life: life, log: m.log, uuid: parseUUID(m.identity.UUID),
		arch: m.lab.topo.HardwareTypes[m.spec.HardwareType].Spec.Arch}
	for _, n := range m.spec.NICs {
		b.nics = append(b.nics, bootNIC{mac: string(n.MAC), at: func() (outlet, bool) {
			sw, port, vlan, ok := m.lab.world.Untagged(m.name, n.Name)
			return outlet{sw, port, vlan}, ok
		}})
	}
	return b
}

// enter notes what the machine does now, for people.
func (b *box) enter(phase string) {
	if b.vm == "" {
		b.machine.setPhase(b.life, phase)
	}
	b.log.Debug("enters", "phase", phase)
}

// reaches reports whether the box's frames on its own VLAN pass.
func (b *box) reaches() bool {
	if life, on := b.lab.world.Life(b.machine.name); !on || life != b.life {
		return false
	}
	if b.vm == "" {
		return b.lab.world.Reach(b.machine.name, b.vlan)
	}
	return b.lab.world.RunReach(world.Run{Machine: b.machine.name, VM: b.vm}, b.vlan)
}

// dial connects over the box's own network: nothing passes when the world says so.
func (b *box) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: b.ownAddress()}}
	if q := b.lab.cfg.QEMU; q != nil && address == net.JoinHostPort(BootAddress.String(), "80") {
		address = q.HTTP.String() // the name that the boot server has for real machines
	}
	return gatedDial(ctx, d, network, address, b.reaches)
}

// dialStorage connects to an array from the machine's own storage address.
func (b *box) dialStorage(ctx context.Context, portal netip.AddrPort) (net.Conn, error) {
	from := b.machine.spec.StorageAddress
	if !from.IsValid() {
		return nil, &fault.Error{Kind: fault.Unsupported, Where: "machine " + b.machine.name, What: "reach " + portal.String(),
			Evidence: "it has no storage address"}
	}
	d := &net.Dialer{}
	if from.IsLoopback() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	return gatedDial(ctx, d, "tcp", portal.String(), func() bool { return b.lab.world.Connected(b.machine.name) })
}

func gatedDial(ctx context.Context, d *net.Dialer, network, address string, pass func() bool) (net.Conn, error) {
	if !pass() {
		return nil, cut(address)
	}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &gatedConn{Conn: c, pass: pass}, nil
}

// gatedConn is a connection through the simulated network.
type gatedConn struct {
	net.Conn
	pass func() bool
}

// Read implements net.Conn.
func (g *gatedConn) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b)
	if err == nil && !g.pass() {
		return 0, cut(g.RemoteAddr().String())
	}
	return n, err
}

// Write implements net.Conn.
func (g *gatedConn) Write(b []byte) (int, error) {
	if !g.pass() {
		return 0, cut(g.RemoteAddr().String())
	}
	return g.Conn.Write(b)
}

func cut(where string) error {
	return &fault.Error{Kind: fault.Unreachable, Where: where, What: "send", Evidence: "no live path through the switches"}
}
