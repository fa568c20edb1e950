package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"sigs.k8s.io/yaml"

	"rerack.dev/rerack/internal/fault"
)

// show prints v as the user asked: JSON, YAML, or the table that people read.
func (g *global) show(w io.Writer, v any, table func(io.Writer)) error {
	switch g.output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	case "table":
		t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		table(t)
		return t.Flush()
	}
	return g.checkOutput()
}

// checkOutput refuses what show does not know, before anything is done.
func (g *global) checkOutput() error {
	switch g.output {
	case "table", "json", "yaml":
		return nil
	}
	return &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("output %q", g.output), Next: "use -o table, json or yaml"}
}

func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, c)
	}
	fmt.Fprintln(w)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
