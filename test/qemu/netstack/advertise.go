package netstack

import (
	"encoding/binary"

	"rerack.dev/rerack/test/qemu/vswitch"
)

// Numbers of IPv6 (RFC 8200 section 3) and of router discovery (RFC 4861 sections 4.1 and 4.2).
const (
	typeIPv6      = 0x86dd
	ipv6Header    = 40
	protoICMPv6   = 58
	solicitation  = 133
	advertisement = 134
	advertLen     = 16
	hopLimit      = 255
)

// advertise answers an IPv6 router solicitation with an advertisement of nothing: no router, no prefix,
// no DHCPv6. It is nil for any other frame. iPXE asks for a router before it boots, and waits 13 s for
// the answer that there is none.
func advertise(f []byte, self vswitch.MAC) []byte {
	if len(f) < header+ipv6Header+8 || binary.BigEndian.Uint16(f[12:]) != typeIPv6 {
		return nil
	}
	ip := f[header:]
	if ip[0]>>4 != 6 || ip[6] != protoICMPv6 || ip[7] != hopLimit || ip[ipv6Header] != solicitation {
		return nil
	}
	to, mac := [16]byte(ip[8:24]), vswitch.MAC(f[6:12])
	if to == [16]byte{} { // RFC 4861 section 6.2.6: a host without an address is answered at all nodes
		to, mac = [16]byte{0: 0xff, 1: 2, 15: 1}, vswitch.MAC{0x33, 0x33, 0, 0, 0, 1}
	}
	b := make([]byte, 0, header+ipv6Header+advertLen)
	b = append(b, mac[:]...)
	b = append(b, self[:]...)
	b = binary.BigEndian.AppendUint16(b, typeIPv6)
	b = append(b, 0x60, 0, 0, 0, 0, advertLen, protoICMPv6, hopLimit)
	from := linkLocal(self)
	b = append(b, from[:]...)
	b = append(b, to[:]...)
	// Code 0, checksum below, hop limit 64, no flags, router lifetime 0: not a router.
	b = append(b, advertisement, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	icmp := b[header+ipv6Header:]
	binary.BigEndian.PutUint16(icmp[2:], checksum(b[header+8:], advertLen+protoICMPv6))
	return b
}

// linkLocal is the address made of an Ethernet address (RFC 4291 appendix A).
func linkLocal(m vswitch.MAC) [16]byte {
	return [16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes, begun at start: addresses and
// message, with the rest of the pseudo-header (RFC 8200 section 8.1) in start.
func checksum(b []byte, start uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(binary.BigEndian.Uint16(b))
	}
	for start > 0xffff {
		start = start&0xffff + start>>16
	}
	return ^uint16(start)
}
