package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
)

// scenario is one evening of an operator: what happens to the data centre, and what must come of it.
type scenario struct {
	name     string
	says     string
	topology string
	strike   func(ctx context.Context, d *demo) error
	after    func(ctx context.Context, d *demo) error // while the recovery goes on; may be nil
	want     state.RunState
}

const rackA = "rack/rack-a"

func scenarios() []scenario {
	burn := func(ctx context.Context, d *demo) error { return d.stack.control().Burn(ctx, rackA) }
	return []scenario{
		{name: "story", says: "Rack A burns, its BMCs die with it. Ten machines are left: 6 off, 4 running print servers.",
			strike: burn, want: state.RunDone},
		{name: "scarce", says: "Rack A burns and only six machines are left.", topology: "story-scarce", strike: burn, want: state.RunPartial},
		{name: "partition", says: "The management network to rack A is cut, but its machines run on. An operator asks for a recovery.",
			strike: func(ctx context.Context, d *demo) error {
				if err := d.stack.control().CutManagement(ctx, rackA); err != nil {
					return err
				}
				return d.startRecovery(ctx, "")
			}, want: state.RunSuspect},
		{name: "half-alive", says: "Rack A's BMCs all answer off, but a03 and a11 still run. A person on site reports a fire.",
			strike: func(ctx context.Context, d *demo) error {
				if err := d.stack.control().HalfBurn(ctx, rackA, "a03", "a11"); err != nil {
					return err
				}
				return d.startRecovery(ctx, "I stand before it: rack A burns")
			}, want: state.RunDone},
		{name: "power-returns", says: "Rack A burns; while its workloads are being recovered, power comes back and its machines start by themselves.",
			strike: burn, want: state.RunDone, after: func(ctx context.Context, d *demo) error {
				if err := d.untilPhase(ctx, "boot"); err != nil {
					return err
				}
				return d.stack.control().RestorePower(ctx, rackA)
			}},
	}
}

type demo struct {
	stack *stack
	cl    *client
	out   io.Writer
	run   string
}

func demoCommand(*global) *cobra.Command {
	var name, dir string
	var post time.Duration
	var list []string
	for _, s := range scenarios() {
		list = append(list, s.name)
	}
	c := &cobra.Command{Use: "demo", Short: "Watch a rack burn and its workloads come back, on this machine", GroupID: "service", Args: cobra.NoArgs,
		Long: "Build a data centre in a box, burn a rack in it, and watch every workload come back on other machines. Real protocols\non loopback; nothing is left behind.",
		RunE: func(c *cobra.Command, _ []string) error {
			for _, s := range scenarios() {
				if s.name == name {
					return runScenario(c, s, dir, post)
				}
			}
			return &fault.Error{Kind: fault.Invalid, What: "no scenario " + name, Next: "one of " + strings.Join(list, ", ")}
		}}
	c.Flags().StringVar(&name, "scenario", "story", strings.Join(list, ", "))
	c.Flags().DurationVar(&post, "post", 3*time.Second, "time every machine spends in its firmware before it boots")
	c.Flags().StringVar(&dir, "dir", "", "keep everything in this directory (default: a temporary one, removed)")
	return c
}

func runScenario(c *cobra.Command, sc scenario, dir string, post time.Duration) (err error) {
	ctx, out := c.Context(), c.OutOrStdout()
	if dir == "" {
		if dir, err = os.MkdirTemp("", "rerack-demo-"); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				err = os.RemoveAll(dir)
			} else {
				fmt.Fprintf(c.ErrOrStderr(), "logs are kept in %s\n", dir)
			}
		}()
	}
	d := &demo{out: out}
	if d.stack, err = newStack(dir); err != nil {
		return err
	}
	if d.stack.ports, err = freePorts(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stack.down(context.WithoutCancel(ctx))) }()
	begin := time.Now()
	if err := d.begin(ctx, sc, post); err != nil {
		return err
	}
	fmt.Fprintf(out, "The data centre is up and watched after %s.\n\n%s\n\n", short(time.Since(begin)), sc.says)
	if err := sc.strike(ctx, d); err != nil {
		return err
	}
	last, err := d.watch(ctx, c, sc)
	if err != nil {
		return err
	}
	return d.finish(ctx, sc, last)
}

// begin starts everything and waits until the monitor has seen the data centre whole.
func (d *demo) begin(ctx context.Context, sc scenario, post time.Duration) error {
	f := labFlags{post: post}
	args := f.runArgs(nil)
	if sc.topology != "" {
		args = append(args, "--example", sc.topology)
	}
	if err := d.stack.up(ctx, args); err != nil {
		return err
	}
	n, err := d.stack.apply(ctx)
	if err != nil {
		return err
	}
	if d.cl, err = d.stack.client(); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "%d machines, 2 spines and 3 top-of-rack switches, 2 FC fabrics, 2 arrays; server at http://%s\n", n, d.stack.ports.api)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var v policies.Verdict
	if err := until(ctx, func() bool {
		v, err = get[policies.Verdict](ctx, d.cl, "/domains/"+rackA+"/verdict")
		return err == nil && v.State == policies.VerdictUp && d.allRead(ctx)
	}); err != nil {
		return &fault.Error{Kind: fault.Timeout, Where: rackA, What: "it is not seen up", Evidence: v.Reason, Err: err}
	}
	return nil
}

// allRead says whether the power of every machine has been read once.
func (d *demo) allRead(ctx context.Context) bool {
	list, err := get[[]api.MachineView](ctx, d.cl, "/machines")
	return err == nil && !slices.ContainsFunc(list, func(m api.MachineView) bool { return m.PowerAt.IsZero() })
}

func (d *demo) startRecovery(ctx context.Context, attest string) error {
	in := map[string]string{"domain": rackA, "trigger": "person"}
	if attest != "" {
		in["attestation"] = attest
	}
	return d.cl.call(ctx, "POST", "/recoveries", in, nil)
}

// watch follows the run to its end.
func (d *demo) watch(ctx context.Context, c *cobra.Command, sc scenario) (api.RunView, error) {
	var last api.RunView
	id, err := findRun(ctx, d.cl, rackA, 2*time.Minute)
	if err != nil {
		return last, err
	}
	d.run = id
	events := make(chan error, 1)
	if sc.after != nil {
		go func() { events <- sc.after(ctx, d) }()
	} else {
		events <- nil
	}
	view := newLive(c.ErrOrStderr(), isTerminal(c.ErrOrStderr()))
	if err := watch(ctx, d.cl, "/recoveries/"+id+"/watch", func(v api.RunView) error {
		last = v
		view.show(v)
		return nil
	}); err != nil {
		return last, err
	}
	view.end()
	return last, <-events
}

func (d *demo) untilPhase(ctx context.Context, phase string) error {
	err := watch(ctx, d.cl, "/recoveries/"+d.run+"/watch", func(v api.RunView) error {
		for _, p := range v.Phases {
			if p.Name == phase {
				return errReached
			}
		}
		return nil
	})
	if errors.Is(err, errReached) {
		return nil
	}
	return err
}

var errReached = errors.New("reached")

func (d *demo) finish(ctx context.Context, sc scenario, last api.RunView) error {
	t := tabwriter.NewWriter(d.out, 0, 4, 2, ' ', 0)
	printReport(t, last)
	if err := t.Flush(); err != nil {
		return err
	}
	if sc.after != nil {
		if err := d.zombies(ctx); err != nil {
			return err
		}
	}
	fmt.Fprintln(d.out)
	if err := checkInvariants(ctx, d.stack, d.out); err != nil {
		return err
	}
	if last.State != sc.want {
		return fault.Newf(fault.Internal, "the run ended %s, and this scenario should end %s", last.State, sc.want)
	}
	return nil
}

// zombies waits until the monitor has seen the machines that came back, and lists them.
func (d *demo) zombies(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var names []string
	err := until(ctx, func() bool {
		list, err := get[[]api.MachineView](ctx, d.cl, "/machines")
		if err != nil {
			return false
		}
		names = names[:0]
		for _, m := range list {
			if m.Zombie {
				names = append(names, m.Name)
			}
		}
		return len(names) > 0
	})
	if err != nil {
		return &fault.Error{Kind: fault.Timeout, What: "no machine of the burned rack was seen to start again", Err: err}
	}
	fmt.Fprintf(d.out, "\nPowered on although fenced, cut off from network and storage: %s\n", strings.Join(names, ", "))
	return nil
}
