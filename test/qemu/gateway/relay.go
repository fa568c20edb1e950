package gateway

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"rerack.dev/rerack/pxe/dhcp"
)

// Layout of a BOOTP message (RFC 951 section 3, RFC 2131 section 2).
const (
	hopsAt    = 3
	giaddrAt  = 24
	optionsAt = 240
	macAt     = 28
	ciaddrAt  = 12
	// maxHops is where a relay stops passing a message on (RFC 1542 section 4.1.1).
	maxHops    = 16
	maxCircuit = 64
)

// requests passes what machines ask to the server, as RFC 1542 section 4.1.1 wants it of a relay agent.
func (g *Gateway) requests() {
	b := make([]byte, dhcp.MaxMessage+1)
	for {
		n, _, err := g.client.ReadFrom(b)
		if err != nil {
			if g.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		out, ok := g.outward(b[:n])
		if !ok {
			continue
		}
		if _, err := g.relayed.WriteTo(out, net.UDPAddrFromAddrPort(g.cfg.Servers().DHCP)); err != nil {
			g.cfg.Logger.Debug("DHCP not relayed", "err", err)
		}
	}
}

// outward is a request as the relay passes it on: with its own address, and with option 82, which says
// on which link and port it came. A request that has been relayed already is not.
func (g *Gateway) outward(in []byte) ([]byte, bool) {
	end := optionsEnd(in)
	if end < 0 || in[0] != dhcp.BootRequest || in[hopsAt] >= maxHops || [4]byte(in[giaddrAt:]) != [4]byte{} {
		return nil, false
	}
	out := slices.Clone(in[:end])
	out[hopsAt]++
	giaddr := g.cfg.Relay.As4()
	copy(out[giaddrAt:], giaddr[:])
	var info []byte
	if c := g.cfg.Circuit([6]byte(in[macAt:])); c != "" {
		info = dhcp.AppendString(info, dhcp.RelayCircuitID, c[:min(len(c), maxCircuit)])
	}
	info = dhcp.AppendAddr(info, dhcp.RelayLink, g.cfg.Link)
	info = dhcp.AppendOption(info, dhcp.RelaySourcePort) // answer at our port, which is not 67
	return dhcp.Finish(dhcp.AppendOption(out, dhcp.OptRelay, info...)), true
}

// replies passes what the server answers to the machines: at their address when they have one, else to
// all (RFC 1542 section 4.1.2 leaves that to a relay that cannot reach a machine otherwise).
func (g *Gateway) replies() {
	b := make([]byte, dhcp.MaxMessage+1)
	for {
		n, _, err := g.relayed.ReadFrom(b)
		if err != nil {
			if g.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error of an earlier datagram: the server is away
		}
		out, to, ok := g.inward(b[:n])
		if !ok {
			continue
		}
		if _, err := g.client.WriteTo(out, net.UDPAddrFromAddrPort(to)); err != nil {
			g.cfg.Logger.Debug("DHCP answer not relayed", "to", to, "err", err)
		}
	}
}

// inward is an answer as a machine gets it: without option 82 (RFC 3046 section 2.1).
func (g *Gateway) inward(in []byte) ([]byte, netip.AddrPort, bool) {
	end := optionsEnd(in)
	if end < 0 || in[0] != dhcp.BootReply || [4]byte(in[giaddrAt:]) != g.cfg.Relay.As4() {
		return nil, netip.AddrPort{}, false
	}
	out := slices.Clone(in[:optionsAt])
	copy(out[giaddrAt:], make([]byte, 4))
	for at := optionsAt; at < end; {
		next := at + optionLen(in[at:end])
		if in[at] != dhcp.OptRelay {
			out = append(out, in[at:next]...)
		}
		at = next
	}
	to := netip.AddrFrom4([4]byte(in[ciaddrAt:]))
	if to.IsUnspecified() {
		to = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return dhcp.Finish(out), netip.AddrPortFrom(to, dhcpClientPort), true
}

// optionsEnd returns where the options end, without the end mark; -1 for what is no DHCP message.
func optionsEnd(b []byte) int {
	if len(b) < optionsAt || len(b) > dhcp.MaxMessage || [4]byte(b[optionsAt-4:]) != [4]byte{99, 130, 83, 99} {
		return -1
	}
	at := optionsAt
	for at < len(b) && b[at] != dhcp.OptEnd {
		n := optionLen(b[at:])
		if n == 0 {
			return -1
		}
		at += n
	}
	return at
}

// optionLen is the length of the first option with its head; 0 when it does not fit.
func optionLen(b []byte) int {
	switch {
	case b[0] == dhcp.OptPad:
		return 1
	case len(b) < 2 || len(b) < 2+int(b[1]):
		return 0
	}
	return 2 + int(b[1])
}
