// Command rerack is the whole product in one binary: the server, the lab and the operator's tool.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
)

// Exit codes, for scripts.
const (
	exitError    = 1 // anything not named below
	exitUsage    = 2 // the command line or a file is wrong; nothing was changed
	exitPartial  = 3 // a recovery ended with workloads left down
	exitSuspect  = 4 // a recovery was not certain enough to act
	exitUnsafe   = 5 // refused by a safety rule
	exitViolated = 6 // an invariant of the lab does not hold
	exitNoServer = 7 // the server does not answer
)

// exitCode lets a command choose the code it ends with.
type exitCode struct {
	code int
	error
}

func (e exitCode) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends what does not heed the first
	if err := root().ExecuteContext(ctx); err != nil {
		if msg := err.Error(); msg != "" {
			fmt.Fprintln(os.Stderr, "rerack: "+msg)
		}
		stop()
		os.Exit(codeOf(err))
	}
}

func codeOf(err error) int {
	var own exitCode
	if errors.As(err, &own) {
		return own.code
	}
	switch fault.KindOf(err) {
	case fault.Invalid:
		return exitUsage
	case fault.Unsafe:
		return exitUnsafe
	case fault.Unreachable:
		return exitNoServer
	case fault.Internal, fault.NotFound, fault.Conflict, fault.Stale, fault.Unauthorized, fault.Unsupported,
		fault.Busy, fault.Timeout, fault.Unverified:
	}
	return exitError
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:   "rerack",
		Short: "Data-centre topology manager: brings the workloads of a burned rack back on other machines",
		Long: `Rerack turns machines on over Redfish and IPMI, boots them over the network, rewires VLANs, SAN zones
and LUN masks per workload, and shifts the workloads of a burned rack onto machines that are off or
repurposable. It never lets two machines write one volume, and says what it did and why.

Exit codes: 0 done, 1 error, 2 wrong input, 3 recovery partial, 4 recovery suspect, 5 refused by a
safety rule, 6 a lab invariant is violated, 7 no answer from the server.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.Version = version()
	g := &global{}
	c.PersistentFlags().StringVar(&g.server, "server", envOr("RERACK_SERVER", defaultServer), "address of the server")
	c.PersistentFlags().StringVar(&g.token, "token-file", os.Getenv("RERACK_TOKEN_FILE"), "file with the API token (default: RERACK_TOKEN, then <data-dir>/admin.token)")
	c.PersistentFlags().StringVar(&g.dataDir, "data-dir", envOr("RERACK_DATA_DIR", ".rerack"), "data directory of a server on this machine")
	c.PersistentFlags().StringVarP(&g.output, "output", "o", "table", "output: table, json or yaml")
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return misused(c, err) })
	c.PersistentPreRunE = func(*cobra.Command, []string) error { return g.checkOutput() }
	c.AddGroup(&cobra.Group{ID: "topology", Title: "Topology:"}, &cobra.Group{ID: "run", Title: "Recovery and machines:"},
		&cobra.Group{ID: "service", Title: "Service and lab:"})
	c.AddCommand(topologyCommands(g)...)
	c.AddCommand(recoveryCommand(g), workloadCommand(g), machineCommand(g), captureCommand(g))
	c.AddCommand(serverCommand(g), secretCommand(g), imageCommand(g), labCommand(g), demoCommand(g))
	c.InitDefaultCompletionCmd()
	strict(c)
	return c
}

// version is what the build was made from.
func version() string {
	if b, ok := debug.ReadBuildInfo(); ok {
		return b.Main.Version
	}
	return "unknown"
}

// strict makes every wrong command line an error of its own exit code, also that of a command which only
// groups others.
func strict(c *cobra.Command) {
	accepts := c.Args
	if !c.Runnable() {
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		c.DisableFlagsInUseLine = true
		accepts = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			c.SuggestionsMinimumDistance = 2
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				return fmt.Errorf("there is no %q (did you mean %s?)", args[0], strings.Join(near, ", "))
			}
			return fmt.Errorf("there is no %q", args[0])
		}
	}
	if accepts != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := accepts(c, args); err != nil {
				return misused(c, err)
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		strict(sub)
	}
}

func misused(c *cobra.Command, err error) error {
	return &fault.Error{Kind: fault.Invalid, Where: c.CommandPath(), Err: err, Next: c.CommandPath() + " --help"}
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
