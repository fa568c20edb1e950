package main

import (
	"fmt"
	"io"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
)

// live shows a run while it goes on: redrawn in place on a terminal, one line per event elsewhere.
type live struct {
	w     io.Writer
	tty   bool
	lines int             // drawn last time
	said  map[string]bool // events printed
}

func newLive(w io.Writer, tty bool) *live { return &live{w: w, tty: tty, said: map[string]bool{}} }

func (l *live) show(v api.RunView) {
	if !l.tty {
		l.events(v)
		return
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "run %s\t%s\t%s\n", v.ID, v.State, time.Since(v.Requested).Round(100*time.Millisecond))
	for _, p := range v.Phases {
		fmt.Fprintf(t, "  %s\t%s\t%s\n", p.Name, took(p.Start, p.End), p.Note)
	}
	healthy := 0
	for _, r := range v.Results {
		if r.State == "healthy" && !r.Host {
			healthy++
		}
	}
	fmt.Fprintf(t, "  %s %d/%d\n", bar(healthy, len(v.Workloads), 30), healthy, len(v.Workloads))
	for _, r := range v.Results {
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", label(r), r.State, where(r), newest(r))
	}
	_ = t.Flush()
	if l.lines > 0 {
		fmt.Fprintf(l.w, "\x1b[%dA\x1b[J", l.lines)
	}
	l.lines = strings.Count(b.String(), "\n")
	_, _ = io.WriteString(l.w, b.String())
}

func (l *live) events(v api.RunView) {
	say := func(key, format string, args ...any) {
		if !l.said[key] {
			l.said[key] = true
			fmt.Fprintf(l.w, "%8.1fs  %s\n", time.Since(v.Requested).Seconds(), fmt.Sprintf(format, args...))
		}
	}
	for _, p := range v.Phases {
		say("begin "+p.Name, "%s ...", p.Name)
		if !p.End.IsZero() {
			say("end "+p.Name, "%s: %s (%s)", p.Name, p.Note, took(p.Start, p.End))
		}
	}
	for _, r := range v.Results {
		switch r.State {
		case "healthy", "failed", "left-out":
			say(r.Name+r.State+r.Where.Machine, "%s %s %s", label(r), r.State, where(r))
		}
	}
}

func (l *live) end() {
	if l.tty {
		fmt.Fprintln(l.w)
	}
}

func label(r state.Result) string {
	if r.Host {
		return "host " + r.Where.Machine
	}
	return r.Name
}

func where(r state.Result) string {
	switch {
	case r.Where.Machine == "":
		return "-"
	case r.Host:
		return "hypervisor"
	case r.Where.VM:
		return "VM on " + r.Where.Machine
	}
	return r.Where.Machine
}

// newest is the last milestone and how long after power-on it was reached.
func newest(r state.Result) string {
	name, at := "", time.Time{}
	for k, t := range r.Times {
		if t.After(at) || t.Equal(at) && k > name {
			name, at = k, t
		}
	}
	if on := r.Times["power-on"]; !on.IsZero() && at.After(on) {
		return fmt.Sprintf("%s +%s", name, at.Sub(on).Round(10*time.Millisecond))
	}
	return name
}

func took(start, end time.Time) string {
	if end.IsZero() {
		return "..."
	}
	return end.Sub(start).Round(10 * time.Millisecond).String()
}

func bar(n, of, width int) string {
	if of == 0 {
		return ""
	}
	full := n * width / of
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}

// printReport is the whole story of a run: what came back, where, how fast and why; what did not.
func printReport(w io.Writer, v api.RunView) {
	rep := v.Report
	title := map[state.RunKind]string{state.KindRecover: "Recovery", state.KindPlace: "Placement", state.KindRelease: "Release"}[v.Kind]
	fmt.Fprintf(w, "%s %s of %s: %s\n", title, v.ID, v.Domain, v.State)
	if v.Kind == state.KindRecover {
		fmt.Fprintf(w, "%d/%d recovered: %d bare metal, %d as VMs on %d new hosts\n", rep.Recovered, rep.Of, rep.BareMetal, rep.VMs, rep.Hosts)
	}
	if v.Verdict != nil {
		fmt.Fprintf(w, "Verdict: %s: %s\n", v.Verdict.State, v.Verdict.Reason)
		for _, m := range v.Verdict.Missing {
			fmt.Fprintf(w, "  missing: %s\n", m)
		}
		if n := len(v.Verdict.Against); n > 0 {
			fmt.Fprintf(w, "  signs of life in spite of it: %d, e.g. %s %s\n", n, v.Verdict.Against[0].Subject, v.Verdict.Against[0].Detail)
		}
	}
	if v.Reason != "" {
		fmt.Fprintf(w, "%s\n", v.Reason)
	}
	if v.Kind == state.KindRecover {
		printFigures(w, rep)
	}
	fmt.Fprintln(w)
	row(w, "PHASE", "TOOK", "RESULT")
	for _, p := range v.Phases {
		row(w, p.Name, took(p.Start, p.End), p.Note)
	}
	fmt.Fprintln(w)
	if len(v.Results) == 0 {
		return
	}
	printResults(w, v)
}

func printFigures(w io.Writer, rep recovery.Report) {
	fmt.Fprintf(w, "\nDetection %s; verdict to the last healthy workload %s, of which the machines' firmware takes %s and our software %s; to the end %s\n",
		short(rep.Detection), short(rep.Restored), short(rep.Hardware), short(rep.Own), short(rep.Total))
}

func printResults(w io.Writer, v api.RunView) {
	row(w, "WORKLOAD", "STATE", "WHERE", "FROM", "FENCED", "FIRMWARE", "HELD", "BOOT", "HEALTHY", "WHY")
	for _, r := range v.Results {
		why := r.Reason
		if r.Constraint != "" {
			why = r.Constraint + ": " + why
		}
		row(w, label(r), r.State, where(r), dash(r.From), since(r, "fenced", v.Requested), between(r, "power-on", "dhcp"),
			between(r, "script", "released"), between(r, began(r), "phone-home"), since(r, "healthy", v.Requested), why)
	}
	var tried []string
	for _, r := range v.Results {
		for _, t := range r.Tried {
			tried = append(tried, label(r)+" on "+t)
		}
	}
	sort.Strings(tried)
	printList(w, "Tried without success:", tried)
	printList(w, "Alarms:", alarms(v.Results))
}

func printList(w io.Writer, title string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintln(w, "\n"+title)
	for _, l := range lines {
		fmt.Fprintln(w, "  "+l)
	}
}

// alarms are what somebody must look at, whatever became of the run.
func alarms(results []state.Result) (out []string) {
	for _, r := range results {
		for _, n := range r.Notes {
			if n.Alarm {
				out = append(out, fmt.Sprintf("%s %s on %s: %s", n.First.Local().Format(time.TimeOnly), r.Name, n.Target, n.Text))
			}
		}
	}
	sort.Strings(out)
	return out
}

// began names the milestone that the boot of the workload itself began with.
func began(r state.Result) string {
	if r.Times["released"].After(r.Times["dhcp"]) {
		return "released"
	}
	return "dhcp"
}

func short(d time.Duration) string { return d.Round(10 * time.Millisecond).String() }

func since(r state.Result, what string, from time.Time) string {
	if t := r.Times[what]; !t.IsZero() {
		return "+" + short(t.Sub(from))
	}
	return "-"
}

func between(r state.Result, a, b string) string {
	x, y := r.Times[a], r.Times[b]
	if x.IsZero() || y.Before(x) {
		return "-"
	}
	return short(y.Sub(x))
}
