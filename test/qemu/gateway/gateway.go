// Package gateway is what stands between a machine network in user space and servers on the kernel's
// sockets: a DHCP relay agent, and an address behind which TFTP and HTTP of a boot server are found. It
// does for machines in QEMU what a site's router does for those in racks.
package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/qemu/netstack"
)

// Config of a Gateway. All but Circuit and Logger are required.
type Config struct {
	Host *netstack.Host // has both Link and Boot for addresses
	Link netip.Addr     // the gateway's own address on the machines' network: their default route
	Boot netip.Addr     // behind which machines find the boot server
	// Servers says where the boot server truly is, at each request anew.
	Servers func() Servers
	// From are addresses of the kernel's network that connections come from, so that a server can tell
	// machines apart: those of loopback in this prefix, the last two bytes as in the machine's own.
	From netip.Prefix
	// Relay is the address on the kernel's network that DHCP is relayed from.
	Relay netip.Addr
	// Circuit names the port that a machine with this Ethernet address is on (RFC 3046 section 3.1).
	Circuit func(mac [6]byte) string
	Logger  *slog.Logger
}

// Servers are the addresses of a boot server.
type Servers struct{ DHCP, TFTP, HTTP netip.AddrPort }

// Ports that machines know the servers by.
const (
	dhcpPort       = 67
	dhcpClientPort = 68
	tftpPort       = 69
	httpPort       = 80
)

// Validate names the first key that is wrong and fills in the defaults.
func (c *Config) Validate() error {
	switch {
	case c.Host == nil:
		return fault.New(fault.Invalid, "gateway: Host is missing")
	case !c.Link.Is4() || !c.Boot.Is4() || !c.Relay.Is4():
		return fault.New(fault.Invalid, "gateway: Link, Boot and Relay are IPv4 addresses")
	case c.Servers == nil:
		return fault.New(fault.Invalid, "gateway: Servers is missing")
	case !c.From.Addr().Is4() || !c.From.Addr().IsLoopback() || c.From.Bits() > 16:
		return fault.New(fault.Invalid, "gateway: From is not a /16 or larger of 127.0.0.0/8")
	}
	if c.Circuit == nil {
		c.Circuit = func([6]byte) string { return "" }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Gateway serves one network until it is closed.
type Gateway struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	relayed, client net.PacketConn // DHCP: on the kernel's network, on the machines'
	tftp            net.PacketConn
	web             net.Listener
	flows           flows
}

// Open starts a gateway.
func Open(c Config) (_ *Gateway, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	g := &Gateway{cfg: c, flows: flows{open: map[flow]bool{}}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	any4 := netip.IPv4Unspecified()
	if g.client, err = c.Host.ListenPacket(netip.AddrPortFrom(any4, dhcpPort)); err != nil {
		return nil, err
	}
	if g.relayed, err = net.ListenPacket("udp4", netip.AddrPortFrom(c.Relay, 0).String()); err != nil {
		return nil, fault.Wrap(err, "open relay socket", c.Relay.String())
	}
	if g.tftp, err = c.Host.ListenPacket(netip.AddrPortFrom(c.Boot, tftpPort)); err != nil {
		return nil, err
	}
	if g.web, err = c.Host.Listen(netip.AddrPortFrom(c.Boot, httpPort)); err != nil {
		return nil, err
	}
	g.wg.Go(g.requests)
	g.wg.Go(g.replies)
	g.wg.Go(g.forwardTFTP)
	g.wg.Go(g.forwardHTTP)
	return g, nil
}

// Close ends everything, connections included, and waits for it. It may be called again.
func (g *Gateway) Close() error {
	g.cancel()
	for _, c := range []io.Closer{g.client, g.relayed, g.tftp, g.web} {
		if c != nil {
			_ = c.Close() // it is what ends the readers
		}
	}
	g.wg.Wait()
	return nil
}

// source is the address on the kernel's network that stands for a machine.
func (g *Gateway) source(machine net.Addr) net.IP {
	a := g.cfg.From.Addr().As4()
	if ip, ok := addrOf(machine); ok {
		b := ip.As4()
		a[2], a[3] = b[2], max(b[3], 1)
	}
	return net.IP(a[:])
}

func addrOf(a net.Addr) (netip.Addr, bool) {
	p, err := netip.ParseAddrPort(a.String())
	return p.Addr().Unmap(), err == nil && p.Addr().Unmap().Is4()
}

// dialTimeout bounds a connection to the boot server.
const dialTimeout = 10 * time.Second

func (g *Gateway) forwardHTTP() {
	ServeTCP(g.ctx, g.web, func(ctx context.Context, from net.Addr) (net.Conn, error) {
		d := net.Dialer{Timeout: dialTimeout, LocalAddr: &net.TCPAddr{IP: g.source(from)}}
		return d.DialContext(ctx, "tcp4", g.cfg.Servers().HTTP.String())
	}, g.cfg.Logger)
}

// ServeTCP connects everyone who comes to l with what dial returns for him, until l is closed. It waits
// for the connections to end, which they do when ctx does.
func ServeTCP(ctx context.Context, l net.Listener, dial func(ctx context.Context, from net.Addr) (net.Conn, error), log *slog.Logger) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer c.Close()
			up, err := dial(ctx, c.RemoteAddr())
			if err != nil {
				log.Warn("connection not forwarded", "from", c.RemoteAddr().String(), "to", c.LocalAddr().String(), "err", err)
				return
			}
			Splice(ctx, c, up)
		})
	}
}

// Splice copies between two connections until either is at its end in both directions, or ctx ends. It
// closes both.
func Splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { _, _ = a.Close(), b.Close() })
	defer stop()
	var wg sync.WaitGroup
	one := func(to, from net.Conn) {
		if _, err := io.Copy(to, from); err != nil {
			_, _ = a.Close(), b.Close() // broken: the other direction is of no use
			return
		}
		if h, ok := to.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}
	wg.Go(func() { one(a, b) })
	wg.Go(func() { one(b, a) })
	wg.Wait()
	_, _ = a.Close(), b.Close()
}
