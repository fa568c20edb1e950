package topology

import (
	"bytes"
	"fmt"
	"strings"
)

// Doc explains a kind or a field.
type Doc struct {
	Path     string   `json:"path"`          // "machine.spec.nics.mac"
	Type     string   `json:"type"`          // "text", "list of map", "whole number", …
	Doc      string   `json:"doc,omitempty"` // what it means
	Required bool     `json:"required"`      // must be given
	Default  string   `json:"default,omitempty"`
	Example  string   `json:"example,omitempty"`
	Allowed  []string `json:"allowed,omitempty"` // each a bound: "one of: a, b", "1 to 4094", "name of a Rack"
	Fields   []Doc    `json:"fields,omitempty"`  // of a map, one level
}

// Explain says what the tags say of a kind ("machine") or a field ("machine.spec.nics.mac"). The kind is
// written in any case; spec may be left out. The error is an Errors with a hint for a misspelt part.
func Explain(path string) (Doc, error) {
	parts := strings.Split(strings.NewReplacer("[]", "").Replace(path), ".")
	k := kindOfAnyCase(parts[0])
	if k == nil {
		return Doc{}, Errors{{Problem: fmt.Sprintf("there is no kind %q", clip(parts[0])), Hint: explainHint(parts[0])}}
	}
	name := strings.ToLower(string(k.kind))
	d := Doc{Path: name, Type: "object", Doc: k.doc, Fields: []Doc{
		{Path: "metadata", Type: "map", Doc: "Its name and labels", Required: true},
		{Path: "spec", Type: "map", Doc: "What is wanted of it", Required: true},
	}}
	rest := parts[1:]
	if len(rest) == 0 {
		return d, nil
	}
	m := k.spec
	switch rest[0] {
	case "metadata":
		m, rest, name = metaModel, rest[1:], name+".metadata"
		d = Doc{Path: name, Type: "map", Doc: "Its name and labels", Required: true, Fields: fieldDocs(m)}
	case "spec":
		rest = rest[1:]
		fallthrough
	default:
		name += ".spec"
		d = Doc{Path: name, Type: "map", Doc: "What is wanted of it", Required: true, Fields: fieldDocs(m)}
	}
	for _, part := range rest {
		var f *fieldModel
		if m != nil {
			f = m.field(part)
		}
		if f == nil {
			hint := ""
			if m != nil {
				hint = didYouMean(part, m.fieldNames())
			}
			return Doc{}, Errors{{Problem: fmt.Sprintf("%s has no field %q", name, clip(part)), Hint: hint}}
		}
		name += "." + part
		d = f.explain()
		d.Path = name
		if m = leafModel(f.typ); m.shape != shapeStruct {
			m = nil
		} else {
			d.Fields = fieldDocs(m)
		}
	}
	return d, nil
}

// ExplainAll names every kind.
func ExplainAll() Doc {
	d := Doc{Path: "topology", Type: "documents", Doc: "One YAML document for each object: apiVersion, kind, metadata, spec"}
	for _, k := range kindModels {
		d.Fields = append(d.Fields, Doc{Path: strings.ToLower(string(k.kind)), Type: "object", Doc: k.doc})
	}
	return d
}

func kindOfAnyCase(s string) *kindModel {
	for i := range kindModels {
		if k := string(kindModels[i].kind); strings.EqualFold(k, s) || strings.EqualFold(plural(k), s) {
			return &kindModels[i]
		}
	}
	return nil
}

// plural is the English plural of a kind's name.
func plural(kind string) string {
	switch {
	case strings.HasSuffix(kind, "ch"):
		return kind + "es"
	case strings.HasSuffix(kind, "y"):
		return strings.TrimSuffix(kind, "y") + "ies"
	}
	return kind + "s"
}

func explainHint(word string) string {
	lower := make([]string, 0, len(kindModels))
	for _, k := range kindNames() {
		lower = append(lower, strings.ToLower(k))
	}
	if best := nearest(strings.ToLower(word), lower); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "kinds: " + strings.Join(kindNames(), ", ")
}

func fieldDocs(m *typeModel) []Doc {
	out := make([]Doc, len(m.fields))
	for i := range m.fields {
		out[i] = m.fields[i].explain()
		out[i].Path = m.fields[i].name
	}
	return out
}

// leafModel is what a list holds in the end.
func leafModel(m *typeModel) *typeModel {
	for m.shape == shapeList {
		m = m.elem
	}
	return m
}

func (f *fieldModel) explain() Doc {
	d := Doc{Type: typeName(f.typ), Doc: f.doc, Required: f.required, Default: f.def, Example: f.example}
	allow := func(s string) { d.Allowed = append(d.Allowed, s) }
	if f.ref != "" {
		allow("name of a " + string(f.ref))
	}
	if f.enum != nil {
		allow("one of: " + strings.Join(f.enum, ", "))
	}
	if f.form != "" {
		allow(f.form)
	}
	if b := f.bounds(); b != "" {
		allow(b)
	}
	if f.minItems > 0 {
		allow(fmt.Sprintf("at least %d item", f.minItems))
	}
	if form, ok := textForms[f.format]; ok {
		allow(form)
	}
	if form, ok := textForms[typeName(leafModel(f.typ))]; ok {
		allow(form)
	}
	return d
}

// textForms says in words what the formats and the types that parse themselves accept.
var textForms = map[string]string{
	"hostport": "host:port",
	"https":    "https://host[:port]",
	"socks5":   "socks5://host[:port]",
	"bmc":      "host, host:port, https://host[:port] or amt://host[:port]",
	"ovsdb":    "tcp:host:port, ssl:host:port or unix:/path",
	"MAC":      "six hex octets, e.g. 52:54:00:12:34:56, not a group address",
	"WWPN":     "eight hex octets, e.g. 20:00:00:25:b5:00:00:01",
	"IQN":      "an iSCSI name, e.g. iqn.2026-01.org.example:db1",
	"Digest":   "sha256: and 64 lower-case hex digits",
	"Duration": "a time span, e.g. 300ms, 90s, 15m",
	"Addr":     "an IP address",
	"Prefix":   "a subnet, e.g. 10.1.0.0/24",
}

func typeName(m *typeModel) string {
	switch m.shape {
	case shapeStruct:
		return "map"
	case shapeList:
		return "list of " + typeName(m.elem)
	case shapeMap:
		return "map of text"
	case shapeString:
		return "text"
	case shapeInt:
		return "whole number"
	case shapeBool:
		return "true or false"
	case shapeText:
		return m.goType.Name()
	}
	return ""
}

// String renders the explanation for a terminal.
func (d Doc) String() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s <%s>%s\n", d.Path, d.Type, requiredMark(d))
	indent := func(label, s string) {
		if s != "" {
			fmt.Fprintf(&b, "  %s%s\n", label, s)
		}
	}
	indent("", d.Doc)
	for _, a := range d.Allowed {
		indent("allowed: ", a)
	}
	indent("default: ", d.Default)
	indent("example: ", d.Example)
	if len(d.Fields) > 0 {
		b.WriteString("\nFIELDS\n")
	}
	for _, f := range d.Fields {
		fmt.Fprintf(&b, "  %s <%s>%s\n", f.Path, f.Type, requiredMark(f))
		for _, s := range append([]string{f.Doc}, f.Allowed...) {
			if s != "" {
				fmt.Fprintf(&b, "    %s\n", s)
			}
		}
		if f.Default != "" {
			fmt.Fprintf(&b, "    default: %s\n", f.Default)
		}
	}
	return b.String()
}

func requiredMark(d Doc) string {
	if d.Required {
		return " required"
	}
	return ""
}
