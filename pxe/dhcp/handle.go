package dhcp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"rerack.dev/rerack/pxe"
)

const (
	serverPort = 67
	clientPort = 68
	maxEcho    = 255 // longest option that is sent back as it came
)

// handle decides on one parsed message and writes the answer into out; nil is silence.
func (s *Server) handle(p *Packet, src netip.AddrPort, l *link, out []byte) ([]byte, netip.AddrPort) {
	none := netip.AddrPort{}
	if p.Op == BootReply {
		s.watch(p, l)
		return nil, none
	}
	if len(p.Option(OptRelay)) > maxEcho || len(p.Option(OptClientID)) > maxEcho {
		s.stats.malformed.Add(1)
		return nil, none
	}
	on, ok := admit(p, src, l)
	if !ok {
		s.stats.relay.Add(1)
		return nil, none
	}
	req := pxe.Request{MAC: p.MAC, Class: p.Class(), Arch: p.Arch(), Link: on, Subnets: l.Subnets}
	d := s.cfg.Decider.Decide(req)
	if s.explain(p, req, d, src) {
		return nil, none
	}
	if d.Reason == pxe.ReasonConsumed && s.cfg.Reporter != nil && p.Type() == Discover {
		s.cfg.Reporter.Note(d.Entry, pxe.KindReboot, src.Addr(), describe(p, req))
	}
	if d.Answer == pxe.Silent {
		return nil, none
	}
	var kind MessageType
	if s.cfg.Mode == Proxy {
		kind = proxyAnswer(p, d, req.Class, l)
	} else {
		kind = s.fullAnswer(p, d, l)
	}
	if kind == 0 {
		return nil, none
	}
	if kind == Ack && d.Answer == pxe.Serve && s.cfg.Reporter != nil {
		detail := describe(p, req)
		s.cfg.Reporter.Note(d.Entry, pxe.KindDHCP, src.Addr(), detail)
		if req.Class == pxe.ClassIPXE {
			s.cfg.Reporter.Note(d.Entry, pxe.KindBootFile, src.Addr(), "iPXE runs: "+detail)
		}
	}
	return s.write(p, d, req.Class, kind, l, out), destination(p, src, kind)
}

// explain reports what keeps a machine that a plan is booting from it. It is true when the message is from
// another machine with the same Ethernet address, which gets no answer.
func (s *Server) explain(p *Packet, req pxe.Request, d pxe.Decision, src netip.AddrPort) (twin bool) {
	if d.Entry == nil || d.Entry.Intent.Boot == nil || s.cfg.Reporter == nil {
		return false
	}
	tell := func(t pxe.Topic, why string) { s.cfg.Reporter.Explain(d.Entry, t, src.Addr(), why) }
	switch d.Reason {
	case pxe.ReasonOffLink:
		tell(pxe.TopicLink, fmt.Sprintf("%s came from network %s, where its address %s is not", describe(p, req), from(req), d.NIC.Address))
		return false // and gets no answer from here anyway
	case pxe.ReasonExpired:
		tell(pxe.TopicExpired, describe(p, req)+" came after the end of its boot token")
	case pxe.ReasonNoLoader:
		tell(pxe.TopicLoader, fmt.Sprintf("%s is of architecture %d (DHCP option 93), and there is no boot loader for it", describe(p, req), req.Arch))
	case pxe.ReasonUnknown, pxe.ReasonLocal, pxe.ReasonConsumed, pxe.ReasonOS, pxe.ReasonBoot:
	}
	place := pxe.Place{UUID: p.UUID()}
	if v, ok := p.Relay(RelayCircuitID); ok {
		place.Port = printable(v)
	}
	first, twin := d.Entry.Twin(req.MAC, req.Class, place)
	if twin {
		s.cfg.Reporter.Alarm(d.Entry, pxe.TopicTwin, src.Addr(), fmt.Sprintf("two machines have the Ethernet address %s: %s asked first and is served, %s is not", req.MAC, first, place))
	}
	return twin
}

// from says which link a request came from.
func from(r pxe.Request) string {
	if r.Link.IsValid() {
		return "of " + r.Link.String()
	}
	return fmt.Sprint(r.Subnets)
}

// admit checks that a message came over a link we serve. For a relayed one it returns an address on
// the client's link.
func admit(p *Packet, src netip.AddrPort, l *link) (on netip.Addr, ok bool) {
	if p.GIAddr.IsUnspecified() {
		return netip.Addr{}, len(l.Subnets) > 0 && p.Hops == 0 && !p.Has(OptRelay)
	}
	if !within(l.Relays, src.Addr()) || !within(l.Relays, p.GIAddr) {
		return netip.Addr{}, false
	}
	if v, has := p.Relay(RelayLink); has {
		if len(v) != 4 {
			return netip.Addr{}, false
		}
		return addr4(v), true
	}
	return p.GIAddr, true
}

func within(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// fullAnswer follows RFC 2131 section 4.3. The address of a machine is known before it asks, so every
// question about an address is answered with a plain yes or no.
func (s *Server) fullAnswer(p *Packet, d pxe.Decision, l *link) MessageType {
	mine := d.NIC.Address.Addr()
	switch p.Type() {
	case Discover:
		return Offer
	case Request:
		if id := p.Addr(OptServerID); id.IsValid() { // SELECTING
			if id != l.ServerID {
				s.alarm(Rogue{Server: id, MAC: p.MAC, Listener: l.Name, Evidence: "REQUEST names it"}, l)
				return 0
			}
			return yes(p.Addr(OptRequestedIP) == mine)
		}
		if want := p.Addr(OptRequestedIP); want.IsValid() { // INIT-REBOOT
			return yes(want == mine && p.CIAddr.IsUnspecified())
		}
		if p.CIAddr.IsUnspecified() {
			return 0 // neither of the three forms
		}
		return yes(p.CIAddr == mine) // RENEWING, REBINDING
	case Inform:
		if !p.CIAddr.IsUnspecified() {
			return Ack
		}
	case Decline:
		if p.Addr(OptServerID) == l.ServerID && s.cfg.OnConflict != nil {
			s.cfg.OnConflict(Conflict{Machine: d.Entry.Intent.Machine, MAC: p.MAC, Address: mine})
		}
	case Release, Offer, Ack, Nak: // a reservation stays; the others are a server's
	}
	return 0
}

func yes(ok bool) MessageType {
	if ok {
		return Ack
	}
	return Nak
}

// proxyAnswer gives only boot files: an OFFER without an address beside the real server's, and an ACK
// to the firmware that comes back to port 4011 for it.
func proxyAnswer(p *Packet, d pxe.Decision, c pxe.Class, l *link) MessageType {
	if c == pxe.ClassOS || d.Answer != pxe.Serve {
		return 0
	}
	switch p.Type() {
	case Discover:
		return Offer
	case Request:
		// The REQUEST on port 67 is for the server that gives the address, unless it names us.
		if p.Addr(OptServerID) == l.ServerID || (!p.Has(OptServerID) && !p.CIAddr.IsUnspecified()) {
			return Ack
		}
	case Inform:
		return Ack
	case Decline, Release, Offer, Ack, Nak:
	}
	return 0
}

// destination follows RFC 2131 section 4.1. Without ARP for a client that has no address yet, a
// broadcast is what reaches it. A relay that says so (RFC 8357) is answered at its source port.
func destination(p *Packet, src netip.AddrPort, kind MessageType) netip.AddrPort {
	switch {
	case !p.GIAddr.IsUnspecified():
		if _, ok := p.Relay(RelaySourcePort); ok {
			return netip.AddrPortFrom(p.GIAddr, src.Port())
		}
		return netip.AddrPortFrom(p.GIAddr, serverPort)
	case !p.CIAddr.IsUnspecified() && kind != Nak:
		if src.Addr() == p.CIAddr && src.Port() != clientPort { // firmware's second step of proxyDHCP
			return netip.AddrPortFrom(p.CIAddr, src.Port())
		}
		return netip.AddrPortFrom(p.CIAddr, clientPort)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), clientPort)
}

// watch looks at what another server sent.
func (s *Server) watch(p *Packet, l *link) {
	id := p.Addr(OptServerID)
	if t := p.Type(); t != Offer && t != Ack || !id.IsValid() || id == l.ServerID {
		return
	}
	s.alarm(Rogue{Server: id, MAC: p.MAC, Listener: l.Name, Evidence: "OFFER"}, l)
}

// alarm calls OnRogue at most once a second for each listener.
func (s *Server) alarm(r Rogue, l *link) {
	if s.cfg.OnRogue == nil || slices.Contains(s.cfg.Friends, r.Server) || s.cfg.Mode == Proxy && r.Evidence != "OFFER" {
		return
	}
	now, last := int64(time.Since(s.limit.start)), l.rogue.Load()
	if (last == 0 || now-last >= int64(time.Second)) && l.rogue.CompareAndSwap(last, now) {
		s.cfg.OnRogue(r)
	}
}

func describe(p *Packet, r pxe.Request) string {
	d := r.Class.String() + " on " + r.MAC.String()
	if !p.GIAddr.IsUnspecified() {
		d += " by relay " + p.GIAddr.String()
	}
	if v, ok := p.Relay(RelayCircuitID); ok {
		d += " port " + printable(v)
	}
	return d
}
