package ovs

import (
	"encoding/json"
	"errors"
	"fmt"
)

// The decoders below read the value notation of RFC 7047 section 5.1. They are strict and bounded by
// what session reads, because the far end may be anything.

var errNotation = errors.New("not in the notation of RFC 7047 section 5.1")

// tagged splits ["tag", value]; ok is false for any other JSON.
func tagged(raw json.RawMessage) (tag string, value json.RawMessage, ok bool) {
	var pair []json.RawMessage
	if json.Unmarshal(raw, &pair) != nil || len(pair) != 2 || json.Unmarshal(pair[0], &tag) != nil {
		return "", nil, false
	}
	return tag, pair[1], true
}

// set reads a set of atoms: ["set",[…]], or a lone atom. A missing column is an empty set.
func set[T string | int | bool](raw json.RawMessage) ([]T, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if tag, value, ok := tagged(raw); ok {
		if tag != "set" {
			return nil, fmt.Errorf("%q for a set: %w", tag, errNotation)
		}
		var out []T
		if err := json.Unmarshal(value, &out); err != nil {
			return nil, err
		}
		return out, nil
	}
	var one *T
	if err := json.Unmarshal(raw, &one); err != nil {
		return nil, err
	}
	if one == nil {
		return nil, errNotation
	}
	return []T{*one}, nil
}

// optional reads a set of at most one atom.
func optional[T string | int | bool](raw json.RawMessage) (v T, present bool, err error) {
	all, err := set[T](raw)
	switch {
	case err != nil:
		return v, false, err
	case len(all) > 1:
		return v, false, fmt.Errorf("%d values for one: %w", len(all), errNotation)
	case len(all) == 0:
		return v, false, nil
	}
	return all[0], true, nil
}

// one reads a set of exactly one atom.
func one[T string | int | bool](raw json.RawMessage) (T, error) {
	v, present, err := optional[T](raw)
	if err == nil && !present {
		err = fmt.Errorf("no value: %w", errNotation)
	}
	return v, err
}

// uuid reads ["uuid","…"].
func uuid(raw json.RawMessage) (string, error) {
	tag, value, ok := tagged(raw)
	if !ok || tag != "uuid" {
		return "", fmt.Errorf("no uuid: %w", errNotation)
	}
	var s string
	if err := json.Unmarshal(value, &s); err != nil {
		return "", err
	}
	return s, nil
}

// uuids reads a set of UUIDs.
func uuids(raw json.RawMessage) ([]string, error) {
	tag, value, ok := tagged(raw)
	if !ok {
		return nil, errNotation
	}
	if tag == "uuid" {
		u, err := uuid(raw)
		return []string{u}, err
	}
	var items []json.RawMessage
	if tag != "set" || json.Unmarshal(value, &items) != nil {
		return nil, errNotation
	}
	out := make([]string, 0, len(items))
	for _, i := range items {
		u, err := uuid(i)
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

// stringMap reads ["map",[["k","v"],…]]. A missing column is an empty map.
func stringMap(raw json.RawMessage) (map[string]string, error) {
	out := map[string]string{}
	if len(raw) == 0 {
		return out, nil
	}
	tag, value, ok := tagged(raw)
	var pairs [][]string
	if !ok || tag != "map" {
		return nil, errNotation
	}
	if err := json.Unmarshal(value, &pairs); err != nil {
		return nil, err
	}
	for _, p := range pairs {
		if len(p) != 2 {
			return nil, errNotation
		}
		out[p[0]] = p[1]
	}
	return out, nil
}
