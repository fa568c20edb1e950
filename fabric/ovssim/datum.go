package ovssim

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// schemaJSON is the part of the Open_vSwitch schema, version 8.3.1, that a switch's VLANs need, written
// from the columns documented in ovs-vswitchd.conf.db(5).
//
//go:embed openvswitch.ovsschema
var schemaJSON []byte

func parseSchema() (ovsdb.DatabaseSchema, error) {
	var s ovsdb.DatabaseSchema
	err := json.Unmarshal(schemaJSON, &s)
	return s, err
}

// datum is the value of one column (RFC 7047 section 5.1): a set, in order and without duplicates, or a
// map. A scalar is a set of one. Atoms are string, int, bool or ovsdb.UUID.
type datum struct {
	set []any
	m   map[any]any // not nil for a map column
}

func (d datum) equal(e datum) bool {
	return slices.Equal(d.set, e.set) && reflect.DeepEqual(d.m, e.m)
}

func (d datum) has(atom any) bool { return slices.Contains(d.set, atom) }

// opError is an error object of RFC 7047 section 3.1.
type opError struct{ name, details string }

func (e *opError) Error() string { return e.name + ": " + e.details }

func violation(format string, args ...any) error {
	return &opError{"constraint violation", fmt.Sprintf(format, args...)}
}

func syntax(format string, args ...any) error {
	return &opError{"syntax error", fmt.Sprintf(format, args...)}
}

// newDatum reads a value as libovsdb decodes it and holds it against the column's type.
func newDatum(col *ovsdb.ColumnSchema, v any) (datum, error) {
	t := col.TypeObj
	if t.Value != nil {
		given, ok := v.(ovsdb.OvsMap)
		if !ok {
			return datum{}, syntax("%v is not a map", v)
		}
		m := make(map[any]any, len(given.GoMap))
		for k, v := range given.GoMap {
			key, err := newAtom(t.Key, k)
			if err != nil {
				return datum{}, err
			}
			if m[key], err = newAtom(t.Value, v); err != nil {
				return datum{}, err
			}
		}
		return datum{m: m}, sizeOf(t, len(m))
	}
	given, isSet := v.(ovsdb.OvsSet)
	if !isSet {
		given.GoSet = []any{v}
	}
	d := datum{}
	for _, a := range given.GoSet {
		atom, err := newAtom(t.Key, a)
		if err != nil {
			return datum{}, err
		}
		d.set = append(d.set, atom)
	}
	if d.normalize(); len(d.set) != len(given.GoSet) {
		return datum{}, &opError{"ovsdb error", "set contains duplicate"}
	}
	return d, sizeOf(t, len(d.set))
}

func sizeOf(t *ovsdb.ColumnType, n int) error {
	if n < t.Min() || (t.Max() != ovsdb.Unlimited && n > t.Max()) {
		return syntax("%d values where %d to %d are allowed", n, t.Min(), t.Max())
	}
	return nil
}

func newAtom(t *ovsdb.BaseType, v any) (any, error) {
	switch t.Type {
	case ovsdb.TypeInteger:
		n, ok := v.(float64)
		if !ok || n != math.Trunc(n) || math.Abs(n) > 1<<53 {
			return nil, syntax("%v is not an integer", v)
		}
		low, _ := t.MinInteger() // fail only for other types
		high, _ := t.MaxInteger()
		if int(n) < low || int(n) > high {
			return nil, violation("%d is not in the valid range %d to %d", int(n), low, high)
		}
		return int(n), nil
	case ovsdb.TypeBoolean:
		if b, ok := v.(bool); ok {
			return b, nil
		}
	case ovsdb.TypeString:
		s, ok := v.(string)
		if ok && t.Enum != nil && !slices.Contains(t.Enum, any(s)) {
			return nil, violation("%q is none of the allowed values", s)
		}
		if ok {
			return s, nil
		}
	case ovsdb.TypeUUID:
		if u, ok := v.(ovsdb.UUID); ok {
			return u, nil
		}
	}
	return nil, syntax("%v is not of type %s", v, t.Type)
}

// defaultDatum is what a column holds when nothing was given (RFC 7047 section 5.2.1).
func defaultDatum(col *ovsdb.ColumnSchema) datum {
	t := col.TypeObj
	switch {
	case t.Value != nil:
		return datum{m: map[any]any{}}
	case t.Min() == 0:
		return datum{}
	}
	switch t.Key.Type {
	case ovsdb.TypeInteger:
		return datum{set: []any{0}}
	case ovsdb.TypeBoolean:
		return datum{set: []any{false}}
	case ovsdb.TypeUUID:
		return datum{set: []any{ovsdb.UUID{GoUUID: "00000000-0000-0000-0000-000000000000"}}}
	}
	return datum{set: []any{""}}
}

func (d *datum) normalize() {
	slices.SortFunc(d.set, compareAtoms)
	d.set = slices.Compact(d.set)
}

func compareAtoms(a, b any) int {
	if x, ok := a.(int); ok {
		return x - b.(int)
	}
	return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
}

// wire turns the datum into what is encoded, in a fixed order as the real server's.
func (d datum) wire(col *ovsdb.ColumnSchema) any {
	switch {
	case d.m != nil:
		pairs := make([]any, 0, len(d.m))
		for _, k := range slices.SortedFunc(maps.Keys(d.m), compareAtoms) {
			pairs = append(pairs, []any{k, d.m[k]})
		}
		return []any{"map", pairs}
	case col.TypeObj.Min() == 1 && col.TypeObj.Max() == 1:
		return d.set[0]
	}
	return ovsdb.OvsSet{GoSet: d.set}
}
