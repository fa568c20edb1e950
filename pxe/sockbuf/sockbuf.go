// Package sockbuf gives UDP sockets room for a storm: when a rack gets its power back, all of its machines ask at
// the same moment, and what does not fit into the socket's buffer until the process runs is lost without a trace.
// Their firmware then asks again in step, 1, 2 and 4 s later, and loses again.
package sockbuf

import (
	"net"
	"syscall"
)

// Storm is the room for some 5,000 machines that ask at once. Linux counts the memory that a datagram takes, of
// which its content is the smaller part: the default of 208 KiB holds 166 DHCP messages.
const Storm = 4 << 20

// Grow asks for a receive buffer of so many bytes, and settles for what the system grants (on Linux
// net.core.rmem_max, or all of it with CAP_NET_ADMIN). A connection without such a buffer is left alone.
func Grow(c net.PacketConn, bytes int) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	// Less room than asked for is no failure: clients repeat what was lost.
	_ = raw.Control(func(fd uintptr) {
		if force(fd, bytes) != nil {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, bytes)
		}
	})
}
