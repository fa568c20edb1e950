package dhcp

import (
	"bytes"

	"rerack.dev/rerack/pxe"
)

// Option codes (RFC 2132 unless noted).
const (
	OptPad         = 0
	OptSubnetMask  = 1
	OptRouter      = 3
	OptDNS         = 6
	OptHostName    = 12
	OptMTU         = 26
	OptVendor      = 43
	OptRequestedIP = 50
	OptLease       = 51
	OptMessageType = 53
	OptServerID    = 54
	OptParams      = 55
	OptMaxSize     = 57
	OptClass       = 60
	OptClientID    = 61
	OptTFTPServer  = 66
	OptBootFile    = 67
	OptUserClass   = 77  // RFC 3004; iPXE sends it without the length
	OptRelay       = 82  // RFC 3046
	OptArch        = 93  // RFC 4578
	OptInterface   = 94  // RFC 4578
	OptUUID        = 97  // RFC 4578
	OptIPXE        = 175 // https://ipxe.org/howto/dhcpd, encapsulated options of iPXE
	OptPhoneHome   = 224 // private use (RFC 3942): where a system that boots from SAN reports to
	OptEnd         = 255
)

// Sub-options of option 82.
const (
	RelayCircuitID  = 1
	RelayRemoteID   = 2
	RelayLink       = 5  // RFC 3527
	RelaySourcePort = 19 // RFC 8357
)

// MessageType is the value of option 53.
type MessageType byte

const (
	Discover MessageType = 1 + iota
	Offer
	Request
	Decline
	Ack
	Nak
	Release
	Inform
)

// Class tells what kind of program sent the message.
func (p *Packet) Class() pxe.Class {
	user := p.Option(OptUserClass)
	if bytes.Equal(user, []byte("iPXE")) || bytes.Equal(user, []byte("\x04iPXE")) {
		return pxe.ClassIPXE
	}
	switch c := p.Option(OptClass); {
	case bytes.HasPrefix(c, []byte("PXEClient")):
		return pxe.ClassPXE
	case bytes.HasPrefix(c, []byte("HTTPClient")):
		return pxe.ClassHTTP
	}
	return pxe.ClassOS
}

// Arch returns the first architecture of option 93, else the one in the vendor class
// (PXEClient:Arch:00007:UNDI:...), else BIOS, as firmware from before RFC 4578 means.
func (p *Packet) Arch() pxe.Arch {
	if v := p.Option(OptArch); len(v) >= 2 {
		return pxe.Arch(v[0])<<8 | pxe.Arch(v[1])
	}
	_, rest, ok := bytes.Cut(p.Option(OptClass), []byte(":Arch:"))
	if !ok || len(rest) < 5 {
		return pxe.ArchBIOS
	}
	n := 0
	for _, c := range rest[:5] {
		if c < '0' || c > '9' {
			return pxe.ArchBIOS
		}
		n = n*10 + int(c-'0')
	}
	return pxe.Arch(n)
}

// UUID returns the machine's own identifier of option 97, type 0 (RFC 4578 section 2.3); zero without one.
func (p *Packet) UUID() (u [16]byte) {
	if v := p.Option(OptUUID); len(v) == 1+len(u) && v[0] == 0 {
		copy(u[:], v[1:])
	}
	return u
}

// asks reports whether the client's parameter list names an option.
func (p *Packet) asks(code byte) bool { return bytes.IndexByte(p.Option(OptParams), code) >= 0 }

// printable makes bytes from the wire fit for a log line: other than visible ASCII becomes '.'.
func printable(b []byte) string {
	b = bytes.Clone(b[:min(len(b), 64)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '.'
		}
	}
	return string(b)
}
