package topology

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// fieldPath is the way from an object to one of its fields, made into text only when it is shown.
type fieldPath struct {
	parent *fieldPath
	name   string // of a field or map key; "" for a list item
	index  int
}

func (p *fieldPath) field(name string) *fieldPath { return &fieldPath{parent: p, name: name} }
func (p *fieldPath) item(i int) *fieldPath        { return &fieldPath{parent: p, index: i} }

func (p *fieldPath) String() string {
	if p == nil {
		return ""
	}
	head := p.parent.String()
	switch {
	case p.name == "":
		return head + "[" + strconv.Itoa(p.index) + "]"
	case head == "":
		return p.name
	}
	return head + "." + p.name
}

// decoded is one object read from a document.
type decoded struct {
	model *kindModel
	meta  Meta
	spec  reflect.Value
	whole bool // nothing was wrong with it
}

// decodeObject reads the object in root. It returns false when not even kind and name are known. An object
// with errors is returned all the same, so that references to it do not count as dangling.
func decodeObject(root *node, report func(Error)) (decoded, bool) {
	out := decoded{whole: true}
	var kind Kind
	var name string
	d := decoder{report: func(n *node, p *fieldPath, problem, hint string) {
		out.whole = false
		report(Error{Line: n.line, Column: n.col, Kind: kind, Name: name, Path: p.String(), Problem: problem, Hint: hint})
	}}
	if root.kind != nodeMap {
		d.report(root, nil, "wants a map, has "+quoted(root), "apiVersion: "+APIVersion+", kind, metadata, spec")
		return out, false
	}
	if k := root.child("kind"); k != nil && kindModelOf(Kind(k.value)) != nil {
		kind = Kind(k.value)
	}
	if n := root.child("metadata").child("name"); n != nil && n.kind == nodeString {
		name = clip(n.value)
	}
	top := d.members(root, []string{"apiVersion", "kind", "metadata", "spec"})
	meta, spec := top["metadata"], top["spec"]
	if n := d.constant(root, top["kind"], "kind", "e.g. kind: Machine"); n != nil {
		if out.model = kindModelOf(Kind(n.value)); out.model == nil {
			hint := didYouMean(n.value, kindNames())
			if hint == "" {
				hint = "kinds: " + strings.Join(kindNames(), ", ")
			}
			d.report(n, (*fieldPath)(nil).field("kind"), "unknown kind "+strconv.Quote(clip(n.value)), hint)
		}
	}
	if n := d.constant(root, top["apiVersion"], "apiVersion", "apiVersion: "+APIVersion); n != nil && n.value != APIVersion {
		d.report(n, (*fieldPath)(nil).field("apiVersion"), "unknown version "+strconv.Quote(clip(n.value)), "apiVersion: "+APIVersion)
	}
	if out.model == nil {
		return out, false
	}
	at := (*fieldPath)(nil)
	if meta == nil {
		d.report(root, at.field("metadata"), "is required", "metadata: {name: …}")
		return out, false
	}
	d.into(reflect.ValueOf(&out.meta).Elem(), metaModel, nil, meta, at.field("metadata"))
	if spec == nil {
		spec = &node{kind: nodeMap, line: root.line, col: root.col}
	}
	out.spec = reflect.New(out.model.spec.goType).Elem()
	d.into(out.spec, out.model.spec, nil, spec, at.field("spec"))
	return out, out.meta.Name != ""
}

// decoder fills Go values from nodes and reports everything that does not fit.
type decoder struct {
	report func(n *node, p *fieldPath, problem, hint string)
}

// into decodes n into v, which f describes. f bounds each item of a list or map.
func (d *decoder) into(v reflect.Value, m *typeModel, f *fieldModel, n *node, p *fieldPath) {
	if n.kind == nodeNull {
		d.report(n, p, "has no value", "give it one or remove the line")
		return
	}
	switch m.shape {
	case shapeStruct:
		d.structure(v, m, n, p)
	case shapeList:
		d.list(v, m, f, n, p)
	case shapeMap:
		d.stringMap(v, f, n, p)
	case shapeString:
		if s, ok := d.text(n, p); ok && d.checked(f, s, n, p) {
			v.SetString(s)
		}
	case shapeText:
		d.parsed(v, m, f, n, p)
	case shapeInt:
		d.integer(v, f, n, p)
	case shapeBool:
		if n.kind != nodeBool || n.value != "true" && n.value != "false" {
			d.report(n, p, "wants true or false, has "+quoted(n), "")
			return
		}
		v.SetBool(n.value == "true")
	}
}

// members picks the values of a document's own keys.
func (d *decoder) members(root *node, known []string) map[string]*node {
	out := map[string]*node{}
	seen := map[string]key{}
	for i, k := range root.keys {
		at, p := &node{line: k.line, col: k.col}, (*fieldPath)(nil).field(clip(k.name))
		first, twice := seen[k.name]
		switch {
		case !slices.Contains(known, k.name):
			d.report(at, p, "unknown field", didYouMean(k.name, known))
		case twice:
			d.report(at, p, "is given twice", firstAt(first))
		default:
			seen[k.name], out[k.name] = k, root.items[i]
		}
	}
	return out
}

// constant is n when it is a text that is there.
func (d *decoder) constant(root, n *node, name, hint string) *node {
	p := (*fieldPath)(nil).field(name)
	if n == nil {
		d.report(root, p, "is required", hint)
		return nil
	}
	if n.kind != nodeString {
		d.report(n, p, "wants text, has "+quoted(n), hint)
		return nil
	}
	return n
}

func (d *decoder) structure(v reflect.Value, m *typeModel, n *node, p *fieldPath) {
	if n.kind != nodeMap {
		d.report(n, p, "wants a map, has "+quoted(n), "fields: "+strings.Join(m.fieldNames(), ", "))
		return
	}
	seen, meant := make(map[string]key, len(n.keys)), map[string]bool{}
	for i, k := range n.keys {
		at := &node{line: k.line, col: k.col}
		f := m.field(k.name)
		if f == nil {
			d.report(at, p.field(clip(k.name)), "unknown field", didYouMean(k.name, m.fieldNames()))
			meant[nearest(k.name, m.fieldNames())] = true
			continue
		}
		if first, twice := seen[k.name]; twice {
			d.report(at, p.field(k.name), "is given twice", firstAt(first))
			continue
		}
		seen[k.name] = k
		d.into(v.Field(f.index), f.typ, f, n.items[i], p.field(k.name))
	}
	for i := range m.fields {
		f := &m.fields[i]
		if _, ok := seen[f.name]; f.required && !ok && !meant[f.name] { // a misspelt field is one mistake, not two
			d.report(n, p.field(f.name), "is required", f.doc)
		}
	}
}

func firstAt(k key) string {
	if k.line == 0 {
		return "remove one"
	}
	return fmt.Sprintf("first on line %d", k.line)
}

func (d *decoder) list(v reflect.Value, m *typeModel, f *fieldModel, n *node, p *fieldPath) {
	if n.kind != nodeList {
		hint := ""
		if m.elem.shape != shapeStruct && n.kind == nodeString {
			hint = "write [" + clip(n.value) + "]"
		}
		d.report(n, p, "wants a list, has "+quoted(n), hint)
		return
	}
	if len(n.items) < f.minItems {
		d.report(n, p, fmt.Sprintf("wants at least %d item", f.minItems), f.doc)
	}
	if len(n.items) == 0 {
		return
	}
	out := reflect.MakeSlice(m.goType, len(n.items), len(n.items))
	for i, item := range n.items {
		d.into(out.Index(i), m.elem, f, item, p.item(i))
	}
	v.Set(out)
}

func (d *decoder) stringMap(v reflect.Value, f *fieldModel, n *node, p *fieldPath) {
	if n.kind != nodeMap {
		d.report(n, p, "wants a map of text to text, has "+quoted(n), "")
		return
	}
	if len(n.keys) == 0 {
		return
	}
	out := make(map[string]string, len(n.keys))
	for i, k := range n.keys {
		at := &node{line: k.line, col: k.col}
		here := p.field(clip(k.name))
		if _, twice := out[k.name]; twice {
			d.report(at, here, "is given twice", "remove one")
			continue
		}
		if problem := keyProblem(f, k.name); problem != "" {
			d.report(at, here, problem, "")
			continue
		}
		out[k.name] = ""
		if s, ok := d.text(n.items[i], here); ok && d.checked(f, s, n.items[i], here) {
			out[k.name] = s
		}
	}
	v.Set(reflect.ValueOf(out))
}

func (d *decoder) text(n *node, p *fieldPath) (string, bool) {
	switch n.kind {
	case nodeString:
		return n.value, true
	case nodeInt, nodeFloat, nodeBool:
		d.report(n, p, "wants text, has "+quoted(n), "put it in quotes: "+strconv.Quote(clip(n.value)))
	default:
		d.report(n, p, "wants text, has "+quoted(n), "")
	}
	return "", false
}

func (d *decoder) checked(f *fieldModel, s string, n *node, p *fieldPath) bool {
	problem, hint := f.checkText(s)
	if problem != "" {
		d.report(n, p, problem, hint)
	}
	return problem == ""
}

func (d *decoder) parsed(v reflect.Value, m *typeModel, f *fieldModel, n *node, p *fieldPath) {
	s, ok := d.text(n, p)
	if !ok {
		return
	}
	out, problem, hint := parseText(m, f, s)
	if problem != "" {
		d.report(n, p, problem, hint)
		return
	}
	v.Set(out)
}

func (d *decoder) integer(v reflect.Value, f *fieldModel, n *node, p *fieldPath) {
	i, err := strconv.ParseInt(n.value, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		d.report(n, p, clip(n.value)+" is too large", f.bounds())
		return
	}
	decimal := err == nil && strconv.FormatInt(i, 10) == n.value
	if n.kind != nodeInt && (n.kind != nodeString || err != nil || decimal) {
		hint := ""
		if n.kind == nodeString && decimal {
			hint = "remove the quotes"
		}
		d.report(n, p, "wants a whole number, has "+quoted(n), hint)
		return
	}
	if !decimal {
		d.report(n, p, clip(n.value)+" is not a plain decimal number", "digits only, no leading zero")
		return
	}
	if problem, hint := f.checkInt(i); problem != "" {
		d.report(n, p, problem, hint)
		return
	}
	if v.OverflowInt(i) {
		d.report(n, p, n.value+" is too large", "")
		return
	}
	v.SetInt(i)
}

func quoted(n *node) string {
	if n.kind == nodeString {
		return "the text " + strconv.Quote(clip(n.value))
	}
	return n.what()
}
