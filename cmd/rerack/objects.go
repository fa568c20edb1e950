package main

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/topology"
)

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

// completeKind offers the kinds as first argument.
func completeKind(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, k := range topology.Kinds() {
		if len(args) == 0 {
			names = append(names, strings.ToLower(string(k)))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func getCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "get KIND [NAME]", Short: "List objects with their present state", Args: cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeKind,
		Example:           "  rerack get machines\n  rerack get workload db1 -o yaml",
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

func objectName(o api.ObjectView) string { return o.Meta.Name }

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
		return &fault.Error{Kind: fault.NotFound, What: fmt.Sprintf("there is no %s %q", c.Flags().Arg(0), name), Next: "rerack get " + c.Flags().Arg(0)}
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

func objectTable(w io.Writer, list []api.ObjectView) {
	row(w, "NAME", "SPEC")
	for _, o := range list {
		spec, _ := o.Spec.(map[string]any)
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
		ValidArgsFunction: completeKind,
		RunE: func(c *cobra.Command, args []string) error {
			kind, err := kindNamed(args[0])
			if err != nil {
				return err
			}
			cl, err := g.client()
			if err != nil {
				return err
			}
			objects, err := get[[]api.ObjectView](c.Context(), cl, "/objects/"+string(kind))
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
