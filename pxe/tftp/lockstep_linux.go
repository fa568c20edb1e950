package tftp

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// lockstep sends a block and waits for its ACK in one go, for a window of 1, where every block waits for an
// answer. The read that a socket begins with would find nothing, and on a busy machine the time until the
// goroutine is back is what limits a transfer.
type lockstep struct {
	raw syscall.RawConn
	to  syscall.SockaddrInet4
	out []byte // goes with the next read
}

// newLockstep returns nil where it cannot be had.
func newLockstep(c *net.UDPConn, to netip.AddrPort) *lockstep {
	raw, err := c.SyscallConn()
	if err != nil || !to.Addr().Is4() {
		return nil
	}
	return &lockstep{raw: raw, to: syscall.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}}
}

// read sends what is in out and returns the next datagram. To wait without a look first misses nothing: the
// answer to what was sent comes after that, and wakes the reader. What lies there from before is read then.
func (l *lockstep) read(in []byte) (n int, from netip.AddrPort, err error) {
	var sa syscall.Sockaddr
	werr := l.raw.Read(func(fd uintptr) bool {
		if out := l.out; out != nil {
			l.out = nil
			err = syscall.Sendto(int(fd), out, 0, &l.to)
			if err == nil || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ENOBUFS) {
				return false // a block that did not go out is a lost one: it is repeated
			}
			return true
		}
		n, sa, err = syscall.Recvfrom(int(fd), in, 0)
		return !errors.Is(err, syscall.EAGAIN)
	})
	if werr != nil {
		return 0, from, werr
	}
	if a, ok := sa.(*syscall.SockaddrInet4); ok {
		from = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	}
	return n, from, err
}
