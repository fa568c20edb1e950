package topology

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
)

// encode turns an object into a node in canonical form: fields in the order of the types, map keys
// sorted, optional values that are zero left out.
func encode(k *kindModel, m Meta, spec reflect.Value) *node {
	out := &node{kind: nodeMap}
	out.add("apiVersion", &node{value: APIVersion})
	out.add("kind", &node{value: string(k.kind)})
	out.add("metadata", encodeValue(reflect.ValueOf(m), metaModel))
	out.add("spec", encodeValue(spec, k.spec))
	return out
}

func encodeValue(v reflect.Value, m *typeModel) *node {
	switch m.shape {
	case shapeStruct:
		out := &node{kind: nodeMap}
		for i := range m.fields {
			f := &m.fields[i]
			if field := v.Field(f.index); f.required || !empty(field) {
				out.add(f.name, encodeValue(field, f.typ))
			}
		}
		return out
	case shapeList:
		out := &node{kind: nodeList}
		for i := range v.Len() {
			out.items = append(out.items, encodeValue(v.Index(i), m.elem))
		}
		return out
	case shapeMap:
		out := &node{kind: nodeMap}
		pairs := v.Interface().(map[string]string)
		for _, k := range slices.Sorted(maps.Keys(pairs)) {
			out.add(k, &node{value: pairs[k]})
		}
		return out
	case shapeInt:
		return &node{kind: nodeInt, value: strconv.FormatInt(v.Int(), 10)}
	case shapeBool:
		return &node{kind: nodeBool, value: strconv.FormatBool(v.Bool())}
	default:
		return &node{value: textOf(v)}
	}
}

// empty also counts a list or map that is there but has nothing in it: YAML has no way to tell them apart
// that anybody should rely on.
func empty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	default:
		return v.IsZero()
	}
}

// textOf is a value of text shape as it is written.
func textOf(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		if b, err := m.MarshalText(); err == nil {
			return string(b)
		}
	}
	if v.Kind() == reflect.String {
		return v.String()
	}
	return fmt.Sprint(v.Interface())
}
