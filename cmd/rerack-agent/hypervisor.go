package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/hypervisor/hostd"
	"rerack.dev/rerack/hypervisor/qemu"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/kvmprobe"
	"rerack.dev/rerack/internal/pid1"
	"rerack.dev/rerack/pxe"
)

// Kernel parameters beside the boot plane's own.
const (
	paramClient  = "rerack.client"  // the only caller of the agent, by its certificate
	paramPort    = "rerack.port"    // where the agent listens
	paramReserve = "rerack.reserve" // MiB of memory that no machine gets
	// paramConsoles is a flag: the consoles of machines go to the host's own, each line after "vm NAME: ".
	paramConsoles = "rerack.consoles"
)

const (
	defaultClient = "rerack"
	defaultPort   = 8443
	// addressWithin is how long the network may take: a switch port that was just turned on may block for
	// as long as the spanning tree needs (IEEE 802.1D: two times 15 s), and our wiring may come later still.
	addressWithin = 5 * time.Minute
	// told is how long the boot plane may take to hear that it went wrong.
	told = 10 * time.Second
)

func hypervisorCommand(log *slog.Logger) *cobra.Command {
	return &cobra.Command{
		Use:   "hypervisor",
		Short: "Run virtual machines on this machine",
		Long: "Takes an address, says to the boot plane that this machine runs, gets a certificate with the one-time token of this boot, " +
			"and runs the virtual machines it is told to over mutual TLS. When it is asked to end, it turns them off.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return hypervisor(c.Context(), log) },
	}
}

func hypervisor(ctx context.Context, log *slog.Logger) error {
	params, err := pid1.Cmdline()
	if err != nil {
		return err
	}
	home, err := newHome(params)
	if err != nil {
		return err
	}
	// Whether guests run in KVM takes seconds to find out where they do not: meanwhile there is the network.
	accelerator := make(chan string, 1)
	go func() {
		probe := kvmprobe.New(kvmprobe.Config{})
		best := probe.Best(ctx)
		log.Info("accelerator", "use", best, "why", probe.Result(ctx).Why)
		accelerator <- best
	}()
	within, cancel := context.WithTimeout(ctx, addressWithin)
	defer cancel()
	lease, err := pid1.Network(within, log)
	if err != nil {
		return err
	}
	log.Info("address", "interface", lease.Interface, "address", lease.Address)
	go lease.Keep(ctx, log)
	if err := host(ctx, log, params, home, lease, <-accelerator); err != nil && ctx.Err() == nil {
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), told)
		defer cancel()
		if err := home.milestone(late, pxe.KindFailed, err.Error()); err != nil {
			log.Warn("report the failure", "err", err)
		}
		return err
	}
	return nil
}

// host runs the hypervisor on the machine's address until ctx ends.
func host(ctx context.Context, log *slog.Logger, params map[string]string, home *home, lease pid1.Lease, accelerator string) error {
	port, err := number(params, paramPort, defaultPort, 1<<16-1)
	if err != nil {
		return err
	}
	reserve, err := number(params, paramReserve, 0, 1<<24)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	at := netip.AddrPortFrom(lease.Address.Addr(), uint16(port)) //nolint:gosec // no more than a port can be
	l, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		return fault.Wrap(err, "listen", "agent "+at.String())
	}
	var console func(vm, line string)
	if _, ok := params[paramConsoles]; ok {
		console = func(vm, line string) { fmt.Printf("vm %s: %s\n", vm, line) }
	}
	h, err := qemu.New(qemu.Config{Console: console, Name: lease.Address.Addr().String(), Dir: "/run/rerack", Network: qemu.NewBridges(lease.Interface), Accelerator: accelerator,
		ReserveMiB: int64(reserve), Others: qemu.Others, Logger: log})
	if err != nil {
		return err
	}
	defer hostd.End(h, log)
	return hostd.Run(ctx, hostd.Config{Home: home, Listener: l, URL: "https://" + l.Addr().String(), Client: cmp.Or(params[paramClient], defaultClient), Host: h, Logger: log})
}

// number reads a kernel parameter.
func number(params map[string]string, key string, otherwise, most int) (int, error) {
	v, ok := params[key]
	if !ok {
		return otherwise, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > most {
		return 0, &fault.Error{Kind: fault.Invalid, Where: "kernel parameter " + key, What: "want a number", Evidence: v}
	}
	return n, nil
}
