package dhcp

import (
	"context"
	"net"
	"syscall"

	"rerack.dev/rerack/internal/fault"
)

// Listen opens a UDP socket on one interface only: what comes in elsewhere is not seen, and broadcasts
// go out there. port is 67, or 4011 for proxyDHCP. It needs CAP_NET_BIND_SERVICE and CAP_NET_RAW.
func Listen(ctx context.Context, ifname string, port string) (net.PacketConn, error) {
	if ifname == "" {
		return nil, fault.New(fault.Invalid, "DHCP needs the name of an interface")
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cerr := raw.Control(func(fd uintptr) {
			if err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err == nil {
				err = syscall.BindToDevice(int(fd), ifname)
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := lc.ListenPacket(ctx, "udp4", ":"+port)
	return c, fault.Wrap(err, "listen for DHCP", "interface "+ifname)
}
