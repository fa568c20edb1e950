package vswitch

import "encoding/binary"

// Sizes of frames in bytes, without the checksum, which no virtual wire carries.
const (
	minFrame = 14
	// MaxFrame is the largest payload that networks are declared with, with its header and a tag.
	MaxFrame = 9216 + minFrame + tagLen
	tagLen   = 4
	tagAt    = 12
	// tagType is the EtherType of an IEEE 802.1Q tag (section 9.5.1, table 9-1).
	tagType = 0x8100
	vidMask = 0x0fff
)

// frame is a frame as it came, taken apart.
type frame struct {
	dst, src MAC
	vlan     int    // of its tag; 0 when it has none, or a tag for priority only
	rest     []byte // EtherType and payload, behind any tag
}

// parse reads the header. It is false for what is no frame: too short, too long, or with a tag that
// names the reserved VLAN.
func parse(b []byte) (f frame, ok bool) {
	if len(b) < minFrame || len(b) > MaxFrame {
		return f, false
	}
	f.dst, f.src, f.rest = MAC(b[:6]), MAC(b[6:12]), b[tagAt:]
	if binary.BigEndian.Uint16(f.rest) != tagType {
		return f, true
	}
	if len(b) < minFrame+tagLen {
		return f, false
	}
	f.vlan = int(binary.BigEndian.Uint16(f.rest[2:]) & vidMask)
	f.rest = f.rest[tagLen:]
	return f, f.vlan <= MaxVLAN
}

// bytes is the frame as it leaves: with a tag of that VLAN, or without one for 0.
func (f *frame) bytes(vlan int) []byte {
	b := make([]byte, 0, tagAt+tagLen+len(f.rest))
	b = append(b, f.dst[:]...)
	b = append(b, f.src[:]...)
	if vlan != 0 {
		b = binary.BigEndian.AppendUint16(b, tagType)
		b = binary.BigEndian.AppendUint16(b, uint16(vlan))
	}
	return append(b, f.rest...)
}
