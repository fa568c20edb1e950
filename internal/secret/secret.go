// Package secret is a value that is not printed by accident.
package secret

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Text is a password or a key that no formatting verb, JSON encoder or logger prints.
type Text struct{ value string }

// New wraps a value.
func New(s string) Text { return Text{value: s} }

// Reveal returns the value. Call it where it goes on the wire, nowhere else.
func (s Text) Reveal() string { return s.value }

// String, GoString, Format, MarshalJSON, MarshalText and LogValue hide the value.
func (Text) String() string               { return redacted }
func (Text) GoString() string             { return redacted }
func (Text) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (Text) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
func (Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Text) LogValue() slog.Value         { return slog.StringValue(redacted) }
