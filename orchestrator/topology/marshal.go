package topology

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml/token"
)

// Marshal writes the topology as YAML in canonical form: the kinds in the order of Kinds, objects by name,
// fields in the order of the types, optional zero values left out. Load reads it back to an equal
// topology, and marshalling that gives the same bytes.
func Marshal(t *Topology) ([]byte, error) {
	var b bytes.Buffer
	for n := range t.nodes {
		if b.Len() > 0 {
			b.WriteString("---\n")
		}
		writeYAML(&b, n, 0)
	}
	return b.Bytes(), nil
}

// MarshalObject writes one object as a YAML document in canonical form.
func MarshalObject(t *Topology, kind Kind, name string) ([]byte, error) {
	n, err := t.objectNode(kind, name)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	writeYAML(&b, n, 0)
	return b.Bytes(), nil
}

// nodes yields every object in canonical order.
func (t *Topology) nodes(yield func(*node) bool) {
	for i := range kindModels {
		k := &kindModels[i]
		for _, name := range t.Names(k.kind) {
			m, spec, _ := k.get(t, name)
			if !yield(encode(k, m, spec)) {
				return
			}
		}
	}
}

func (t *Topology) objectNode(kind Kind, name string) (*node, error) {
	k := kindModelOf(kind)
	if k == nil {
		return nil, Errors{{Problem: fmt.Sprintf("unknown kind %q", clip(string(kind))), Hint: didYouMean(string(kind), kindNames())}}
	}
	m, spec, ok := k.get(t, name)
	if !ok {
		return nil, Errors{{Problem: fmt.Sprintf("there is no %s %q", kind, clip(name)), Hint: didYouMean(name, t.Names(kind))}}
	}
	return encode(k, m, spec), nil
}

// Hash names the content of a topology: the SHA-256 of its canonical form, in hex. Equal topologies have
// equal hashes.
func Hash(t *Topology) string {
	h := sha256.New()
	var b bytes.Buffer
	for n := range t.nodes {
		b.Reset()
		writeJSON(&b, n)
		b.WriteByte('\n')
		h.Write(b.Bytes()) // a hash never fails
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Equal reports whether two topologies declare the same.
func Equal(a, b *Topology) bool { return Hash(a) == Hash(b) }

// writeYAML writes a map or list in block style at the given indentation, a scalar on the current line.
func writeYAML(b *bytes.Buffer, n *node, indent int) {
	pad := strings.Repeat(" ", indent)
	switch n.kind {
	case nodeMap:
		for i, k := range n.keys {
			b.WriteString(pad + yamlText(k.name) + ":")
			writeYAMLChild(b, n.items[i], indent)
		}
	case nodeList:
		for _, item := range n.items {
			if item.kind == nodeMap && len(item.keys) > 0 {
				var nested bytes.Buffer
				writeYAML(&nested, item, indent+2)
				b.WriteString(pad + "- ")
				b.Write(nested.Bytes()[indent+2:])
				continue
			}
			b.WriteString(pad + "-")
			writeYAMLChild(b, item, indent)
		}
	}
}

func writeYAMLChild(b *bytes.Buffer, n *node, indent int) {
	switch {
	case n.kind == nodeMap && len(n.keys) == 0:
		b.WriteString(" {}\n")
	case n.kind == nodeList && len(n.items) == 0:
		b.WriteString(" []\n")
	case n.kind == nodeMap, n.kind == nodeList:
		b.WriteByte('\n')
		writeYAML(b, n, indent+2)
	case n.kind == nodeString:
		b.WriteString(" " + yamlText(n.value) + "\n")
	default:
		b.WriteString(" " + n.value + "\n")
	}
}

// plain is text that no YAML reader, of version 1.1 or 1.2, takes for anything but text: it begins with a
// letter or a slash and has no ": ", " #" or indicator. Reserved words are quoted.
var plain = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9 ._/@=+-]*$`)

var (
	reserved = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null|nan|inf)$`)
	address  = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,2})?$`)
	duration = regexp.MustCompile(`^([0-9]{1,9}(ms|s|m|h))+$`)
	colons   = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:[A-Za-z0-9/][A-Za-z0-9:/._-]*[A-Za-z0-9]$`) // URLs, digests, IQNs
)

func yamlText(s string) string {
	switch {
	case word(s): // nearly all there is, without the patterns
		return s
	case address.MatchString(s), duration.MatchString(s), colons.MatchString(s):
		return s
	case plain.MatchString(s) && !strings.HasSuffix(s, " ") && !reserved.MatchString(s) && !token.IsNeedQuoted(s):
		return s
	}
	return jsonText(s)
}

// word reports a text that starts with a letter, goes on with letters, digits and a few marks, and that no
// reader takes for anything but a text.
func word(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		within := '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-' || c == '/'
		if !letter && (!within || i == 0) {
			return false
		}
	}
	switch strings.ToLower(s) {
	case "", "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity":
		return false
	}
	return true
}

// jsonText is a JSON string, which every YAML 1.2 reader takes as it is.
func jsonText(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil { // strings always encode
		panic(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
