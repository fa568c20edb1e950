package dhcp

import (
	"encoding/binary"
	"net/netip"
	"time"

	"rerack.dev/rerack/pxe"
)

// write builds the answer of the given kind into out.
func (s *Server) write(p *Packet, d pxe.Decision, c pxe.Class, kind MessageType, l *link, out []byte) []byte {
	h := Header{Op: BootReply, XID: p.XID, Flags: p.Flags, GIAddr: p.GIAddr, MAC: p.MAC}
	if kind == Nak {
		// RFC 2131 section 4.3.2: the client may have a wrong address, so a relay must broadcast.
		if !p.GIAddr.IsUnspecified() {
			h.Flags |= FlagBroadcast
		}
		b := AppendHeader(out, &h)
		b = AppendOption(b, OptMessageType, byte(Nak))
		b = AppendAddr(b, OptServerID, l.ServerID)
		return Finish(echo(b, p, OptClientID, OptRelay))
	}
	gives := s.cfg.Mode == Full
	if gives && p.Type() != Inform {
		h.YIAddr = d.NIC.Address.Addr()
	}
	if p.Type() == Request || p.Type() == Inform {
		h.CIAddr = p.CIAddr
	}
	next := or(s.cfg.NextServer, l.ServerID)
	if d.Answer == pxe.Serve {
		h.SIAddr = next
		if len(d.BootFile) < fileLen {
			h.File = d.BootFile
		}
	}
	b := AppendHeader(out, &h)
	b = AppendOption(b, OptMessageType, byte(kind))
	b = AppendAddr(b, OptServerID, l.ServerID)
	if gives {
		b = s.addresses(b, p, d)
	}
	if d.Answer == pxe.Serve {
		b = bootOptions(b, p, d, c, s.cfg.Mode, next)
	}
	room := s.room(p) - len(p.Option(OptRelay)) - 2 - len(p.Option(OptClientID)) - 2 - 1
	if ph := d.PhoneHome; ph != "" && (c == pxe.ClassIPXE || p.asks(OptPhoneHome)) && len(b)+2+len(ph) <= room {
		b = AppendString(b, OptPhoneHome, ph)
	}
	if host := d.Entry.Intent.Hostname; gives && host != "" && len(b)+2+len(host) <= room {
		b = AppendString(b, OptHostName, host)
	}
	return Finish(echo(b, p, OptClientID, OptRelay)) // RFC 6842; RFC 3046 wants option 82 last
}

// room is the size of the largest message the client takes (RFC 2132 section 9.10).
func (s *Server) room(p *Packet) int {
	size := minMTU
	if v := p.Option(OptMaxSize); len(v) == 2 {
		size = max(size, int(binary.BigEndian.Uint16(v)))
	}
	return min(size-ipUDP, MaxMessage)
}

func (s *Server) addresses(b []byte, p *Packet, d pxe.Decision) []byte {
	n := &d.NIC
	if p.Type() != Inform {
		b = AppendUint32(b, OptLease, uint32(min(or(n.Lease, s.cfg.Lease)/time.Second, 1<<31)))
	}
	b = AppendUint32(b, OptSubnetMask, ^uint32(0)<<(32-n.Address.Bits()))
	if n.Gateway.IsValid() {
		b = AppendAddr(b, OptRouter, n.Gateway)
	}
	if len(n.DNS) > 0 {
		b = append(b, OptDNS, byte(4*len(n.DNS)))
		for _, a := range n.DNS {
			v := a.As4()
			b = append(b, v[:]...)
		}
	}
	if n.MTU >= 68 {
		b = AppendOption(b, OptMTU, byte(n.MTU>>8), byte(n.MTU))
	}
	return b
}

func bootOptions(b []byte, p *Packet, d pxe.Decision, c pxe.Class, m Mode, next netip.Addr) []byte {
	switch {
	case c == pxe.ClassHTTP:
		b = AppendString(b, OptClass, "HTTPClient") // firmware takes no answer without it
	case m == Proxy:
		b = AppendString(b, OptClass, "PXEClient")
		// PXE 2.1 section 2.2.4, PXE_DISCOVERY_CONTROL bit 3: take the boot file named here, do not
		// look for a boot server.
		b = AppendOption(b, OptVendor, 6, 1, 8, OptEnd)
	}
	if c != pxe.ClassIPXE && len(p.Option(OptUUID)) == 17 { // RFC 4578 section 2.3
		b = echo(b, p, OptUUID)
	}
	if c == pxe.ClassPXE && p.asks(OptTFTPServer) {
		var buf [15]byte
		b = AppendOption(b, OptTFTPServer, next.AppendTo(buf[:0])...)
	}
	if c == pxe.ClassHTTP || len(d.BootFile) >= fileLen || p.asks(OptBootFile) {
		b = AppendString(b, OptBootFile, d.BootFile)
	}
	if c == pxe.ClassIPXE {
		// Encapsulated option 176, no-pxedhcp: iPXE need not wait for a proxyDHCP server.
		b = AppendOption(b, OptIPXE, 0xb0, 1, 1)
	}
	return b
}

// echo copies options of the request.
func echo(b []byte, p *Packet, codes ...byte) []byte {
	for _, c := range codes {
		if v := p.Option(c); len(v) > 0 {
			b = AppendOption(b, c, v...)
		}
	}
	return b
}
