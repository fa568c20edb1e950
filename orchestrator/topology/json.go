package topology

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// EncodeJSON writes the topology as one JSON document in canonical form: {"apiVersion": …, "objects": […]}
// with the objects as they stand in YAML.
func EncodeJSON(t *Topology) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`{"apiVersion":` + jsonText(APIVersion) + `,"objects":[`)
	first := true
	for n := range t.nodes {
		if !first {
			b.WriteByte(',')
		}
		first = false
		writeJSON(&b, n)
	}
	b.WriteString("]}")
	return b.Bytes(), nil
}

// EncodeObjectJSON writes one object as JSON in canonical form.
func EncodeObjectJSON(t *Topology, kind Kind, name string) ([]byte, error) {
	n, err := t.objectNode(kind, name)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	writeJSON(&b, n)
	return b.Bytes(), nil
}

// DecodeJSON reads what EncodeJSON wrote, as strictly as Load reads YAML, and validates it. The error is
// an Errors without lines: the path of the first element says where, "objects[3]".
func DecodeJSON(data []byte) (t *Topology, err error) {
	defer func() { // see Load
		if r := recover(); r != nil {
			t, err = nil, Errors{{Problem: fmt.Sprintf("the topology cannot be read: %v", r), Hint: "this is a bug of rerack, please report it"}}
		}
	}()
	root, err := parseJSON(data)
	if err != nil {
		return nil, err
	}
	var errs Errors
	objects := &node{kind: nodeList}
	top := decoder{report: func(_ *node, p *fieldPath, problem, hint string) {
		errs = append(errs, Error{Path: p.String(), Problem: problem, Hint: hint})
	}}
	if root.kind != nodeMap {
		top.report(root, nil, "wants a map, has "+quoted(root), `{"apiVersion": "`+APIVersion+`", "objects": […]}`)
		return nil, errs.orNil()
	}
	members := top.members(root, []string{"apiVersion", "objects"})
	if v := top.constant(root, members["apiVersion"], "apiVersion", APIVersion); v != nil && v.value != APIVersion {
		top.report(v, (*fieldPath)(nil).field("apiVersion"), fmt.Sprintf("unknown version %q", clip(v.value)), APIVersion)
	}
	if o := members["objects"]; o != nil && o.kind == nodeList {
		objects = o
	} else {
		top.report(root, (*fieldPath)(nil).field("objects"), "wants a list", "")
	}
	l := loader{t: New(), places: map[objectKey]place{}, errs: errs}
	for i, o := range objects.items {
		l.object(fmt.Sprintf("objects[%d]", i), o, func(e Error) {
			if len(l.errs) < maxErrors {
				e.File = fmt.Sprintf("objects[%d]", i)
				l.errs = append(l.errs, e)
			}
		})
	}
	l.errs = append(l.errs, validate(l.t, l.places)...)
	if err := l.errs.orNil(); err != nil {
		return nil, err
	}
	return l.t, nil
}

// MarshalJSON is EncodeJSON.
func (t *Topology) MarshalJSON() ([]byte, error) { return EncodeJSON(t) }

// UnmarshalJSON is DecodeJSON.
func (t *Topology) UnmarshalJSON(data []byte) error {
	read, err := DecodeJSON(data)
	if err != nil {
		return err
	}
	for i := range kindModels {
		kindModels[i].move(read, t)
	}
	t.built.Store(nil)
	return nil
}

func writeJSON(b *bytes.Buffer, n *node) {
	switch n.kind {
	case nodeMap:
		b.WriteByte('{')
		for i, k := range n.keys {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(jsonText(k.name))
			b.WriteByte(':')
			writeJSON(b, n.items[i])
		}
		b.WriteByte('}')
	case nodeList:
		b.WriteByte('[')
		for i, item := range n.items {
			if i > 0 {
				b.WriteByte(',')
			}
			writeJSON(b, item)
		}
		b.WriteByte(']')
	case nodeString:
		b.WriteString(jsonText(n.value))
	default:
		b.WriteString(n.value)
	}
}

// maxJSONBytes bounds a whole topology in JSON: ten thousand machines with their workloads take some 20 MiB.
const maxJSONBytes = 256 << 20

// parseJSON reads one JSON value into a node. Repeated keys are kept, so that the decoder can refuse them.
func parseJSON(data []byte) (*node, error) {
	if len(data) > maxJSONBytes {
		return nil, Errors{{Problem: fmt.Sprintf("the JSON has %d bytes, more than %d", len(data), maxJSONBytes)}}
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	n, err := jsonNode(d, 0)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = fmt.Errorf("there is something after the value")
		}
	}
	if err != nil {
		return nil, Errors{{Problem: fmt.Sprintf("not JSON: %v, at byte %d", err, d.InputOffset())}}
	}
	return n, nil
}

func jsonNode(d *json.Decoder, depth int) (*node, error) {
	if depth > MaxDepth {
		return nil, fmt.Errorf("nested deeper than %d", MaxDepth)
	}
	tok, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch v := tok.(type) {
	case string:
		return &node{value: v}, nil
	case json.Number:
		kind := nodeInt
		if strings.ContainsAny(v.String(), ".eE") {
			kind = nodeFloat
		}
		return &node{kind: kind, value: v.String()}, nil
	case bool:
		return &node{kind: nodeBool, value: fmt.Sprint(v)}, nil
	case nil:
		return &node{kind: nodeNull, value: "null"}, nil
	}
	out := &node{kind: nodeList}
	if tok == json.Delim('{') {
		out.kind = nodeMap
	}
	for d.More() {
		if out.kind == nodeMap {
			k, err := d.Token()
			if err != nil {
				return nil, err
			}
			out.keys = append(out.keys, key{name: fmt.Sprint(k)})
		}
		item, err := jsonNode(d, depth+1)
		if err != nil {
			return nil, err
		}
		out.items = append(out.items, item)
	}
	_, err = d.Token()
	return out, err
}
