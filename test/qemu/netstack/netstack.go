// Package netstack is a host in user space on one VLAN of a vswitch: it gives net.Listener,
// net.PacketConn and net.Conn on the switch's network, so that servers written for the kernel's sockets
// serve machines there unchanged and without privilege.
package netstack

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// Config of a Host. Port, MAC and Addresses are required.
type Config struct {
	Port *vswitch.Port // plugged in until Close; its access VLAN is the host's
	MAC  vswitch.MAC
	// Addresses are the host's IPv4 addresses with the prefix of the link. One of /32 is reached
	// through another: from elsewhere, by those who take this host for their router.
	Addresses []netip.Prefix
	Gateway   netip.Addr // optional: the router to all other networks
	MTU       uint32     // default 1500
	Logger    *slog.Logger
}

// Validate names the first key that is wrong and fills in the defaults.
func (c *Config) Validate() error {
	switch {
	case c.Port == nil:
		return fault.New(fault.Invalid, "netstack: Port is missing")
	case c.MAC == vswitch.MAC{} || c.MAC[0]&1 != 0:
		return fault.New(fault.Invalid, "netstack: MAC is not the address of one host")
	case len(c.Addresses) == 0:
		return fault.New(fault.Invalid, "netstack: Addresses is empty")
	case c.Gateway.IsValid() && !c.Gateway.Is4():
		return fault.New(fault.Invalid, "netstack: Gateway is not an IPv4 address")
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 9216):
		return fault.New(fault.Invalid, "netstack: MTU is not within 576 and 9216")
	}
	for _, a := range c.Addresses {
		if !a.IsValid() || !a.Addr().Is4() {
			return fault.Newf(fault.Invalid, "netstack: Addresses: %s is not an IPv4 address with a prefix length", a)
		}
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

const (
	nicID  = 1
	queued = 1024 // frames on their way out
	// backlog of a listener: a whole rack may ask at once.
	backlog = 256
)

// Host is one host. It is safe for concurrent use.
type Host struct {
	cfg   Config
	stack *stack.Stack
	link  *channel.Endpoint
	wire  *vswitch.Wire
	stop  context.CancelFunc
	wg    sync.WaitGroup
	once  sync.Once
}

// New plugs a host into its port. It serves nothing until it is told to listen.
func New(c Config) (*Host, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	h := &Host{cfg: c, link: channel.New(queued, c.MTU+header, tcpip.LinkAddress(c.MAC[:])),
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
		})}
	if err := h.configure(); err != nil {
		h.stack.Destroy()
		return nil, err
	}
	var err error
	if h.wire, err = c.Port.Connect(); err != nil {
		h.stack.Destroy()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	h.wg.Go(func() { h.receive() })
	h.wg.Go(func() { h.transmit(ctx) })
	return h, nil
}

// header is the length of an Ethernet header without a tag, in bytes.
const header = 14

func (h *Host) configure() error {
	if e := h.stack.CreateNIC(nicID, ethernet.New(h.link)); e != nil {
		return failed(e, "make a network interface", h.cfg.Port.Name())
	}
	var routes []tcpip.Route
	for _, a := range h.cfg.Addresses {
		p := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4(a.Addr().As4()), PrefixLen: a.Bits()}}
		if e := h.stack.AddProtocolAddress(nicID, p, stack.AddressProperties{}); e != nil {
			return failed(e, "take address "+a.String(), h.cfg.Port.Name())
		}
		routes = append(routes, tcpip.Route{Destination: p.AddressWithPrefix.Subnet(), NIC: nicID})
	}
	// The limited broadcast address lies in no subnet, and is where clients without an address are met.
	all := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4([4]byte{255, 255, 255, 255}), PrefixLen: 32}
	routes = append(routes, tcpip.Route{Destination: all.Subnet(), NIC: nicID})
	if g := h.cfg.Gateway; g.IsValid() {
		other := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4([4]byte{})}
		routes = append(routes, tcpip.Route{Destination: other.Subnet(), Gateway: tcpip.AddrFrom4(g.As4()), NIC: nicID})
	}
	h.stack.SetRouteTable(routes)
	return nil
}

// receive passes what comes from the switch to the stack until the wire is pulled.
func (h *Host) receive() {
	for f := range h.wire.Frames() {
		if reply := advertise(f, h.cfg.MAC); reply != nil {
			h.wire.Send(reply)
			continue
		}
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
		h.link.InjectInbound(0, p)
		p.DecRef()
	}
}

func (h *Host) transmit(ctx context.Context) {
	for {
		p := h.link.ReadContext(ctx)
		if p == nil {
			return
		}
		v := p.ToView()
		p.DecRef()
		h.wire.Send(v.AsSlice())
		v.Release()
	}
}

// Close takes the host off the network and ends its connections. It may be called again.
func (h *Host) Close() error {
	h.once.Do(func() {
		h.stack.Destroy() // while frames still leave, so that peers hear of the end
		h.stop()
		h.wire.Close()
		h.wg.Wait()
	})
	return nil
}

// Listen listens on TCP; the unspecified address is every one of the host's.
func (h *Host) Listen(at netip.AddrPort) (net.Listener, error) {
	var wq waiter.Queue
	ep, e := h.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if e != nil {
		return nil, failed(e, "listen on TCP", at.String())
	}
	ep.SocketOptions().SetReuseAddress(true)
	if e := ep.Bind(full(at)); e != nil {
		ep.Close()
		return nil, failed(e, "listen on TCP", at.String())
	}
	if e := ep.Listen(backlog); e != nil {
		ep.Close()
		return nil, failed(e, "listen on TCP", at.String())
	}
	l := gonet.NewTCPListener(h.stack, &wq, ep)
	return &listener{TCPListener: l, local: l.Addr()}, nil
}

// ListenPacket opens a UDP socket; the unspecified address is every one of the host's and broadcasts,
// port 0 a free one. It may send broadcasts.
func (h *Host) ListenPacket(at netip.AddrPort) (net.PacketConn, error) {
	var wq waiter.Queue
	ep, e := h.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if e != nil {
		return nil, failed(e, "open UDP socket", at.String())
	}
	ep.SocketOptions().SetBroadcast(true)
	if e := ep.Bind(full(at)); e != nil {
		ep.Close()
		return nil, failed(e, "open UDP socket", at.String())
	}
	c := gonet.NewUDPConn(&wq, ep)
	return &packetConn{UDPConn: c, local: c.LocalAddr()}, nil
}

// ListenPacketName is ListenPacket in the form of net.ListenPacket, for servers that open sockets by
// themselves.
func (h *Host) ListenPacketName(network, address string) (net.PacketConn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || network != "udp" && network != "udp4" {
		return nil, &fault.Error{Kind: fault.Invalid, Where: network + " " + address, What: "open UDP socket", Err: err}
	}
	at := netip.IPv4Unspecified()
	if host != "" {
		if at, err = netip.ParseAddr(host); err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Where: address, What: "open UDP socket", Err: err}
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Where: address, What: "open UDP socket", Err: err}
	}
	return h.ListenPacket(netip.AddrPortFrom(at.Unmap(), uint16(n)))
}

// Dial connects by TCP to an address on the host's links.
func (h *Host) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := gonet.DialContextTCP(ctx, h.stack, full(to), ipv4.ProtocolNumber)
	if err != nil {
		kind := fault.Unreachable
		if ctx.Err() != nil {
			kind = fault.Timeout
		}
		return nil, &fault.Error{Kind: kind, Where: to.String(), What: "connect", Err: err}
	}
	return newConn(c), nil
}

// EthernetOf returns the Ethernet address behind an address on the link, as far as ARP knows it: of everyone
// who ever sent us something, and who did not move since.
func (h *Host) EthernetOf(addr netip.Addr) (mac vswitch.MAC, ok bool) {
	known, e := h.stack.Neighbors(nicID, ipv4.ProtocolNumber)
	if e != nil || !addr.Unmap().Is4() {
		return mac, false
	}
	want := tcpip.AddrFrom4(addr.Unmap().As4())
	for _, n := range known {
		if n.Addr == want && len(n.LinkAddr) == len(mac) {
			copy(mac[:], n.LinkAddr)
			return mac, true
		}
	}
	return mac, false
}

func full(a netip.AddrPort) tcpip.FullAddress {
	f := tcpip.FullAddress{NIC: nicID, Port: a.Port()}
	if ip := a.Addr().Unmap(); ip.Is4() && !ip.IsUnspecified() {
		f.Addr = tcpip.AddrFrom4(ip.As4())
	}
	return f
}

// failed makes an error of the stack's.
func failed(e tcpip.Error, what, where string) error {
	kind := fault.Internal
	if _, taken := e.(*tcpip.ErrPortInUse); taken {
		kind = fault.Busy
	}
	return &fault.Error{Kind: kind, Where: where, What: what, Evidence: fmt.Sprint(e)}
}
