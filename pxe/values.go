package pxe

import (
	"encoding/hex"
	"net"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// MAC is an Ethernet address. As a value it is a key of the table and costs no allocation.
type MAC [6]byte

// ParseMAC reads the forms of net.ParseMAC with six octets; multicast and zero addresses are refused.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fault.Newf(fault.Invalid, "%q is not an Ethernet address such as 52:54:00:12:34:56", s)
	}
	m := MAC(hw)
	if m == (MAC{}) || m[0]&1 != 0 {
		return MAC{}, fault.Newf(fault.Invalid, "%s is not the address of one NIC", m)
	}
	return m, nil
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText writes the colon form.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is ParseMAC.
func (m *MAC) UnmarshalText(b []byte) (err error) { *m, err = ParseMAC(string(b)); return err }

// Digest names a file by its content: sha256: and 64 lower-case hex digits.
type Digest string

const digestPrefix = "sha256:"

// ParseDigest checks the form.
func ParseDigest(s string) (Digest, error) {
	h, ok := strings.CutPrefix(s, digestPrefix)
	if b, err := hex.DecodeString(h); !ok || err != nil || len(b) != 32 || strings.ToLower(h) != h {
		return "", fault.Newf(fault.Invalid, "%.80q is not a digest: want sha256: and 64 lower-case hex digits", s)
	}
	return Digest(s), nil
}

// DigestOf makes a digest of a SHA-256 sum.
func DigestOf(sum [32]byte) Digest { return Digest(digestPrefix + hex.EncodeToString(sum[:])) }

// Hex is the digest without its prefix.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }
