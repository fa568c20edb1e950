package bmcsim

import (
	"encoding/hex"
	"slices"
	"strings"
)

// guidOf is a UUID as Get System GUID gives it: in SMBIOS byte order, first three fields little-endian,
// which is what most vendors do in spite of IPMI 2.0 section 20.8. A UUID that does not parse is zero.
func guidOf(uuid string) (g [16]byte) {
	raw, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(raw) != 16 {
		return g
	}
	slices.Reverse(raw[0:4])
	slices.Reverse(raw[4:6])
	slices.Reverse(raw[6:8])
	copy(g[:], raw)
	return g
}

// fruOf is a FRU with a board and a product area (IPMI Platform Management FRU Information Storage
// Definition 1.0, sections 8, 11 and 12). The board has a serial number of its own, as boards do.
func fruOf(manufacturer, model, serial string) []byte {
	board := area([]byte{0x01, 0, 0x19, 0, 0, 0}, manufacturer, model+" board", "B-"+serial, "PN-0001", "")
	product := area([]byte{0x01, 0, 0x19}, manufacturer, model, "PN-0002", "1.0", serial, "", "")
	head := []byte{0x01, 0, 0, 1, byte(1 + len(board)/8), 0, 0, 0}
	head[7] = checksum(head[:7])
	return slices.Concat(head, board, product)
}

// area appends 8-bit ASCII fields, the end mark, padding to eight bytes and the checksum.
func area(start []byte, fields ...string) []byte {
	out := slices.Clone(start)
	for _, f := range fields {
		f = f[:min(len(f), 63)]
		out = append(out, 0xC0|byte(len(f)))
		out = append(out, f...)
	}
	out = append(out, 0xC1)
	for len(out)%8 != 7 {
		out = append(out, 0)
	}
	out[1] = byte((len(out) + 1) / 8)
	return append(out, checksum(out))
}

func checksum(b []byte) byte {
	var s byte
	for _, x := range b {
		s += x
	}
	return -s
}
