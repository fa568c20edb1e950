package dhcp

import (
	"encoding/binary"
	"net/netip"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

// Sizes of a message (RFC 2131 section 2): a fixed header, the magic cookie, options. A client need
// not take more than 576 bytes of IP datagram unless it says so with option 57.
const (
	headerLen  = 236
	optionsAt  = headerLen + 4
	minSize    = 300 // BOOTP's; some relays and firmware drop less
	minMTU     = 576
	ipUDP      = 28
	MaxMessage = 1500 - ipUDP
	fileAt     = 108
	fileLen    = 128
	cookie     = 0x63825363
)

// Op of a message.
const (
	BootRequest = 1
	BootReply   = 2
)

// FlagBroadcast asks for an answer by broadcast.
const FlagBroadcast = 0x8000

// Header is the fixed part of a message on Ethernet.
type Header struct {
	Op     byte
	Hops   byte
	XID    uint32
	Secs   uint16
	Flags  uint16
	CIAddr netip.Addr // the invalid Addr stands for 0.0.0.0 when written
	YIAddr netip.Addr
	SIAddr netip.Addr
	GIAddr netip.Addr
	MAC    pxe.MAC
	File   string // at most 127 bytes
}

// Packet is a parsed message: a view on the bytes it was parsed from, which must not change while it is
// in use. A Packet is used again and again without allocation.
type Packet struct {
	Header
	raw   []byte
	spans [256]span
	seen  [64]byte // codes with a span, so that clearing costs what was used
	nseen int
	extra []byte // joined fragments of options given more than once (RFC 3396)
}

type span struct {
	off   uint16
	n     uint16
	set   bool
	extra bool
}

// Parse reads a message. It returns fault.Invalid for anything that is not a DHCP message of an
// Ethernet client: too short or long, options that run over the end, another hardware type.
func (p *Packet) Parse(b []byte) error {
	p.reset()
	if len(b) < optionsAt || len(b) > MaxMessage {
		return fault.Newf(fault.Invalid, "message of %d bytes", len(b))
	}
	if b[1] != 1 || b[2] != 6 {
		return fault.Newf(fault.Invalid, "hardware type %d with %d bytes: not Ethernet", b[1], b[2])
	}
	if b[0] != BootRequest && b[0] != BootReply {
		return fault.Newf(fault.Invalid, "op %d", b[0])
	}
	if binary.BigEndian.Uint32(b[headerLen:]) != cookie {
		return fault.New(fault.Invalid, "no magic cookie")
	}
	p.raw = b
	p.Header = Header{Op: b[0], Hops: b[3], XID: binary.BigEndian.Uint32(b[4:]), Secs: binary.BigEndian.Uint16(b[8:]),
		Flags: binary.BigEndian.Uint16(b[10:]), CIAddr: addr4(b[12:]), YIAddr: addr4(b[16:]), SIAddr: addr4(b[20:]),
		GIAddr: addr4(b[24:]), MAC: pxe.MAC(b[28:34])}
	return p.options(optionsAt, len(b))
}

func (p *Packet) reset() {
	for _, c := range p.seen[:p.nseen] {
		p.spans[c] = span{}
	}
	p.nseen, p.extra, p.raw = 0, p.extra[:0], nil
}

func (p *Packet) options(at, end int) error {
	for at < end {
		code := p.raw[at]
		switch code {
		case OptPad:
			at++
			continue
		case OptEnd:
			return nil
		}
		if at+2 > end || at+2+int(p.raw[at+1]) > end {
			return fault.Newf(fault.Invalid, "option %d runs over the end", code)
		}
		n := int(p.raw[at+1])
		if err := p.keep(code, at+2, n); err != nil {
			return err
		}
		at += 2 + n
	}
	return nil
}

func (p *Packet) keep(code byte, off, n int) error {
	s := &p.spans[code]
	if !s.set {
		if p.nseen == len(p.seen) {
			return fault.Newf(fault.Invalid, "more than %d options", len(p.seen))
		}
		p.seen[p.nseen] = code
		p.nseen++
		*s = span{off: uint16(off), n: uint16(n), set: true}
		return nil
	}
	start := len(p.extra)
	p.extra = append(p.extra, p.Option(code)...)
	p.extra = append(p.extra, p.raw[off:off+n]...)
	if len(p.extra) > 4*MaxMessage {
		return fault.New(fault.Invalid, "options repeat too often")
	}
	*s = span{off: uint16(start), n: uint16(len(p.extra) - start), set: true, extra: true}
	return nil
}

// Option returns the value of an option, its fragments joined, or nil when it is absent or empty.
func (p *Packet) Option(code byte) []byte {
	s := p.spans[code]
	switch {
	case !s.set || s.n == 0:
		return nil
	case s.extra:
		return p.extra[s.off : s.off+s.n]
	}
	return p.raw[s.off : s.off+s.n]
}

// Has reports whether an option is there, even empty.
func (p *Packet) Has(code byte) bool { return p.spans[code].set }

// Type returns the message type, or 0.
func (p *Packet) Type() MessageType {
	if v := p.Option(OptMessageType); len(v) == 1 {
		return MessageType(v[0])
	}
	return 0
}

// Addr returns an option that holds one IPv4 address, or the invalid Addr.
func (p *Packet) Addr(code byte) netip.Addr {
	if v := p.Option(code); len(v) == 4 {
		return netip.AddrFrom4([4]byte(v))
	}
	return netip.Addr{}
}

// BootFile returns option 67, else the file field up to its first NUL.
func (p *Packet) BootFile() string {
	v := p.Option(OptBootFile)
	if len(v) == 0 {
		v = p.raw[fileAt : fileAt+fileLen]
	}
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}

// Relay returns a sub-option of option 82 (RFC 3046), and whether it is there.
func (p *Packet) Relay(sub byte) ([]byte, bool) {
	v := p.Option(OptRelay)
	for len(v) >= 2 {
		n := int(v[1])
		if 2+n > len(v) {
			return nil, false
		}
		if v[0] == sub {
			return v[2 : 2+n], true
		}
		v = v[2+n:]
	}
	return nil, false
}

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b[:4])) }

// AppendHeader appends the fixed part and the magic cookie.
func AppendHeader(b []byte, h *Header) []byte {
	at := len(b)
	var zero [optionsAt]byte
	b = append(b, zero[:]...)
	m := b[at:]
	m[0], m[1], m[2], m[3] = h.Op, 1, 6, h.Hops
	binary.BigEndian.PutUint32(m[4:], h.XID)
	binary.BigEndian.PutUint16(m[8:], h.Secs)
	binary.BigEndian.PutUint16(m[10:], h.Flags)
	for i, a := range [...]netip.Addr{h.CIAddr, h.YIAddr, h.SIAddr, h.GIAddr} {
		if a.Is4() {
			v := a.As4()
			copy(m[12+4*i:], v[:])
		}
	}
	copy(m[28:], h.MAC[:])
	if len(h.File) < fileLen {
		copy(m[fileAt:], h.File)
	}
	binary.BigEndian.PutUint32(m[headerLen:], cookie)
	return b
}

// AppendOption appends one option; a value of more than 255 bytes goes in fragments (RFC 3396).
func AppendOption(b []byte, code byte, v ...byte) []byte {
	for len(v) > 255 {
		b = append(append(b, code, 255), v[:255]...)
		v = v[255:]
	}
	return append(append(b, code, byte(len(v))), v...)
}

// AppendString is AppendOption of a string.
func AppendString(b []byte, code byte, v string) []byte {
	for len(v) > 255 {
		b = append(append(b, code, 255), v[:255]...)
		v = v[255:]
	}
	return append(append(b, code, byte(len(v))), v...)
}

// AppendAddr appends an option of one IPv4 address.
func AppendAddr(b []byte, code byte, a netip.Addr) []byte {
	v := a.As4()
	return AppendOption(b, code, v[0], v[1], v[2], v[3])
}

// AppendUint32 appends an option of four bytes.
func AppendUint32(b []byte, code byte, v uint32) []byte {
	return AppendOption(b, code, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// Finish ends the options and pads a message that starts at b[0] to BOOTP's smallest size.
func Finish(b []byte) []byte {
	b = append(b, OptEnd)
	for len(b) < minSize {
		b = append(b, OptPad)
	}
	return b
}
