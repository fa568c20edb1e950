package topology

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Op is what a Change does to an object.
type Op string

const (
	OpAdd    Op = "add"
	OpRemove Op = "remove"
	OpChange Op = "change"
)

// Change is the difference between two topologies in one object.
type Change struct {
	Kind   Kind          `json:"kind"`
	Name   string        `json:"name"`
	Op     Op            `json:"op"`
	Fields []FieldChange `json:"fields,omitempty"` // every field that differs; for add and remove all of them
}

// FieldChange is the difference in one field. Old is empty for an added field, New for a removed one.
type FieldChange struct {
	Path string `json:"path"` // "spec.nics[1].mac"
	Op   Op     `json:"op"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Diff lists what turns old into new, in the order of Kinds and names; the fields in the order of the types.
// Items of lists are compared by their place.
func Diff(old, new *Topology) []Change {
	var out []Change
	for i := range kindModels {
		k := &kindModels[i]
		names := unique(append(k.names(old), k.names(new)...))
		for _, name := range names {
			if c, ok := k.diff(old, new, name); ok {
				out = append(out, c)
			}
		}
	}
	return out
}

func (k *kindModel) diff(old, new *Topology, name string) (Change, bool) {
	c := Change{Kind: k.kind, Name: name, Op: OpChange}
	var before, after []FieldChange
	om, os, inOld := k.get(old, name)
	nm, ns, inNew := k.get(new, name)
	if inOld {
		before = flatten(encode(k, om, os), nil, nil)
	} else {
		c.Op = OpAdd
	}
	if inNew {
		after = flatten(encode(k, nm, ns), nil, nil)
	} else {
		c.Op = OpRemove
	}
	c.Fields = diffFields(before, after)
	return c, len(c.Fields) > 0
}

// flatten lists the scalars of an object with their paths. The parts that name it are left out.
func flatten(n *node, p *fieldPath, out []FieldChange) []FieldChange {
	switch n.kind {
	case nodeMap:
		for i, k := range n.keys {
			at := p.field(k.name)
			if s := at.String(); s == "apiVersion" || s == "kind" || s == "metadata.name" {
				continue
			}
			out = flatten(n.items[i], at, out)
		}
	case nodeList:
		for i, item := range n.items {
			out = flatten(item, p.item(i), out)
		}
	default:
		out = append(out, FieldChange{Path: p.String(), New: n.value})
	}
	return out
}

// diffFields merges two lists of scalars. What is only in the old list stands before the next field the
// two have in common.
func diffFields(before, after []FieldChange) []FieldChange {
	was := make(map[string]string, len(before))
	for _, f := range before {
		was[f.Path] = f.New
	}
	is := make(map[string]bool, len(after))
	for _, f := range after {
		is[f.Path] = true
	}
	var out []FieldChange
	gone := func(until string) {
		for len(before) > 0 && before[0].Path != until {
			if !is[before[0].Path] {
				out = append(out, FieldChange{Path: before[0].Path, Op: OpRemove, Old: before[0].New})
			}
			before = before[1:]
		}
	}
	for _, f := range after {
		old, known := was[f.Path]
		if !known {
			out = append(out, FieldChange{Path: f.Path, Op: OpAdd, New: f.New})
			continue
		}
		gone(f.Path)
		if old != f.New {
			out = append(out, FieldChange{Path: f.Path, Op: OpChange, Old: old, New: f.New})
		}
	}
	gone("")
	return out
}

var marks = map[Op]string{OpAdd: "+", OpRemove: "-", OpChange: "~"}

// FormatDiff renders changes for people: a line for each object and one for each changed field, marked
// with + - ~ , and a summary at the end.
//
//	~ Machine a01
//	    ~ spec.nics[0].port: "p1" -> "p7"
//	+ Workload web5
//	1 to add, 1 to change, 0 to remove
func FormatDiff(changes []Change) string {
	if len(changes) == 0 {
		return "no differences\n"
	}
	var b bytes.Buffer
	count := map[Op]int{}
	for _, c := range changes {
		count[c.Op]++
		fmt.Fprintf(&b, "%s %s %s\n", marks[c.Op], c.Kind, c.Name)
		width := 0
		for _, f := range c.Fields {
			width = max(width, len(f.Path)+1)
		}
		for _, f := range c.Fields {
			values := slices.DeleteFunc([]string{show(f.Old, f.Op != OpAdd), show(f.New, f.Op != OpRemove)}, func(s string) bool { return s == "" })
			fmt.Fprintf(&b, "    %s %-*s %s\n", marks[f.Op], width, f.Path+":", strings.Join(values, " -> "))
		}
	}
	fmt.Fprintf(&b, "%d to add, %d to change, %d to remove\n", count[OpAdd], count[OpChange], count[OpRemove])
	return b.String()
}

func show(s string, there bool) string {
	if !there {
		return ""
	}
	return strconv.Quote(s)
}
