package topology

import (
	"encoding"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// shape is the YAML form a type takes.
type shape uint8

const (
	shapeStruct shape = iota
	shapeList
	shapeMap    // string to string
	shapeString // any string kind without a parser of its own
	shapeText   // a type that parses itself: MAC, Digest, Duration, netip.Addr
	shapeInt
	shapeBool
)

// typeModel is what the struct tags say of one type.
type typeModel struct {
	shape  shape
	goType reflect.Type
	fields []fieldModel // shapeStruct
	elem   *typeModel   // shapeList
	parse  func(string) (reflect.Value, error)
}

// fieldModel is what the struct tags say of one field. On a list or map the bounds hold for each item.
type fieldModel struct {
	name     string
	index    int
	typ      *typeModel
	required bool
	doc      string
	example  string
	def      string
	ref      Kind
	enum     []string
	min, max *int64
	minItems int
	pattern  *regexp.Regexp
	keys     *regexp.Regexp
	form     string
	format   string
}

func (m *typeModel) field(name string) *fieldModel {
	for i := range m.fields {
		if m.fields[i].name == name {
			return &m.fields[i]
		}
	}
	return nil
}

func (m *typeModel) fieldNames() []string {
	out := make([]string, len(m.fields))
	for i, f := range m.fields {
		out[i] = f.name
	}
	return out
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

// modelOf reads a type's tags. A tag that cannot be read is a mistake in this package and panics, which
// every test of the package would show.
func modelOf(t reflect.Type) *typeModel {
	m := &typeModel{goType: t}
	switch {
	case reflect.PointerTo(t).Implements(textUnmarshaler):
		m.shape, m.parse = shapeText, textParser(t)
	case t.Kind() == reflect.Struct:
		m.shape = shapeStruct
		for i := range t.NumField() {
			m.fields = append(m.fields, fieldOf(t.Field(i), i))
		}
	case t.Kind() == reflect.Slice:
		m.shape, m.elem = shapeList, modelOf(t.Elem())
	case t == reflect.TypeFor[map[string]string]():
		m.shape = shapeMap
	case t.Kind() == reflect.String:
		m.shape = shapeString
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64:
		m.shape = shapeInt
	case t.Kind() == reflect.Bool:
		m.shape = shapeBool
	default:
		panic(fmt.Sprintf("topology: no YAML form for %v", t))
	}
	return m
}

func fieldOf(sf reflect.StructField, index int) fieldModel {
	name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
	f := fieldModel{
		name: name, index: index, typ: modelOf(sf.Type),
		required: !strings.Contains(options, "omit"),
		doc:      sf.Tag.Get("doc"), example: sf.Tag.Get("example"), def: sf.Tag.Get("default"),
		ref: Kind(sf.Tag.Get("ref")), form: sf.Tag.Get("form"), format: sf.Tag.Get("format"),
		min: intTag(sf, "minimum"), max: intTag(sf, "maximum"),
		pattern: patternTag(sf, "pattern"), keys: patternTag(sf, "keys"),
	}
	if e := sf.Tag.Get("enum"); e != "" {
		f.enum = strings.Split(e, ",")
	}
	if n := intTag(sf, "minItems"); n != nil {
		f.minItems = int(*n)
	}
	return f
}

func intTag(sf reflect.StructField, key string) *int64 {
	s, ok := sf.Tag.Lookup(key)
	if !ok {
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("topology: tag %s of %s: %v", key, sf.Name, err))
	}
	return &n
}

func patternTag(sf reflect.StructField, key string) *regexp.Regexp {
	s, ok := sf.Tag.Lookup(key)
	if !ok {
		return nil
	}
	return regexp.MustCompile(s)
}

func textParser(t reflect.Type) func(string) (reflect.Value, error) {
	return func(s string) (reflect.Value, error) {
		v := reflect.New(t)
		err := v.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s))
		return v.Elem(), err
	}
}

// kindModel ties a kind to its place in a Topology.
type kindModel struct {
	kind  Kind
	doc   string
	spec  *typeModel
	names func(*Topology) []string                            // in no order
	get   func(*Topology, string) (Meta, reflect.Value, bool) // the spec, not addressable
	put   func(*Topology, Meta, reflect.Value)
	move  func(from, to *Topology) // the whole map
}

// kindOf builds a kindModel around the map a Topology keeps the kind in.
func kindOf[S any](kind Kind, doc string, in func(*Topology) *map[string]Object[S]) kindModel {
	return kindModel{
		kind: kind, doc: doc, spec: modelOf(reflect.TypeFor[S]()),
		names: func(t *Topology) []string {
			out := make([]string, 0, len(*in(t)))
			for name := range *in(t) {
				out = append(out, name)
			}
			return out
		},
		get: func(t *Topology, name string) (Meta, reflect.Value, bool) {
			o, ok := (*in(t))[name]
			if !ok {
				return Meta{}, reflect.Value{}, false
			}
			return o.Meta, reflect.ValueOf(&o.Spec).Elem(), true
		},
		put: func(t *Topology, m Meta, spec reflect.Value) {
			(*in(t))[m.Name] = Object[S]{Kind: kind, Meta: m, Spec: spec.Interface().(S)}
		},
		move: func(from, to *Topology) { *in(to) = *in(from) },
	}
}

// metaModel and kindModels are built once from the types and never changed. The order of the kinds is
// that of every listing: what others point to comes first.
var (
	metaModel  = modelOf(reflect.TypeFor[Meta]())
	kindModels = []kindModel{
		kindOf(KindSite, "A place with its own control plane links", func(t *Topology) *map[string]Site { return &t.Sites }),
		kindOf(KindPolicy, "Every waiting time and threshold of detection, fencing and recovery", func(t *Topology) *map[string]Policy { return &t.Policies }),
		kindOf(KindPowerFeed, "One electrical feed: a failure domain shared by racks", func(t *Topology) *map[string]PowerFeed { return &t.PowerFeeds }),
		kindOf(KindRack, "A rack: the usual failure domain", func(t *Topology) *map[string]Rack { return &t.Racks }),
		kindOf(KindHardwareType, "What all machines of one model have in common", func(t *Topology) *map[string]HardwareType { return &t.HardwareTypes }),
		kindOf(KindSwitch, "One network switch", func(t *Topology) *map[string]Switch { return &t.Switches }),
		kindOf(KindNetwork, "A VLAN with its subnet", func(t *Topology) *map[string]Network { return &t.Networks }),
		kindOf(KindFabric, "One Fibre Channel fabric", func(t *Topology) *map[string]Fabric { return &t.Fabrics }),
		kindOf(KindArray, "One storage system", func(t *Topology) *map[string]Array { return &t.Arrays }),
		kindOf(KindVolume, "A LUN", func(t *Topology) *map[string]Volume { return &t.Volumes }),
		kindOf(KindImage, "What to boot", func(t *Topology) *map[string]Image { return &t.Images }),
		kindOf(KindMachine, "One physical server", func(t *Topology) *map[string]Machine { return &t.Machines }),
		kindOf(KindMachinePool, "Machines grouped by label, and what they may be used for", func(t *Topology) *map[string]MachinePool { return &t.MachinePools }),
		kindOf(KindWorkload, "A server that somebody needs, independent of hardware", func(t *Topology) *map[string]Workload { return &t.Workloads }),
		kindOf(KindRunbook, "A named recovery procedure", func(t *Topology) *map[string]Runbook { return &t.Runbooks }),
	}
)

// Kinds lists all kinds in the order of every listing.
func Kinds() []Kind {
	out := make([]Kind, len(kindModels))
	for i, k := range kindModels {
		out[i] = k.kind
	}
	return out
}

func kindModelOf(k Kind) *kindModel {
	for i := range kindModels {
		if kindModels[i].kind == k {
			return &kindModels[i]
		}
	}
	return nil
}

func kindNames() []string {
	out := make([]string, len(kindModels))
	for i, k := range kindModels {
		out[i] = string(k.kind)
	}
	return out
}
