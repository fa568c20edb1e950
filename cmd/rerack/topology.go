package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/topology"
)

func topologyCommands(g *global) []*cobra.Command {
	cmds := []*cobra.Command{validateCommand(g), planCommand(g), applyCommand(g), diffCommand(g), getCommand(g),
		describeCommand(g), exportCommand(g), explainCommand(g), schemaCommand(), revisionsCommand(g), rollbackCommand(g)}
	for _, c := range cmds {
		c.GroupID = "topology"
	}
	return cmds
}

func validateCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "validate PATH...", Short: "Check topology files; needs no server", Args: cobra.MinimumNArgs(1),
		Example: "  rerack validate topology/",
		RunE: func(c *cobra.Command, args []string) error {
			files, err := readFiles(c.Context(), args)
			if err != nil {
				return err
			}
			t, err := load(files)
			if err != nil {
				return exitCode{exitUsage, err}
			}
			type valid struct {
				Objects int `json:"objects"`
				Files   int `json:"files"`
			}
			return g.show(c.OutOrStdout(), valid{t.Len(), len(files)}, func(w io.Writer) {
				fmt.Fprintf(w, "%d objects in %d files are valid\n", t.Len(), len(files))
			})
		}}
}

func planCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "plan PATH...", Short: "Show what apply would change", Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			files, err := readFiles(c.Context(), args)
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
			files, err := readFiles(c.Context(), args)
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

func isRevision(s string) error {
	if n, err := strconv.Atoi(s); err != nil || n < 0 {
		return &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("%q is not the number of a revision", s), Next: "rerack revisions"}
	}
	return nil
}

func diffCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "diff FROM [TO]", Short: "Compare two revisions, or a revision with the present one", Args: cobra.RangeArgs(1, 2),
		Example: "  rerack diff 3\n  rerack diff 3 5",
		RunE: func(c *cobra.Command, args []string) error {
			revs := append(args, "0")[:2]
			for _, rev := range revs {
				if err := isRevision(rev); err != nil {
					return err
				}
			}
			cl, err := g.client()
			if err != nil {
				return err
			}
			var sides [2]*topology.Topology
			for i, rev := range revs {
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
	return &cobra.Command{Use: "explain [FIELD]", Short: "Say what a kind or field means; needs no server", Args: cobra.MaximumNArgs(1),
		Example: "  rerack explain\n  rerack explain machine\n  rerack explain machine.spec.nics.mac",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				d := topology.ExplainAll()
				return g.show(c.OutOrStdout(), d, func(w io.Writer) { fmt.Fprint(w, d.String()) })
			}
			kind, rest, _ := strings.Cut(args[0], ".")
			if k, err := kindNamed(kind); err == nil {
				kind = strings.ToLower(string(k))
			}
			d, err := topology.Explain(strings.TrimSuffix(kind+"."+rest, "."))
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
			if err := isRevision(args[0]); err != nil {
				return err
			}
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
