// Package iscsi is a small iSCSI initiator and target (RFC 7143) for one connection per session, error
// recovery level 0 and no digests: enough to write to a volume as a named host from a given address,
// and to be the volume that knows who wrote what.
package iscsi

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// BlockSize is the logical block of the target's devices, in bytes.
const BlockSize = 512

// Identity is who an initiator says it is, and where its connection comes from.
type Identity struct {
	Address netip.Addr `json:"address"`
	Name    string     `json:"name"` // its IQN: claimed, and proven only when the target has an account
}

// Account is a CHAP login (RFC 1994): the zero value asks for none. It prints without its secret.
type Account struct {
	User, Secret string
}

// String, GoString, Format and LogValue hide the secret.
func (a Account) String() string             { return a.User + ":[redacted]" }
func (a Account) GoString() string           { return a.String() }
func (a Account) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.String()) }
func (a Account) LogValue() slog.Value       { return slog.StringValue(a.String()) }

// CheckName says what is wrong with an iSCSI name (RFC 7143 section 4.2.7): at most 223 bytes, of type
// iqn, eui or naa, and of lower-case letters, digits, '-', '.' and ':'.
func CheckName(name string) error {
	switch {
	case len(name) > 223:
		return fault.Newf(fault.Invalid, "iSCSI name of %d bytes, longer than 223", len(name))
	case !strings.HasPrefix(name, "iqn.") && !strings.HasPrefix(name, "eui.") && !strings.HasPrefix(name, "naa."):
		return fault.Newf(fault.Invalid, "iSCSI name %q begins with none of iqn., eui., naa.", name)
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != ':' {
			return fault.Newf(fault.Invalid, "iSCSI name %q has the character %q", name, c)
		}
	}
	return nil
}

// malformed is the error for a peer that breaks the protocol.
func malformed(format string, args ...any) error {
	return &fault.Error{Kind: fault.Internal, What: "iSCSI protocol", Evidence: fmt.Sprintf(format, args...)}
}

// ioError gives an error of the connection its kind: whether a request that got no answer took effect
// is unknown.
func ioError(err error, what string) error {
	var fe *fault.Error
	if errors.As(err, &fe) {
		return err
	}
	kind := fault.Unreachable
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		kind = fault.Timeout
	}
	return &fault.Error{Kind: kind, What: what, Err: err}
}

// addressOf takes the address out of a connection's peer; it is not valid when the transport has none.
func addressOf(conn net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}
