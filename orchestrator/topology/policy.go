package topology

import (
	"fmt"
	"reflect"
	"strconv"
)

// EffectivePolicy is the named policy with every value that is left out or zero replaced by its default.
// The defaults are the default tags of PolicySpec and nowhere else; Explain("policy") prints them. An
// empty or unknown name gives the built-in policy, which is all defaults.
func EffectivePolicy(t *Topology, name string) PolicySpec {
	p := t.Policies[name].Spec
	fillDefaults(reflect.ValueOf(&p).Elem(), policyModel)
	return p
}

var policyModel = modelOf(reflect.TypeFor[PolicySpec]())

func fillDefaults(v reflect.Value, m *typeModel) {
	for i := range m.fields {
		f := &m.fields[i]
		field := v.Field(f.index)
		switch {
		case f.typ.shape == shapeStruct:
			fillDefaults(field, f.typ)
		case f.def != "" && field.IsZero():
			field.Set(f.defaultValue())
		}
	}
}

// defaultValue reads the default tag. One that cannot be read is a mistake in this package.
func (f *fieldModel) defaultValue() reflect.Value {
	v := reflect.New(f.typ.goType).Elem()
	var err error
	switch f.typ.shape {
	case shapeString:
		v.SetString(f.def)
	case shapeInt:
		var n int64
		if n, err = strconv.ParseInt(f.def, 10, 64); err == nil {
			v.SetInt(n)
		}
	case shapeText:
		v, err = f.typ.parse(f.def)
	default:
		err = fmt.Errorf("a %v has no default", f.typ.goType)
	}
	if err != nil {
		panic(fmt.Sprintf("topology: default of %s: %v", f.name, err))
	}
	return v
}
