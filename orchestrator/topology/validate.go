package topology

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
)

// Validate checks a topology that was not read from text: every value against its tags, then everything
// Load checks. The error is an Errors.
func Validate(t *Topology) error {
	v := newValidator(t, nil)
	v.values()
	v.all()
	return v.errs.orNil()
}

// validate checks what only the whole shows: references, doubles, cabling, storage, workloads.
func validate(t *Topology, places map[objectKey]place) Errors {
	v := newValidator(t, places)
	v.all()
	return v.errs
}

// validator collects the errors of a whole topology. Objects that were not read whole take part as the
// target of references only, so that one mistake is not reported as several.
type validator struct {
	t      *Topology
	places map[objectKey]place
	order  map[Kind][]string // names of the whole objects of a kind, as they were written
	errs   Errors
}

func newValidator(t *Topology, places map[objectKey]place) *validator {
	v := &validator{t: t, places: places, order: map[Kind][]string{}}
	for _, k := range Kinds() {
		names := t.Names(k)
		names = slices.DeleteFunc(names, func(n string) bool { p, read := places[objectKey{k, n}]; return read && !p.whole })
		slices.SortStableFunc(names, func(a, b string) int {
			pa, pb := places[objectKey{k, a}], places[objectKey{k, b}]
			if pa.root == nil || pb.root == nil {
				return 0
			}
			return cmp.Or(cmp.Compare(pa.file, pb.file), cmp.Compare(pa.root.line, pb.root.line))
		})
		v.order[k] = names
	}
	return v
}

func (v *validator) all() {
	v.references()
	v.doubles()
	v.standing()
	v.networks()
	v.storage()
	v.images()
	v.workloads()
	v.dependencies()
	v.runbooks()
	v.policies()
	if len(v.errs) == 0 && v.readWhole() {
		v.fitting() // asks across objects, so it makes sense only when each of them is right
	}
}

func (v *validator) readWhole() bool {
	for _, p := range v.places {
		if !p.whole {
			return false
		}
	}
	return true
}

// fail reports a problem at a field of an object.
func (v *validator) fail(kind Kind, name, path, problem, hint string) {
	e := Error{Kind: kind, Name: name, Path: path, Problem: problem, Hint: hint}
	if p, ok := v.places[objectKey{kind, name}]; ok && p.root != nil {
		n := p.root.find(path)
		e.File, e.Line, e.Column = p.file, n.line, n.col
	}
	v.errs = append(v.errs, e)
}

// where names an object's field for the hint of another error.
func (v *validator) where(kind Kind, name, path string) string {
	out := string(kind) + " " + name + " " + path
	if p, ok := v.places[objectKey{kind, name}]; ok && p.root != nil {
		if n := p.root.find(path); n.line > 0 {
			out += " at " + p.file + ":" + strconv.Itoa(n.line)
		}
	}
	return out
}

// leaf is called for each text of an object; parent-less paths start at "metadata" or "spec".
type leaf func(f *fieldModel, value reflect.Value, p *fieldPath)

// walk visits the scalars under v, which f describes. Optional fields that are zero are passed over.
func walk(v reflect.Value, m *typeModel, f *fieldModel, p *fieldPath, visit leaf) {
	switch m.shape {
	case shapeStruct:
		for i := range m.fields {
			sub := &m.fields[i]
			if field := v.Field(sub.index); sub.required || !field.IsZero() {
				walk(field, sub.typ, sub, p.field(sub.name), visit)
			}
		}
	case shapeList:
		for i := range v.Len() {
			walk(v.Index(i), m.elem, f, p.item(i), visit)
		}
	default:
		visit(f, v, p)
	}
}

func (v *validator) each(visit func(k *kindModel, name string, m Meta, spec reflect.Value)) {
	for i := range kindModels {
		for _, name := range v.order[kindModels[i].kind] {
			m, spec, _ := kindModels[i].get(v.t, name)
			visit(&kindModels[i], name, m, spec)
		}
	}
}

// references reports every name that leads nowhere.
func (v *validator) references() {
	known := map[Kind]map[string]bool{}
	for i := range kindModels {
		names := map[string]bool{}
		for _, n := range kindModels[i].names(v.t) {
			names[n] = true
		}
		known[kindModels[i].kind] = names
	}
	v.each(func(k *kindModel, name string, _ Meta, spec reflect.Value) {
		walk(spec, k.spec, nil, nil, func(f *fieldModel, value reflect.Value, p *fieldPath) {
			if f.ref == "" || known[f.ref][value.String()] {
				return
			}
			v.fail(k.kind, name, "spec."+p.String(), fmt.Sprintf("there is no %s %q", f.ref, clip(value.String())),
				didYouMean(value.String(), v.t.Names(f.ref)))
		})
	})
}

// values holds each object against its tags, as the decoder does for text: by writing and reading it.
func (v *validator) values() {
	v.each(func(k *kindModel, name string, m Meta, spec reflect.Value) {
		if m.Name != name {
			v.fail(k.kind, name, "metadata.name", fmt.Sprintf("is %q under the key %q", clip(m.Name), clip(name)), "")
		}
		decodeObject(encode(k, m, spec), func(e Error) { v.errs = append(v.errs, e) })
	})
}
