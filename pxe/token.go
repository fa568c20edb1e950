package pxe

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"log/slog"

	"rerack.dev/rerack/internal/fault"
)

// Token is a one-time boot token of 256 bits, bound to a machine, a run and an epoch. It prints
// redacted; only Reveal gives the text that stands in a URL.
type Token struct{ b [32]byte }

// TokenHash is what is kept and compared of a token. It is no secret.
type TokenHash [32]byte

// minKey is what HMAC-SHA256 needs for its full strength (RFC 2104 section 3).
const minKey = 32

// NewToken derives the token of a machine for a run and an epoch from the boot plane's key, so that no
// token is ever stored. The parts are length-prefixed: ("a","bc") and ("ab","c") differ.
func NewToken(key []byte, machine, run string, epoch uint64) Token {
	m := hmac.New(sha256.New, key)
	for _, s := range []string{"rerack boot token 1", machine, run} {
		_ = binary.Write(m, binary.BigEndian, uint32(len(s))) // a hash does not fail
		m.Write([]byte(s))
	}
	_ = binary.Write(m, binary.BigEndian, epoch)
	var t Token
	m.Sum(t.b[:0])
	return t
}

// ParseToken reads what Reveal wrote. Its error never holds the text.
func ParseToken(s string) (Token, error) {
	var t Token
	if len(s) != base64.RawURLEncoding.EncodedLen(len(t.b)) {
		return Token{}, fault.New(fault.Invalid, "not a boot token")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != len(t.b) {
		return Token{}, fault.New(fault.Invalid, "not a boot token")
	}
	copy(t.b[:], b)
	return t, nil
}

// Reveal returns the token's text, 43 characters that need no escaping in a URL.
func (t Token) Reveal() string { return base64.RawURLEncoding.EncodeToString(t.b[:]) }

// Hash returns what may be stored.
func (t Token) Hash() TokenHash { return sha256.Sum256(t.b[:]) }

func (t Token) String() string               { return "[redacted]" }
func (t Token) GoString() string             { return "[redacted]" }
func (t Token) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }
func (t Token) LogValue() slog.Value         { return slog.StringValue("[redacted]") }

func (h TokenHash) String() string { return hex.EncodeToString(h[:]) }
