package main

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/topology"
)

// maxFile is the loader's own limit; a larger file is refused before it is read.
const maxFile = 4 << 20

func topologyCommands(g *global) []*cobra.Command {
	cmds := []*cobra.Command{validateCommand(g), planCommand(g), applyCommand(g), diffCommand(g), getCommand(g),
		describeCommand(g), exportCommand(g), explainCommand(g), schemaCommand(), revisionsCommand(g), rollbackCommand(g)}
	for _, c := range cmds {
		c.GroupID = "topology"
	}
	return cmds
}

// readFiles collects the YAML files named, and those in folders named, in name order.
func readFiles(paths []string) ([]api.File, error) {
	var out []api.File
	read := func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return &fault.Error{Kind: fault.Invalid, What: "read topology", Err: err}
		}
		if info.Size() > maxFile {
			return &fault.Error{Kind: fault.Invalid, Where: path, What: "larger than 4 MiB", Next: "split it into several files"}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return &fault.Error{Kind: fault.Invalid, What: "read topology", Err: err}
		}
		out = append(out, api.File{Name: path, Data: string(b)})
		return nil
	}
	for _, p := range paths {
		if p == "-" {
			b, err := io.ReadAll(io.LimitReader(os.Stdin, maxFile+1))
			if err != nil || len(b) > maxFile {
				return nil, &fault.Error{Kind: fault.Invalid, Where: "standard input", What: "cannot be read, or is larger than 4 MiB", Err: err}
			}
			out = append(out, api.File{Name: "standard input", Data: string(b)})
			continue
		}
		info, err := os.Stat(p)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "read topology", Err: err, Next: "name a YAML file or a folder"}
		}
		if !info.IsDir() {
			if err := read(p); err != nil {
				return nil, err
			}
			continue
		}
		err = filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && (strings.HasSuffix(path, ".yaml") || strings.HasSuffix(path, ".yml")) {
				return read(path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, &fault.Error{Kind: fault.Invalid, What: "no YAML files in " + strings.Join(paths, ", ")}
	}
	return out, nil
}

func load(files []api.File) (*topology.Topology, error) {
	in := make([]topology.File, len(files))
	for i, f := range files {
		in[i] = topology.File{Name: f.Name, Data: []byte(f.Data)}
	}
	return topology.Load(in)
}

func validateCommand(*global) *cobra.Command {
	return &cobra.Command{Use: "validate PATH...", Short: "Check topology files; needs no server", Args: cobra.MinimumNArgs(1),
		Example: "  rerack validate topology/",
		RunE: func(c *cobra.Command, args []string) error {
			files, err := readFiles(args)
			if err != nil {
				return err
			}
			t, err := load(files)
			if err != nil {
				return exitCode{exitUsage, err}
			}
			fmt.Fprintf(c.OutOrStdout(), "%d objects in %d files are valid\n", t.Len(), len(files))
			return nil
		}}
}

func planCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "plan PATH...", Short: "Show what apply would change", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			files, err := readFiles(args)
			if err != nil {
				return err
			}
			cl, err := g.client()
			if err != nil {
				return err
			}
			var out api.TopologyResult
			if err := cl.call(c.Context(), http.MethodPost, "/topology/plan", api.TopologyRequest{Files: files}, &out); err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), out, func(w io.Writer) { printChanges(w, out) })
		}}
}

func printChanges(w io.Writer, r api.TopologyResult) {
	if len(r.Changes) == 0 {
		fmt.Fprintf(w, "no changes against revision %d\n", r.Revision)
		return
	}
	fmt.Fprint(w, r.Text)
	fmt.Fprintf(w, "%d changes\n", len(r.Changes))
}

func applyCommand(g *global) *cobra.Command {
	var message string
	var expect int
	c := &cobra.Command{Use: "apply PATH...", Short: "Make the files the present topology", Args: cobra.MinimumNArgs(1),
		Long: "Make the files the present topology. The files are the whole: what they do not name is removed.\nApplying the same again changes nothing.",
		RunE: func(c *cobra.Command, args []string) error {
			files, err := readFiles(args)
			if err != nil {
				return err
			}
			cl, err := g.client()
			if err != nil {
				return err
			}
			q := api.TopologyRequest{Files: files, Message: message}
			if c.Flags().Changed("expect") {
				q.Expect = &expect
			}
			var out api.TopologyResult
			if err := cl.call(c.Context(), http.MethodPost, "/topology/apply", q, &out); err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), out, func(w io.Writer) {
				if !out.Applied {
					fmt.Fprintf(w, "no changes, revision %d stays\n", out.Revision)
					return
				}
				fmt.Fprintf(w, "applied as revision %d: %d changes", out.Revision, len(out.Changes))
				if out.Adopted > 0 {
					fmt.Fprintf(w, ", %d workloads adopted at home", out.Adopted)
				}
				fmt.Fprintln(w)
			})
		}}
	c.Flags().StringVarP(&message, "message", "m", "", "why, for the record")
	c.Flags().IntVar(&expect, "expect", 0, "refuse unless this is the present revision")
	return c
}

func diffCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "diff FROM [TO]", Short: "Compare two revisions, or a revision with the present one", Args: cobra.RangeArgs(1, 2),
		Example: "  rerack diff 3\n  rerack diff 3 5",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			var sides [2]*topology.Topology
			for i, rev := range append(args, "0")[:2] {
				e, err := get[struct{ YAML string }](c.Context(), cl, "/topology?revision="+rev)
				if err != nil {
					return err
				}
				if sides[i], err = topology.Load([]topology.File{{Name: "revision " + rev, Data: []byte(e.YAML)}}); err != nil {
					return err
				}
			}
			changes := topology.Diff(sides[0], sides[1])
			return g.show(c.OutOrStdout(), changes, func(w io.Writer) { fmt.Fprint(w, topology.FormatDiff(changes)) })
		}}
}

// kindNamed accepts a kind as people type it: machine, machines, Machine.
func kindNamed(s string) (topology.Kind, error) {
	for _, k := range topology.Kinds() {
		plural := strings.ToLower(string(k)) + "s"
		switch strings.ToLower(s) {
		case strings.ToLower(string(k)), plural, strings.TrimSuffix(plural, "ys") + "ies", plural[:len(plural)-1] + "es":
			return k, nil
		}
	}
	names := make([]string, 0)
	for _, k := range topology.Kinds() {
		names = append(names, strings.ToLower(string(k)))
	}
	return "", &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("no kind %q", s), Next: "one of " + strings.Join(names, ", ")}
}

func getCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "get KIND [NAME]", Short: "List objects with their present state", Args: cobra.RangeArgs(1, 2),
		Example: "  rerack get machines\n  rerack get workload db1 -o yaml",
		RunE: func(c *cobra.Command, args []string) error {
			kind, err := kindNamed(args[0])
			if err != nil {
				return err
			}
			cl, err := g.client()
			if err != nil {
				return err
			}
			name := ""
			if len(args) == 2 {
				name = args[1]
			}
			switch kind {
			case topology.KindMachine:
				return showList(c, g, cl, "/machines", name, func(m api.MachineView) string { return m.Name }, machineTable)
			case topology.KindWorkload:
				return showList(c, g, cl, "/workloads", name, func(v api.WorkloadView) string { return v.Name }, workloadTable)
			default:
				return showList(c, g, cl, "/objects/"+string(kind), name, objectName, objectTable)
			}
		}}
}

func objectName(o map[string]any) string {
	meta, _ := o["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	return name
}

func showList[T any](c *cobra.Command, g *global, cl *client, path, name string, nameOf func(T) string, table func(io.Writer, []T)) error {
	all, err := get[[]T](c.Context(), cl, path)
	if err != nil {
		return err
	}
	if name != "" {
		for _, v := range all {
			if nameOf(v) == name {
				return g.show(c.OutOrStdout(), v, func(w io.Writer) { table(w, []T{v}) })
			}
		}
		return &fault.Error{Kind: fault.NotFound, What: "there is no " + name, Next: "rerack get " + c.Flags().Arg(0)}
	}
	return g.show(c.OutOrStdout(), all, func(w io.Writer) { table(w, all) })
}

func machineTable(w io.Writer, list []api.MachineView) {
	row(w, "NAME", "RACK", "TYPE", "USE", "POWER", "RUNS", "STATE")
	for _, m := range list {
		runs := strings.Join(m.Runs, ",")
		if len(m.Runs) > 3 {
			runs = fmt.Sprintf("%d workloads", len(m.Runs))
		}
		row(w, m.Name, m.Rack, m.Type, m.Use, m.Power, dash(runs), dash(machineState(m)))
	}
}

func machineState(m api.MachineView) string {
	var s []string
	if m.Host {
		s = append(s, "host")
	}
	if m.Fenced != "" {
		s = append(s, "fenced by "+m.Fenced)
	}
	if m.Zombie {
		s = append(s, "POWERED ON ALTHOUGH FENCED")
	}
	if m.Suspect != "" {
		s = append(s, "suspect: "+m.Suspect)
	}
	if m.Claimed != "" {
		s = append(s, "claimed by "+m.Claimed)
	}
	return strings.Join(s, ", ")
}

func workloadTable(w io.Writer, list []api.WorkloadView) {
	row(w, "NAME", "PRIORITY", "STATE", "WHERE", "EPOCH", "SINCE")
	for _, v := range list {
		where := dash(v.Machine)
		if v.VM {
			where = "VM on " + where
		}
		since := "-"
		if !v.Since.IsZero() {
			since = time.Since(v.Since).Round(time.Second).String()
		}
		row(w, v.Name, v.Priority, v.State, where, v.Epoch, since)
	}
}

func objectTable(w io.Writer, list []map[string]any) {
	row(w, "NAME", "SPEC")
	for _, o := range list {
		spec, _ := o["spec"].(map[string]any)
		keys := make([]string, 0, len(spec))
		for k := range spec {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		var parts []string
		for _, k := range keys {
			if s := fmt.Sprint(spec[k]); len(s) <= 40 {
				parts = append(parts, k+"="+s)
			}
		}
		row(w, objectName(o), strings.Join(parts, " "))
	}
}

func describeCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "describe KIND NAME", Short: "Show one object whole: declared and present state", Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			kind, err := kindNamed(args[0])
			if err != nil {
				return err
			}
			cl, err := g.client()
			if err != nil {
				return err
			}
			objects, err := get[[]map[string]any](c.Context(), cl, "/objects/"+string(kind))
			if err != nil {
				return err
			}
			out := map[string]any{}
			for _, o := range objects {
				if objectName(o) == args[1] {
					out["declared"] = o
				}
			}
			if len(out) == 0 {
				return &fault.Error{Kind: fault.NotFound, What: fmt.Sprintf("there is no %s %s", kind, args[1]), Next: "rerack get " + args[0]}
			}
			switch kind {
			case topology.KindMachine:
				err = addPresent(c, cl, "/machines", args[1], func(m api.MachineView) string { return m.Name }, out)
			case topology.KindWorkload:
				err = addPresent(c, cl, "/workloads", args[1], func(v api.WorkloadView) string { return v.Name }, out)
			default:
			}
			if err != nil {
				return err
			}
			whole := *g
			if g.output == "table" {
				whole.output = "yaml"
			}
			return whole.show(c.OutOrStdout(), out, nil)
		}}
}

func addPresent[T any](c *cobra.Command, cl *client, path, name string, nameOf func(T) string, out map[string]any) error {
	all, err := get[[]T](c.Context(), cl, path)
	for _, v := range all {
		if nameOf(v) == name {
			out["present"] = v
		}
	}
	return err
}

func exportCommand(g *global) *cobra.Command {
	var rev int
	c := &cobra.Command{Use: "export", Short: "Print the topology as YAML that apply takes back", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			e, err := get[struct{ YAML string }](c.Context(), cl, fmt.Sprintf("/topology?revision=%d", rev))
			if err != nil {
				return err
			}
			_, err = io.WriteString(c.OutOrStdout(), e.YAML)
			return err
		}}
	c.Flags().IntVar(&rev, "revision", 0, "an older revision; 0 is the present one")
	return c
}

func explainCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "explain FIELD", Short: "Say what a kind or field means; needs no server", Args: cobra.ExactArgs(1),
		Example: "  rerack explain machine\n  rerack explain machine.spec.nics.mac",
		RunE: func(c *cobra.Command, args []string) error {
			d, err := topology.Explain(args[0])
			if err != nil {
				return exitCode{exitUsage, err}
			}
			return g.show(c.OutOrStdout(), d, func(w io.Writer) { fmt.Fprint(w, d.String()) })
		}}
}

func schemaCommand() *cobra.Command {
	return &cobra.Command{Use: "schema", Short: "Print the JSON Schema of topology files, for editors", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			b, err := topology.JSONSchema()
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(b)
			return err
		}}
}

func revisionsCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "revisions", Short: "List every applied revision", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			list, err := get[[]revision.Head](c.Context(), cl, "/revisions")
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), list, func(w io.Writer) {
				row(w, "REVISION", "AT", "BY", "OBJECTS", "MESSAGE")
				for _, r := range list {
					row(w, r.Revision, r.At.Local().Format(time.DateTime), r.By, r.Objects, r.Message)
				}
			})
		}}
}

func rollbackCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "rollback REVISION", Short: "Apply an older revision again, as a new one", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			var out api.TopologyResult
			if err := cl.call(c.Context(), http.MethodPost, "/revisions/"+args[0]+"/rollback", nil, &out); err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), out, func(w io.Writer) {
				fmt.Fprintf(w, "revision %d is the present one: %d changes\n", out.Revision, len(out.Changes))
			})
		}}
}
