//go:build !linux

package tftp

import (
	"net"
	"net/netip"
)

type lockstep struct{ out []byte }

func newLockstep(*net.UDPConn, netip.AddrPort) *lockstep { return nil }

func (l *lockstep) read([]byte) (int, netip.AddrPort, error) {
	return 0, netip.AddrPort{}, net.ErrClosed
}
