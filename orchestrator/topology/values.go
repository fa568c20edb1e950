package topology

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// MAC is an Ethernet address, written lower case with colons.
type MAC string

// ParseMAC accepts colon, dash and bare hex forms and returns the canonical one. Group addresses and
// the zero address are refused: they never belong to a NIC.
func ParseMAC(s string) (MAC, error) {
	b, err := parseOctets(s, 6)
	if err != nil {
		return "", fmt.Errorf("%q is not a MAC address: %w, e.g. 52:54:00:12:34:56", s, err)
	}
	if b[0]&1 != 0 {
		return "", fmt.Errorf("%q is a multicast address: a NIC's first octet is even", s)
	}
	if strings.Trim(s, "0:-") == "" {
		return "", fmt.Errorf("%q is the zero address", s)
	}
	return MAC(joinOctets(b)), nil
}

// WWPN is a Fibre Channel port name, written lower case with colons.
type WWPN string

// ParseWWPN accepts colon, dash and bare hex forms and returns the canonical one.
func ParseWWPN(s string) (WWPN, error) {
	b, err := parseOctets(s, 8)
	if err != nil {
		return "", fmt.Errorf("%q is not a WWPN: %w, e.g. 20:00:00:25:b5:00:00:01", s, err)
	}
	return WWPN(joinOctets(b)), nil
}

// IQN is an iSCSI qualified name (RFC 3720 section 3.2.6.3.1).
type IQN string

var iqnForm = regexp.MustCompile(`^iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[a-z0-9.:_-]+)?$`)

// ParseIQN checks the form and the length limit of 223 bytes.
func ParseIQN(s string) (IQN, error) {
	if len(s) > 223 || !iqnForm.MatchString(s) {
		return "", fmt.Errorf("%q is not an iSCSI name, e.g. iqn.2026-01.org.example:db1", s)
	}
	return IQN(s), nil
}

// Digest names a file in the image store by its content.
type Digest string

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ParseDigest checks the form sha256:<64 hex digits>.
func ParseDigest(s string) (Digest, error) {
	if !digestForm.MatchString(s) {
		return "", fmt.Errorf("%q is not a digest: sha256: and 64 lower-case hex digits", s)
	}
	return Digest(s), nil
}

// Duration is a time span written as 90s, 15m, 1h30m.
type Duration time.Duration

// MarshalText writes the shortest Go form: 15m and not 15m0s.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is the form MarshalText writes.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// UnmarshalText reads a Go duration that is not negative.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a duration, e.g. 90s, 15m", b)
	}
	*d = Duration(v)
	return nil
}

// Or returns d, or def when d is zero.
func (d Duration) Or(def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return time.Duration(d)
}

// UnmarshalText parses and canonicalises.
func (m *MAC) UnmarshalText(b []byte) (err error) { *m, err = ParseMAC(string(b)); return err }

// UnmarshalText parses and canonicalises.
func (w *WWPN) UnmarshalText(b []byte) (err error) { *w, err = ParseWWPN(string(b)); return err }

// UnmarshalText parses.
func (i *IQN) UnmarshalText(b []byte) (err error) { *i, err = ParseIQN(string(b)); return err }

// UnmarshalText parses.
func (d *Digest) UnmarshalText(b []byte) (err error) { *d, err = ParseDigest(string(b)); return err }

func parseOctets(s string, n int) ([]byte, error) {
	bare := s
	if len(s) == n*3-1 {
		sep := s[2]
		if sep != ':' && sep != '-' {
			return nil, fmt.Errorf("want %d hex octets", n)
		}
		for i := 2; i < len(s); i += 3 {
			if s[i] != sep {
				return nil, fmt.Errorf("mixed separators")
			}
		}
		bare = strings.ReplaceAll(s, string(sep), "")
	}
	b, err := hex.DecodeString(bare)
	if err != nil || len(b) != n {
		return nil, fmt.Errorf("want %d hex octets", n)
	}
	return b, nil
}

func joinOctets(b []byte) string {
	out := make([]string, len(b))
	for i, o := range b {
		out[i] = hex.EncodeToString([]byte{o})
	}
	return strings.Join(out, ":")
}
