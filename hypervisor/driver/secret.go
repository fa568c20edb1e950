package driver

import (
	"fmt"
	"log/slog"
)

// CHAP is how a host proves to a target who it is (RFC 7143 section 12.1.3). A host is told all of it, and
// tells the name alone.
type CHAP struct {
	Name   string `json:"name"` // of the secret, as the caller keeps it
	User   string `json:"user,omitempty"`
	Secret Secret `json:"secret,omitempty"`
}

// maxCHAP bounds a user and a secret, in bytes.
const maxCHAP = 255

// wrong says what is wrong, "" for nothing.
func (c *CHAP) wrong() string {
	switch {
	case c == nil:
		return ""
	case c.Name == "" || len(c.Name) > maxCHAP:
		return "no name of a secret"
	case len(c.User) > maxCHAP || len(c.Secret) > maxCHAP:
		return fmt.Sprintf("user or secret longer than %d bytes", maxCHAP)
	case (c.User == "") != (c.Secret == ""):
		return "a user without a secret, or a secret without a user"
	}
	return ""
}

// Secret is a value that no formatting verb and no logger prints. Unlike others of its kind it has its
// value in JSON: that is how a host is told, over mutual TLS. What a host tells goes through Public.
type Secret string

const redacted = "[redacted]"

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// Format implements fmt.Formatter, for all verbs.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) } // fmt has no use for the error

// LogValue implements slog.LogValuer.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// Public is s as it may be shown: it names secrets and holds none.
func (s Spec) Public() Spec {
	s = s.Clone()
	for _, d := range s.Disks {
		if d.ISCSI != nil && d.ISCSI.CHAP != nil {
			d.ISCSI.CHAP.User, d.ISCSI.CHAP.Secret = "", ""
		}
	}
	return s
}
