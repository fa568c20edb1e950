package iscsi

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

const (
	maxKeys     = 2048 // a portal's list of targets has two each
	maxKeyName  = 63   // RFC 7143 section 6.1
	maxKeyValue = 8192 // a CHAP challenge may have 1024 bytes, twice that in hex
)

// keys are the text pairs of a login or text PDU, in order.
type keys []struct{ name, value string }

// parseKeys reads NUL-terminated key=value pairs (RFC 7143 section 6.1).
func parseKeys(data []byte) (keys, error) {
	var out keys
	for field := range bytes.SplitSeq(data, []byte{0}) {
		if len(field) == 0 {
			continue
		}
		name, value, ok := strings.Cut(string(field), "=")
		switch {
		case !ok || name == "":
			return nil, malformed("text %.40q is no key=value pair", field)
		case len(name) > maxKeyName || len(value) > maxKeyValue:
			return nil, malformed("text key %.70q is too long", name)
		case len(out) == maxKeys:
			return nil, malformed("more than %d text keys", maxKeys)
		}
		out = append(out, struct{ name, value string }{name, value})
	}
	return out, nil
}

// once returns an error when a key stands twice, which a login may not have (RFC 7143 section 6.2).
func (k keys) once() error {
	for i, kv := range k {
		if _, twice := k[:i].get(kv.name); twice {
			return malformed("text key %q twice", kv.name)
		}
	}
	return nil
}

func (k keys) get(name string) (string, bool) {
	for _, kv := range k {
		if kv.name == name {
			return kv.value, true
		}
	}
	return "", false
}

func (k *keys) add(name, value string) {
	*k = append(*k, struct{ name, value string }{name, value})
}

func (k keys) encode() []byte {
	var b []byte
	for _, kv := range k {
		b = append(b, kv.name...)
		b = append(b, '=')
		b = append(b, kv.value...)
		b = append(b, 0)
	}
	return b
}

// offers reports whether a list value has one of its choices.
func offers(list, choice string) bool { return slices.Contains(strings.Split(list, ","), choice) }

// number reads a numeric value, decimal or 0x (RFC 7143 section 6.1), within the range a key has.
func number(name, value string, low, high int) (int, error) {
	n, err := strconv.ParseInt(value, 0, 64)
	if err != nil || n < int64(low) || n > int64(high) {
		return 0, malformed("%s=%.20q is no number from %d to %d", name, value, low, high)
	}
	return int(n), nil
}
