package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
)

func recoveryCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "recovery", Aliases: []string{"rec"}, Short: "Plan, start and watch recoveries", GroupID: "run"}
	c.AddCommand(recoveryStart(g), recoveryPlan(g), recoveryList(g), recoveryShow(g), recoveryWait(g),
		recoveryAct(g, "approve", "Say yes to a run that waits for approval"),
		recoveryAct(g, "cancel", "Stop a run at its next safe point"), verdictCommand(g))
	return c
}

func recoveryStart(g *global) *cobra.Command {
	var attest, runbook string
	var wait bool
	var timeout time.Duration
	c := &cobra.Command{Use: "start DOMAIN", Short: "Recover a failure domain, or join the run under way", Args: cobra.ExactArgs(1),
		Example: "  rerack recovery start rack-a --wait\n  rerack recovery start rack-a --attest 'I stand before it, it burns'",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			var out api.StartResult
			in := map[string]string{"domain": args[0], "trigger": "person"}
			if attest != "" {
				in["attestation"] = attest
			}
			if runbook != "" {
				in["runbook"] = runbook
			}
			if err := cl.call(c.Context(), http.MethodPost, "/recoveries", in, &out); err != nil {
				return err
			}
			if wait {
				return g.follow(c, cl, out.Run.ID, timeout)
			}
			return g.show(c.OutOrStdout(), out, func(w io.Writer) {
				verb := "started"
				if !out.Started {
					verb = "is under way already"
				}
				fmt.Fprintf(w, "run %s %s; watch it with: rerack recovery wait %s\n", out.Run.ID, verb, out.Run.ID)
			})
		}}
	c.Flags().StringVar(&attest, "attest", "", "what you have seen with your own eyes; counts as evidence and is recorded")
	c.Flags().StringVar(&runbook, "runbook", "", "runbook to use when several are for the domain")
	c.Flags().BoolVar(&wait, "wait", false, "show progress until the run ends")
	c.Flags().DurationVar(&timeout, "timeout", time.Hour, "with --wait, give up watching after this long")
	return c
}

func recoveryPlan(g *global) *cobra.Command {
	return &cobra.Command{Use: "plan DOMAIN", Short: "Show what a recovery would do now; touches nothing", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			var p policies.Placement
			if err := cl.call(c.Context(), http.MethodPost, "/recoveries/plan", map[string]string{"domain": args[0]}, &p); err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), p, func(w io.Writer) { printPlacement(w, p) })
		}}
}

func printPlacement(w io.Writer, p policies.Placement) {
	for _, h := range p.NewHosts {
		row(w, "host", h.Machine, "", h.Reason)
	}
	for _, e := range p.Evictions {
		row(w, "evict", e.Machine, e.Workload, e.Reason)
	}
	for _, a := range p.Assignments {
		kind := "bare metal"
		if a.VM {
			kind = "VM"
		}
		row(w, kind, a.Machine, a.Workload, a.Reason)
	}
	for _, l := range p.LeftOut {
		row(w, "stays down", "-", l.Workload, l.Constraint+": "+l.Reason)
	}
	fmt.Fprintf(w, "%d placed, %d left out\n", len(p.Assignments), len(p.LeftOut))
}

func recoveryList(g *global) *cobra.Command {
	return &cobra.Command{Use: "list", Short: "All runs, newest first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			runs, err := get[[]state.Run](c.Context(), cl, "/recoveries")
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), runs, func(w io.Writer) {
				row(w, "RUN", "DOMAIN", "STATE", "TRIGGER", "BY", "REQUESTED", "REASON")
				for _, r := range runs {
					row(w, r.ID, r.Domain, r.State, r.Trigger, r.By, r.Requested.Local().Format(time.DateTime), r.Reason)
				}
			})
		}}
}

func recoveryShow(g *global) *cobra.Command {
	return &cobra.Command{Use: "show RUN", Short: "The report of a run", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			v, err := get[api.RunView](c.Context(), cl, "/recoveries/"+url.PathEscape(args[0]))
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), v, func(w io.Writer) { printReport(w, v) })
		}}
}

func recoveryWait(g *global) *cobra.Command {
	var timeout time.Duration
	c := &cobra.Command{Use: "wait [RUN|DOMAIN]", Short: "Show progress until a run ends, then its report", Args: cobra.MaximumNArgs(1),
		Long: "Show progress until a run ends, then its report. A domain stands for its newest run, and is waited for\nuntil one starts. The exit code says how it ended: 0 done, 3 partial, 4 suspect, 1 failed.",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			want := ""
			if len(args) == 1 {
				want = args[0]
			}
			id, err := findRun(c.Context(), cl, want, timeout)
			if err != nil {
				return err
			}
			return g.follow(c, cl, id, timeout)
		}}
	c.Flags().DurationVar(&timeout, "timeout", time.Hour, "give up watching after this long")
	return c
}

// findRun waits until a run with this id, or on this domain, exists.
func findRun(ctx context.Context, cl *client, want string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		runs, err := get[[]state.Run](ctx, cl, "/recoveries")
		if err != nil {
			return "", err
		}
		for _, r := range runs {
			if want == "" || r.ID == want || r.Domain == want || r.Domain == "rack/"+want {
				return r.ID, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", &fault.Error{Kind: fault.Timeout, What: "no run of " + want + " has started", Next: "rerack recovery start " + want}
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// follow shows a run live, then its report, and ends with the code that says how the run ended. A
// server that restarts meanwhile is waited for: the run goes on.
func (g *global) follow(c *cobra.Command, cl *client, id string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(c.Context(), timeout)
	defer cancel()
	var last api.RunView
	view := newLive(c.ErrOrStderr(), isTerminal(c.ErrOrStderr()))
	for !last.State.Ended() {
		err := watch(ctx, cl, "/recoveries/"+url.PathEscape(id)+"/watch", func(v api.RunView) error {
			last = v
			view.show(v)
			return nil
		})
		if err != nil && !fault.Is(err, fault.Unreachable) {
			return err
		}
		if ctx.Err() != nil {
			return &fault.Error{Kind: fault.Timeout, Where: "run " + id, What: "still under way", Next: "rerack recovery wait " + id}
		}
		if !last.State.Ended() {
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
			}
		}
	}
	view.end()
	if err := g.show(c.OutOrStdout(), last, func(w io.Writer) { printReport(w, last) }); err != nil {
		return err
	}
	return ended(last.State)
}

func ended(s state.RunState) error {
	silent := fault.New(fault.Internal, "run ended "+string(s))
	switch s {
	case state.RunPartial:
		return exitCode{exitPartial, silent}
	case state.RunSuspect:
		return exitCode{exitSuspect, silent}
	case state.RunFailed, state.RunCancelled:
		return exitCode{exitError, silent}
	case state.RunDone, state.RunRunning, state.RunWaiting:
	}
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func recoveryAct(g *global, verb, short string) *cobra.Command {
	return &cobra.Command{Use: verb + " RUN", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			return cl.call(c.Context(), http.MethodPost, "/recoveries/"+url.PathEscape(args[0])+"/"+verb, nil, nil)
		}}
}

func verdictCommand(g *global) *cobra.Command {
	return &cobra.Command{Use: "verdict DOMAIN", Short: "What is believed of a failure domain now, and why", Args: cobra.ExactArgs(1),
		Example: "  rerack recovery verdict rack-a\n  rerack recovery verdict powerfeed/feed-1",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := g.client()
			if err != nil {
				return err
			}
			v, err := get[policies.Verdict](c.Context(), cl, "/domains/"+domainPath(args[0])+"/verdict")
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), v, func(w io.Writer) { printVerdict(w, v) })
		}}
}

// domainPath escapes a domain's name and leaves the slash behind its kind.
func domainPath(name string) string {
	kind, rest, whole := strings.Cut(name, "/")
	if !whole {
		return url.PathEscape(name)
	}
	return url.PathEscape(kind) + "/" + url.PathEscape(rest)
}

func printVerdict(w io.Writer, v policies.Verdict) {
	fmt.Fprintf(w, "%s: %s\n%s\n", v.Domain, v.State, v.Reason)
	for _, m := range v.Missing {
		fmt.Fprintf(w, "  missing: %s\n", m)
	}
	for _, e := range v.Against {
		fmt.Fprintf(w, "  sign of life: %s %s, %s (%s)\n", e.Kind, e.Subject, e.Detail, e.Source)
	}
}

func workloadCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "workload", Short: "Start and stop single workloads", GroupID: "run"}
	for verb, short := range map[string]string{"place": "Start a workload that runs nowhere, on the machine that fits it best",
		"release": "Stop a workload and take its identity and volumes back"} {
		var wait bool
		cmd := &cobra.Command{Use: verb + " NAME", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				cl, err := g.client()
				if err != nil {
					return err
				}
				var out api.StartResult
				if err := cl.call(c.Context(), http.MethodPost, "/workloads/"+url.PathEscape(args[0])+"/"+verb, nil, &out); err != nil {
					return err
				}
				if wait {
					return g.follow(c, cl, out.Run.ID, time.Hour)
				}
				return g.show(c.OutOrStdout(), out, func(w io.Writer) {
					fmt.Fprintf(w, "run %s; watch it with: rerack recovery wait %s\n", out.Run.ID, out.Run.ID)
				})
			}}
		cmd.Flags().BoolVar(&wait, "wait", false, "show progress until the run ends")
		c.AddCommand(cmd)
	}
	return c
}

func machineCommand(g *global) *cobra.Command {
	c := &cobra.Command{Use: "machine", Short: "Unfence and clear machines", GroupID: "run"}
	for verb, short := range map[string]string{"unfence": "Let a fenced machine be used again; nothing is connected by it",
		"clear": "Trust a machine again that failed to boot"} {
		c.AddCommand(&cobra.Command{Use: verb + " NAME", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				cl, err := g.client()
				if err != nil {
					return err
				}
				if err := cl.call(c.Context(), http.MethodPost, "/machines/"+url.PathEscape(args[0])+"/"+verb, nil, nil); err != nil {
					return err
				}
				fmt.Fprintf(c.OutOrStdout(), "machine %s: %s done\n", args[0], verb)
				return nil
			}})
	}
	return c
}
