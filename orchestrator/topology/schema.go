package topology

import (
	"encoding/json"
	"reflect"
)

// SchemaID is the name of the JSON Schema of a document.
const SchemaID = "https://rerack.dev/schema/v1/topology.json"

// schema is one JSON Schema 2020-12 object. Its fields are written in this order.
type schema struct {
	Schema               string             `json:"$schema,omitempty"`
	ID                   string             `json:"$id,omitempty"`
	Ref                  string             `json:"$ref,omitempty"`
	Title                string             `json:"title,omitempty"`
	Description          string             `json:"description,omitempty"`
	OneOf                []*schema          `json:"oneOf,omitempty"`
	Type                 string             `json:"type,omitempty"`
	Const                string             `json:"const,omitempty"`
	Enum                 []string           `json:"enum,omitempty"`
	Pattern              string             `json:"pattern,omitempty"`
	Format               string             `json:"format,omitempty"`
	MinLength            int                `json:"minLength,omitempty"`
	MaxLength            int                `json:"maxLength,omitempty"`
	Minimum              *int64             `json:"minimum,omitempty"`
	Maximum              *int64             `json:"maximum,omitempty"`
	MinItems             int                `json:"minItems,omitempty"`
	Default              any                `json:"default,omitempty"`
	Examples             []any              `json:"examples,omitempty"`
	Items                *schema            `json:"items,omitempty"`
	Properties           map[string]*schema `json:"properties,omitempty"`
	PropertyNames        *schema            `json:"propertyNames,omitempty"`
	AdditionalProperties any                `json:"additionalProperties,omitempty"`
	Required             []string           `json:"required,omitempty"`
	Defs                 map[string]*schema `json:"$defs,omitempty"`
}

// JSONSchema is the JSON Schema 2020-12 of one YAML document: one of the kinds. Editors check and complete
// with it, for example yaml-language-server by a first line
//
//	# yaml-language-server: $schema=rerack.schema.json
//
// It says what the tags say; what only the whole topology shows is left to Load.
func JSONSchema() ([]byte, error) {
	root := &schema{
		Schema: "https://json-schema.org/draft/2020-12/schema", ID: SchemaID,
		Title: "Rerack topology", Description: "One document of a declared data centre", Type: "object",
		Defs: map[string]*schema{},
	}
	root.Defs["Metadata"] = structSchema(metaModel)
	for i := range kindModels {
		k := &kindModels[i]
		root.Defs[string(k.kind)] = k.schema()
		root.OneOf = append(root.OneOf, &schema{Ref: "#/$defs/" + string(k.kind)})
	}
	b, err := json.MarshalIndent(root, "", "  ")
	return append(b, '\n'), err
}

func (k *kindModel) schema() *schema {
	spec := structSchema(k.spec)
	out := &schema{
		Title: string(k.kind), Description: k.doc, Type: "object",
		Properties: map[string]*schema{
			"apiVersion": {Const: APIVersion},
			"kind":       {Const: string(k.kind)},
			"metadata":   {Ref: "#/$defs/Metadata"},
			"spec":       spec,
		},
		Required:             []string{"apiVersion", "kind", "metadata"},
		AdditionalProperties: false,
	}
	if len(spec.Required) > 0 {
		out.Required = append(out.Required, "spec")
	}
	return out
}

func structSchema(m *typeModel) *schema {
	out := &schema{Type: "object", Properties: map[string]*schema{}, AdditionalProperties: false}
	for i := range m.fields {
		f := &m.fields[i]
		out.Properties[f.name] = f.schema()
		if f.required {
			out.Required = append(out.Required, f.name)
		}
	}
	return out
}

// schema describes a field: its bounds go to the items of a list and to the values of a map.
func (f *fieldModel) schema() *schema {
	out := f.typeSchema(f.typ)
	out.Description = f.doc
	if f.ref != "" {
		out.Description += " (name of a " + string(f.ref) + ")"
	}
	out.MinItems = f.minItems
	if f.def != "" {
		out.Default = f.def
		if v := f.defaultValue(); f.typ.shape == shapeInt {
			out.Default = v.Int()
		}
	}
	if f.example != "" {
		out.Examples = []any{f.example}
		if f.typ.shape == shapeList {
			out.Examples = []any{[]string{f.example}}
		}
	}
	return out
}

func (f *fieldModel) typeSchema(m *typeModel) *schema {
	switch m.shape {
	case shapeStruct:
		return structSchema(m)
	case shapeList:
		return &schema{Type: "array", Items: f.typeSchema(m.elem)}
	case shapeMap:
		out := &schema{Type: "object", AdditionalProperties: f.text(&schema{Type: "string", MaxLength: maxText})}
		if f.keys != nil {
			out.PropertyNames = &schema{Pattern: f.keys.String()}
		}
		return out
	case shapeInt:
		return &schema{Type: "integer", Minimum: f.min, Maximum: f.max}
	case shapeBool:
		return &schema{Type: "boolean"}
	default:
		return f.text(&schema{Type: "string", MinLength: 1, MaxLength: maxText, Pattern: textPattern(m.goType)})
	}
}

// text adds the bounds of a text field.
func (f *fieldModel) text(s *schema) *schema {
	s.Enum = f.enum
	if f.pattern != nil {
		s.Pattern = f.pattern.String()
	}
	switch f.format {
	case "https", "socks5":
		s.Pattern = "^" + f.format + "://[^/?#@]+/?$"
	case "hostport":
		s.Pattern = "^.+:[0-9]{1,5}$"
	case "ovsdb":
		s.Pattern = "^(tcp:.+:[0-9]{1,5}|ssl:.+:[0-9]{1,5}|unix:/.+)$"
	}
	return s
}

// textPattern says roughly what a type that parses itself accepts; Load is exact.
func textPattern(t reflect.Type) string {
	octets := func(n string) string { return "^[0-9A-Fa-f]{2}([:-]?[0-9A-Fa-f]{2}){" + n + "}$" }
	switch t {
	case reflect.TypeFor[MAC]():
		return octets("5")
	case reflect.TypeFor[WWPN]():
		return octets("7")
	case reflect.TypeFor[IQN]():
		return iqnForm.String()
	case reflect.TypeFor[Digest]():
		return digestForm.String()
	case reflect.TypeFor[Duration]():
		return "^([0-9]+(\\.[0-9]+)?(ns|us|ms|s|m|h))+$|^0$"
	case addrType:
		return "^[0-9A-Fa-f:.]+$"
	case prefixType:
		return "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"
	}
	return ""
}
