// Command rerack-agent is what runs on a machine that was booted for Rerack itself and not for a workload:
// its own hypervisor, or the environment that copies a disk. As the first process of such a machine it
// mounts, loads drivers and then runs itself again; see package pid1.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/pid1"
)

// roleFile holds the subcommand that an image is for, one argument a line: a first process gets no
// arguments but what the kernel does not understand.
const roleFile = "/etc/rerack-agent"

func main() {
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelInfo}))
	if pid1.Is() {
		boot(log)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root(log).ExecuteContext(ctx); err != nil {
		log.Error("rerack-agent", "err", err)
		stop()
		os.Exit(1)
	}
}

// boot is the life of the first process. It ends with the machine.
func boot(log *slog.Logger) {
	args := []string{"/proc/self/exe"}
	role, err := os.ReadFile(roleFile)
	if err != nil {
		log.Error("what this machine is for", "err", err)
	}
	if err := pid1.Run(pid1.Config{Args: append(args, strings.Fields(string(role))...), Logger: log}); err != nil {
		log.Error("first process", "err", err)
	}
}

func root(log *slog.Logger) *cobra.Command {
	c := &cobra.Command{
		Use:           "rerack-agent",
		Short:         "What runs on a machine that Rerack booted for itself",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.AddCommand(hypervisorCommand(log), captureCommand(log))
	return c
}
