package topology

import (
	"strconv"
	"strings"
)

// node is one YAML or JSON value with its place in the text. It is what every reader makes and what
// every writer writes, so that strictness and canonical order live in one place each.
type node struct {
	kind  nodeKind
	value string // of a scalar, as text
	keys  []key  // of a map, in the order written
	items []*node
	line  int
	col   int
}

type key struct {
	name      string
	line, col int
}

type nodeKind uint8

const (
	nodeString nodeKind = iota
	nodeInt
	nodeFloat
	nodeBool
	nodeNull
	nodeMap
	nodeList
)

// what names the kind for an error message.
func (n *node) what() string {
	switch n.kind {
	case nodeString:
		return "text"
	case nodeInt, nodeFloat:
		return "the number " + clip(n.value)
	case nodeBool:
		return n.value
	case nodeNull:
		return "nothing"
	case nodeMap:
		return "a map"
	case nodeList:
		return "a list"
	}
	return "an unknown value"
}

// child is the value of a map's key, or nil.
func (n *node) child(name string) *node {
	if n == nil || n.kind != nodeMap {
		return nil
	}
	for i, k := range n.keys {
		if k.name == name {
			return n.items[i]
		}
	}
	return nil
}

// find follows a path as fieldPath writes it, "spec.nics[1].mac", as far as it goes.
func (n *node) find(path string) *node {
	for path != "" {
		var next *node
		if path[0] == '[' {
			index, rest, _ := strings.Cut(path[1:], "]")
			path = strings.TrimPrefix(rest, ".")
			if i, err := strconv.Atoi(index); err == nil && n.kind == nodeList && i < len(n.items) {
				next = n.items[i]
			}
		} else {
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			next = n.child(path[:end])
			path = strings.TrimPrefix(path[end:], ".")
		}
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

func (n *node) add(name string, child *node) {
	n.keys = append(n.keys, key{name: name})
	n.items = append(n.items, child)
}

// clip shortens a value for an error message.
func clip(s string) string { return clipTo(s, 60) }

func clipTo(s string, most int) string {
	if len(s) <= most {
		return s
	}
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
