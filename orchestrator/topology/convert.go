package topology

import (
	"fmt"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// converter turns the library's tree into ours.
type converter struct {
	fail  func(line, col int, problem, hint string)
	above int
	ok    bool
}

func (c *converter) refuse(t *token.Token, problem string) *node {
	c.ok = false
	c.fail(t.Position.Line, t.Position.Column, problem, "")
	return nil
}

func (c *converter) at(t *token.Token, kind nodeKind, value string) *node {
	return &node{kind: kind, value: value, line: c.above + t.Position.Line, col: t.Position.Column}
}

func (c *converter) convert(n ast.Node, depth int) *node {
	t := n.GetToken()
	if depth > MaxDepth {
		return c.refuse(t, fmt.Sprintf("nested deeper than %d", MaxDepth))
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		out := c.at(t, nodeMap, "")
		for _, v := range n.Values {
			c.pair(out, v, depth)
		}
		if !n.IsFlowStyle && len(out.keys) > 0 {
			out.line, out.col = out.keys[0].line, out.keys[0].col
		}
		return out
	case *ast.MappingValueNode:
		out := c.at(t, nodeMap, "")
		c.pair(out, n, depth)
		if len(out.keys) > 0 {
			out.line, out.col = out.keys[0].line, out.keys[0].col
		}
		return out
	case *ast.SequenceNode:
		out := c.at(t, nodeList, "")
		for _, v := range n.Values {
			if item := c.convert(v, depth+1); item != nil {
				out.items = append(out.items, item)
			}
		}
		return out
	case *ast.StringNode:
		return c.at(t, nodeString, n.Value)
	case *ast.LiteralNode:
		return c.at(t, nodeString, n.Value.Value)
	case *ast.IntegerNode:
		return c.at(t, nodeInt, t.Value)
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return c.at(t, nodeFloat, t.Value)
	case *ast.BoolNode:
		return c.at(t, nodeBool, t.Value)
	case *ast.NullNode:
		return c.at(t, nodeNull, t.Value)
	}
	return c.refuse(t, fmt.Sprintf("a %s is refused here", n.Type()))
}

// pair adds one key and its value to a map.
func (c *converter) pair(out *node, v *ast.MappingValueNode, depth int) {
	t := v.Key.GetToken()
	var name string
	switch k := v.Key.(type) {
	case *ast.StringNode:
		name = k.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode, *ast.InfinityNode, *ast.NanNode:
		name = t.Value
	default:
		c.refuse(t, "a key must be plain text")
		return
	}
	if value := c.convert(v.Value, depth+1); value != nil {
		out.keys = append(out.keys, key{name: name, line: c.above + t.Position.Line, col: t.Position.Column})
		out.items = append(out.items, value)
	}
}
