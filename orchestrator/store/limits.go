package store

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"rerack.dev/rerack/internal/fault"
)

// MaxTxn bounds the keys and values of a transaction of more than one operation, in bytes. Consul bounds
// the body of such a request by 512 KiB, and in it a value is base64 within JSON. A transaction of one
// operation is bounded by MaxValue alone.
const MaxTxn = 256 << 10

// Bounds of LeaseOptions; they are those of Consul's sessions.
const (
	MinTTL   = 10 * time.Second
	MaxTTL   = 24 * time.Hour
	MaxDelay = 60 * time.Second
	MaxOwner = 256 // bytes
)

// CheckKey returns fault.Invalid for a key that no implementation takes: an empty or long one, one that
// is not UTF-8 or has control characters, and one that is not a clean path (an empty, "." or ".."
// segment), because keys travel in URLs.
func CheckKey(key string) error {
	if key == "" {
		return invalidKey(key, "is empty")
	}
	return checkPath(key, false)
}

// CheckPrefix returns fault.Invalid for a prefix that cannot begin a valid key. The empty prefix stands
// for everything, and the last segment may be empty.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return checkPath(prefix, true)
}

func checkPath(path string, prefix bool) error {
	if len(path) > MaxKey {
		return invalidKey(path[:32]+"...", fmt.Sprintf("has %d bytes, the limit is %d", len(path), MaxKey))
	}
	if !utf8.ValidString(path) {
		return invalidKey(path, "is not UTF-8")
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return invalidKey(path, "has a control character")
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if s == "" && prefix && i == len(segments)-1 && i > 0 {
			continue
		}
		if s == "" || s == "." || s == ".." {
			return invalidKey(path, "has an empty, \".\" or \"..\" segment")
		}
	}
	return nil
}

func invalidKey(key, why string) error {
	return fault.Newf(fault.Invalid, "store key %q %s", key, why)
}

// CheckOps returns fault.Invalid for operations that exceed a limit or are of no known kind.
func CheckOps(ops []Op) error {
	if len(ops) > MaxOps {
		return fault.Newf(fault.Invalid, "transaction has %d operations, the limit is %d", len(ops), MaxOps)
	}
	size := 0
	for i, op := range ops {
		if op.Kind > OpCheck {
			return fault.Newf(fault.Invalid, "operation %d has unknown kind %d", i, op.Kind)
		}
		if err := CheckKey(op.Key); err != nil {
			return err
		}
		if len(op.Value) > MaxValue {
			return fault.Newf(fault.Invalid, "value of %q has %d bytes, the limit is %d", op.Key, len(op.Value), MaxValue)
		}
		size += len(op.Key) + len(op.Value)
	}
	if len(ops) > 1 && size > MaxTxn {
		return fault.Newf(fault.Invalid, "transaction of %d operations has %d bytes of keys and values, the limit is %d",
			len(ops), size, MaxTxn)
	}
	return nil
}

// Validate returns fault.Invalid with the name of the option that is out of bounds.
func (o LeaseOptions) Validate() error {
	switch {
	case o.TTL < MinTTL || o.TTL > MaxTTL:
		return fault.Newf(fault.Invalid, "lease option TTL is %s, it must be %s to %s", o.TTL, MinTTL, MaxTTL)
	case o.Delay < 0 || o.Delay > MaxDelay:
		return fault.Newf(fault.Invalid, "lease option Delay is %s, it must be 0 to %s", o.Delay, MaxDelay)
	case o.Owner == "" || len(o.Owner) > MaxOwner || !utf8.ValidString(o.Owner):
		return fault.Newf(fault.Invalid, "lease option Owner must be 1 to %d bytes of UTF-8", MaxOwner)
	}
	return nil
}
