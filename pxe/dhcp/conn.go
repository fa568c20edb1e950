package dhcp

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// conn reads and writes with netip addresses, which for a UDP socket of the kernel saves two
// allocations a message.
type conn interface {
	read(b []byte) (int, netip.AddrPort, error)
	write(b []byte, to netip.AddrPort) error
}

func wrap(c net.PacketConn) conn {
	if u, ok := c.(*net.UDPConn); ok {
		return udpConn{u}
	}
	return packetConn{c}
}

type udpConn struct{ c *net.UDPConn }

func (u udpConn) read(b []byte) (int, netip.AddrPort, error) {
	n, from, err := u.c.ReadFromUDPAddrPort(b)
	return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

func (u udpConn) write(b []byte, to netip.AddrPort) error {
	_, err := u.c.WriteToUDPAddrPort(b, to)
	return err
}

type packetConn struct{ c net.PacketConn }

func (p packetConn) read(b []byte) (int, netip.AddrPort, error) {
	n, from, err := p.c.ReadFrom(b)
	if u, ok := from.(*net.UDPAddr); ok {
		a := u.AddrPort()
		return n, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), err
	}
	return n, netip.AddrPort{}, err
}

func (p packetConn) write(b []byte, to netip.AddrPort) error {
	_, err := p.c.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return err
}

// transient errors of a UDP socket tell of an earlier datagram (an ICMP error), not of the socket.
func transient(err error) bool {
	var ne net.Error
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EINTR) || (errors.As(err, &ne) && ne.Timeout())
}
