// Command rerack is the whole product in one binary: the server, the lab and the operator's tool.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
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
	g := &global{}
	c.PersistentFlags().StringVar(&g.server, "server", envOr("RERACK_SERVER", defaultServer), "address of the server")
	c.PersistentFlags().StringVar(&g.token, "token-file", os.Getenv("RERACK_TOKEN_FILE"), "file with the API token (default: RERACK_TOKEN, then <data-dir>/admin.token)")
	c.PersistentFlags().StringVar(&g.dataDir, "data-dir", envOr("RERACK_DATA_DIR", ".rerack"), "data directory of a server on this machine")
	c.PersistentFlags().StringVarP(&g.output, "output", "o", "table", "output: table, json or yaml")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exitCode{exitUsage, err} })
	c.AddGroup(&cobra.Group{ID: "topology", Title: "Topology:"}, &cobra.Group{ID: "run", Title: "Recovery and machines:"},
		&cobra.Group{ID: "service", Title: "Service and lab:"})
	c.AddCommand(topologyCommands(g)...)
	c.AddCommand(recoveryCommand(g), workloadCommand(g), machineCommand(g))
	c.AddCommand(serverCommand(g), secretCommand(g), imageCommand(g), labCommand(g), demoCommand(g))
	return c
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
