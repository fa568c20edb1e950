package bmc

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// matchIdentity requires at least one of UUID and serial to be comparable, and every comparable one to
// be equal.
func matchIdentity(ep Endpoint, got driver.Inventory) error {
	compared := 0
	for _, c := range []struct {
		name, want, got string
		same            func(a, b string) bool
	}{
		{"UUID", ep.ExpectUUID, got.UUID, sameUUID},
		{"serial", ep.ExpectSerial, got.Serial, func(a, b string) bool { return strings.EqualFold(strings.TrimSpace(a), strings.TrimSpace(b)) }},
	} {
		if c.want == "" || c.got == "" {
			continue
		}
		compared++
		if !c.same(c.want, c.got) {
			return &fault.Error{Kind: fault.Unsafe, What: "verify identity",
				Evidence: fmt.Sprintf("the BMC's machine has %s %s, expected is %s", c.name, c.got, c.want),
				Next:     "check which BMC has this address; after a board replacement enrol the machine again"}
		}
	}
	if compared == 0 {
		return &fault.Error{Kind: fault.Unsafe, What: "verify identity", Evidence: "the BMC tells neither the UUID nor the serial number that is expected",
			Next: "declare what the BMC does tell"}
	}
	return nil
}

// sameUUID compares two UUIDs. The same 16 bytes are printed in three orders (RFC 4122, SMBIOS with its
// first three fields little-endian, IPMI 2.0 section 20.8 fully reversed); two spellings of the same
// bytes are the same machine.
func sameUUID(a, b string) bool {
	x, y := uuidBytes(a), uuidBytes(b)
	if x == nil || y == nil {
		return strings.EqualFold(strings.TrimSpace(a), strings.TrimSpace(b))
	}
	if slices.Equal(x, y) {
		return true
	}
	swapped := slices.Clone(y)
	slices.Reverse(swapped[0:4])
	slices.Reverse(swapped[4:6])
	slices.Reverse(swapped[6:8])
	if slices.Equal(x, swapped) {
		return true
	}
	slices.Reverse(swapped)
	slices.Reverse(y)
	return slices.Equal(x, y) || slices.Equal(x, swapped)
}

func uuidBytes(s string) []byte {
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(strings.TrimSpace(s), "{}"), "-", ""))
	if err != nil || len(raw) != 16 {
		return nil
	}
	return raw
}
