package ipmi

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/bougou/go-ipmi/pkg/types"
	"rerack.dev/rerack/internal/fault"
)

const (
	maxFRU   = 4096 // bytes; real ones are 256 to 2048
	fruChunk = 16   // what every BMC answers in one message
)

// readFRU reads a FRU device's inventory (sections 34.1 and 34.2).
func (d *Driver) readFRU(ctx context.Context, device uint8) ([]byte, error) {
	info, err := d.s.command(ctx, "get FRU size", types.NetFnStorageRequest, 0x10, []byte{device})
	if err != nil {
		return nil, err
	}
	if len(info) < 3 {
		return nil, fault.Newf(fault.Internal, "FRU size: %d bytes, want 3", len(info))
	}
	size := min(int(binary.LittleEndian.Uint16(info)), maxFRU)
	if info[2]&1 != 0 {
		return nil, fault.New(fault.Unsupported, "FRU is read by words")
	}
	var out []byte
	for len(out) < size {
		ask := min(fruChunk, size-len(out))
		data, err := d.s.command(ctx, "read FRU", types.NetFnStorageRequest, 0x11, []byte{device, byte(len(out)), byte(len(out) >> 8), byte(ask)})
		if err != nil {
			return nil, err
		}
		if len(data) < 2 || data[0] == 0 {
			return nil, fault.New(fault.Internal, "FRU read returned nothing")
		}
		out = append(out, data[1:min(len(data), 1+int(data[0]))]...)
	}
	return out, nil
}

type fru struct{ manufacturer, model, serial string }

// parseFRU reads manufacturer, product name and serial number from the product area, and from the board
// area what is missing there (FRU Information Storage Definition 1.0, sections 8, 11, 12). Areas that are
// damaged are skipped.
func parseFRU(b []byte) fru {
	if len(b) < 8 || b[0]&0x0f != 1 || sum(b[:8]) != 0 {
		return fru{}
	}
	var out fru
	if p := fields(b, int(b[4])*8, 3); len(p) >= 5 {
		out = fru{manufacturer: p[0], model: p[1], serial: p[4]}
	}
	if p := fields(b, int(b[3])*8, 6); len(p) >= 3 {
		if out.manufacturer == "" {
			out.manufacturer = p[0]
		}
		if out.model == "" {
			out.model = p[1]
		}
		if out.serial == "" {
			out.serial = p[2]
		}
	}
	return out
}

// fields decodes the type/length fields of the area at offset, after head bytes.
func fields(b []byte, offset, head int) []string {
	if offset == 0 || offset+head >= len(b) {
		return nil
	}
	n := int(b[offset+1]) * 8
	if n == 0 || offset+n > len(b) || sum(b[offset:offset+n]) != 0 {
		return nil
	}
	area := b[offset+head : max(offset+head, offset+n-1)]
	var out []string
	for len(area) > 0 && area[0] != 0xC1 {
		kind, l := area[0]>>6, int(area[0]&0x3f)
		if l > len(area)-1 {
			break
		}
		out = append(out, decodeField(kind, area[1:1+l]))
		area = area[1+l:]
	}
	return out
}

func decodeField(kind byte, b []byte) string {
	var s strings.Builder
	switch kind {
	case 0: // binary: told as hex
		return fmt.Sprintf("%x", b)
	case 1: // BCD plus
		for _, x := range b {
			s.WriteByte("0123456789 -.   "[x>>4])
			s.WriteByte("0123456789 -.   "[x&15])
		}
	case 2: // 6-bit ASCII, packed little end first
		var acc, bits uint
		for _, x := range b {
			acc |= uint(x) << bits
			for bits += 8; bits >= 6; bits -= 6 {
				s.WriteByte(byte(acc&0x3f) + 0x20)
				acc >>= 6
			}
		}
	case 3:
		for _, x := range b {
			if x >= 0x20 && x < 0x7f {
				s.WriteByte(x)
			}
		}
	}
	return strings.TrimSpace(s.String())
}

func sum(b []byte) (s byte) {
	for _, x := range b {
		s += x
	}
	return s
}

// uuidOf prints a system GUID. Vendors send it in SMBIOS order, in RFC 4122 order or, as section 20.8 has
// it, reversed; the version and variant bits tell which. When none fits SMBIOS order is printed.
func uuidOf(g [16]byte) string {
	smbios := g
	slices.Reverse(smbios[0:4])
	slices.Reverse(smbios[4:6])
	slices.Reverse(smbios[6:8])
	reversed := g
	slices.Reverse(reversed[:])
	for _, c := range [][16]byte{smbios, g, reversed} {
		if v := c[6] >> 4; v >= 1 && v <= 8 && c[8]>>6 == 2 {
			return dashed(c)
		}
	}
	return dashed(smbios)
}

func dashed(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
