package amt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// Limits of one answer's shape; its length is Config.MaxBody. AMT's own answers stay far below: the
// deepest is a reference inside an instance inside a Pull, ten levels.
const (
	maxDepth  = 32
	maxTokens = 65536
	maxText   = 16 << 10 // bytes in one element
)

// node is one XML element. Names are compared by their local part, since CIM property names are unique
// within their class; whether the element is of the right class is checked by namespace once.
type node struct {
	space, name string
	key         string // its Name attribute: what a w:Selector selects by
	text        string
	children    []*node
}

// decode reads one XML document into a tree, within the limits. Document types are refused: SOAP 1.2
// part 1 section 5 forbids them, and nothing good comes of entities.
func decode(raw []byte) (*node, error) {
	d := xml.NewDecoder(bytes.NewReader(raw))
	var (
		root  *node
		stack []*node
		count int
	)
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if count++; count > maxTokens {
			return nil, fmt.Errorf("more than %d tokens", maxTokens)
		}
		switch t := tok.(type) {
		case xml.Directive:
			return nil, errors.New("a document type is not allowed")
		case xml.StartElement:
			if len(stack) == maxDepth {
				return nil, fmt.Errorf("nested deeper than %d", maxDepth)
			}
			n := &node{space: t.Name.Space, name: t.Name.Local}
			for _, a := range t.Attr {
				if a.Name.Local == "Name" && a.Name.Space == "" {
					n.key = a.Value
				}
			}
			switch {
			case len(stack) > 0:
				parent := stack[len(stack)-1]
				parent.children = append(parent.children, n)
			case root != nil:
				return nil, errors.New("more than one root element")
			default:
				root = n
			}
			stack = append(stack, n)
		case xml.EndElement:
			n := stack[len(stack)-1]
			n.text = strings.TrimSpace(n.text)
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if len(stack) == 0 {
				continue
			}
			n := stack[len(stack)-1]
			if len(n.text)+len(t) > maxText {
				return nil, fmt.Errorf("more than %d bytes of text in one element", maxText)
			}
			n.text += string(t)
		}
	}
	if root == nil {
		return nil, errors.New("no element")
	}
	return root, nil
}

// child returns the first child of that name, or nil; it may be called on nil.
func (n *node) child(name string) *node {
	if n == nil {
		return nil
	}
	for _, c := range n.children {
		if c.name == name {
			return c
		}
	}
	return nil
}

// value returns the text of the child of that name, or "".
func (n *node) value(name string) string {
	if c := n.child(name); c != nil {
		return c.text
	}
	return ""
}

// number returns the child of that name as a CIM uint16; ok is false when it is absent or none.
func (n *node) number(name string) (v uint16, ok bool) {
	v, err := parseUint16(n.value(name))
	return v, err == nil
}

func parseUint16(s string) (uint16, error) {
	v, err := strconv.ParseUint(s, 10, 16)
	return uint16(v), err
}

// refers reads n as a WS-Addressing endpoint reference and tells whether it is to an instance of class;
// selectors are the keys of that instance.
func (n *node) refers(class string) (selectors map[string]string, ok bool) {
	params := n.child("ReferenceParameters")
	if params.value("ResourceURI") != uri(class) {
		return nil, false
	}
	selectors = map[string]string{}
	if set := params.child("SelectorSet"); set != nil {
		for _, s := range set.children {
			selectors[s.key] = s.text
		}
	}
	return selectors, true
}

// answer is the part of a WS-Management reply that callers look at.
type answer struct {
	relatesTo string
	body      *node // the one element in the SOAP body
}

// parseAnswer takes a SOAP 1.2 envelope apart. A SOAP fault becomes a fault of the kind that its code
// stands for.
func parseAnswer(raw []byte) (answer, error) {
	bad := func(why string, err error) (answer, error) {
		return answer{}, &fault.Error{Kind: fault.Internal, What: "answer is not the SOAP expected", Evidence: strings.TrimSpace(why + " " + excerpt(raw)), Err: err}
	}
	root, err := decode(raw)
	switch {
	case err != nil:
		return bad("", err)
	case root.space != nsSOAP || root.name != "Envelope":
		return bad("root is "+root.name, nil)
	}
	body := root.child("Body")
	if body == nil || len(body.children) != 1 {
		return bad("the body has not exactly one element", nil)
	}
	a := answer{relatesTo: root.child("Header").value("RelatesTo"), body: body.children[0]}
	if a.body.space == nsSOAP && a.body.name == "Fault" {
		return a, soapFault(a.body)
	}
	return a, nil
}

// soapFault gives a SOAP fault its kind by the innermost code: DSP0226 1.2 section 14.6 lists them.
func soapFault(n *node) *fault.Error {
	code := n.child("Code")
	word := code.value("Value")
	if sub := code.child("Subcode"); sub != nil {
		word = sub.value("Value")
	}
	if _, local, ok := strings.Cut(word, ":"); ok {
		word = local
	}
	out := &fault.Error{Kind: fault.Internal, What: "WS-Management fault", Evidence: clip(word)}
	if reason := n.child("Reason").value("Text"); reason != "" {
		out.Evidence += ": " + clip(reason)
	}
	switch word {
	case "AccessDenied":
		// Not the password, which was accepted: AMT says this to a user without the realm, and to all in
		// client control mode while nobody at the machine has consented.
		out.Kind, out.Next = fault.Unauthorized, "give the AMT user the remote control realm; in client control mode each boot change needs consent at the machine, in admin control mode none"
	case "DestinationUnreachable", "InvalidSelectors", "InvalidResourceURI":
		out.Kind = fault.NotFound
	case "ActionNotSupported", "UnsupportedFeature", "FilteringNotSupported":
		out.Kind = fault.Unsupported
	case "Concurrency", "QuotaLimit", "EndpointUnavailable":
		out.Kind = fault.Busy
	case "TimedOut":
		out.Kind = fault.Timeout
	case "SchemaValidationError", "InvalidRepresentation", "InvalidMessageInformationHeader", "InvalidParameter", "CannotProcessFilter":
		out.Kind = fault.Invalid
	case "AlreadyExists":
		out.Kind = fault.Conflict
	}
	return out
}

func excerpt(b []byte) string { return fmt.Sprintf("%q", clip(string(b))) }

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
