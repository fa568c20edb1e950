package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/examples"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/kvmprobe"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/gen"
	"rerack.dev/rerack/test/lab"
)

type labFlags struct {
	dir      string
	machines int
	post     time.Duration
	dhcp     string
	tftp     string
	http     string
	example  string
	qemu     bool
	kernels  []string
	loaders  string
	agent    string
	switches string
}

func labCommand(*global) *cobra.Command {
	var f labFlags
	c := &cobra.Command{Use: "lab", Short: "A data centre in a box, on loopback", GroupID: "service",
		Long: `A data centre in a box: simulated machines, switches, fabrics and arrays behind their real management
protocols on loopback, and a server for them. Rehearse on it what you would not dare on the real one.`}
	c.PersistentFlags().StringVar(&f.dir, "dir", envOr("RERACK_LAB_DIR", ".rerack-lab"), "directory of the lab")
	c.AddCommand(labUp(&f), labDown(&f), labRun(&f), labStatus(&f), labCheck(&f), labFault(&f))
	for verb, what := range map[string]struct {
		short string
		do    func(context.Context, *lab.Control, []string) error
	}{
		"burn":               {"Take mains power from a failure domain; BMCs and switches in it die too", func(ctx context.Context, l *lab.Control, a []string) error { return l.Burn(ctx, a[0]) }},
		"restore-power":      {"Give it back: machines start by themselves with their old systems", func(ctx context.Context, l *lab.Control, a []string) error { return l.RestorePower(ctx, a[0]) }},
		"cut-management":     {"Cut BMCs and switch management of a domain off; its machines run on", func(ctx context.Context, l *lab.Control, a []string) error { return l.CutManagement(ctx, a[0]) }},
		"restore-management": {"Undo cut-management", func(ctx context.Context, l *lab.Control, a []string) error { return l.RestoreManagement(ctx, a[0]) }},
		"half-burn":          {"All BMCs of a domain answer off; the machines named run on", func(ctx context.Context, l *lab.Control, a []string) error { return l.HalfBurn(ctx, a[0], a[1:]...) }},
	} {
		args, use := cobra.ExactArgs(1), verb+" DOMAIN"
		if verb == "half-burn" {
			args, use = cobra.MinimumNArgs(1), verb+" DOMAIN [MACHINE...]"
		}
		c.AddCommand(&cobra.Command{Use: use, Short: what.short, Args: args, RunE: func(c *cobra.Command, a []string) error {
			s, err := newStack(f.dir)
			if err != nil {
				return err
			}
			if err := what.do(c.Context(), s.control(), a); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s %s\n", verb, strings.Join(a, " "))
			return nil
		}})
	}
	return c
}

// source is the topology a lab is built from: files, a generated one of n machines, or the story.
func (f *labFlags) source(ctx context.Context, paths []string) (*topology.Topology, error) {
	switch {
	case f.machines > 0 && len(paths) > 0:
		return nil, &fault.Error{Kind: fault.Invalid, What: "--machines and topology files exclude each other"}
	case f.machines > 0:
		return gen.Topology(gen.Config{Machines: f.machines})
	case len(paths) == 0:
		return topology.LoadFS(examples.Story, f.example)
	}
	files, err := readFiles(ctx, paths)
	if err != nil {
		return nil, err
	}
	return load(files)
}

func labRun(f *labFlags) *cobra.Command {
	c := &cobra.Command{Use: "run [PATH...]", Short: "Run the data centre alone, in the foreground", Hidden: true,
		RunE: func(c *cobra.Command, paths []string) error {
			t, err := f.source(c.Context(), paths)
			if err != nil {
				return err
			}
			dhcp, err := netip.ParseAddrPort(f.dhcp)
			if err != nil {
				return &fault.Error{Kind: fault.Invalid, What: "--dhcp-server", Err: err}
			}
			tftp, err := netip.ParseAddrPort(f.tftp)
			if err != nil {
				return &fault.Error{Kind: fault.Invalid, What: "--tftp-server", Err: err}
			}
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))
			cfg := lab.Config{Topology: t, Dir: f.dir, FreePorts: true, BootServer: dhcp, Post: f.post, Logger: log}
			if f.qemu {
				at, err := netip.ParseAddrPort(f.http)
				if err != nil {
					return &fault.Error{Kind: fault.Invalid, What: "--boot-server", Err: err}
				}
				cfg.QEMU = &lab.QEMU{Kernel: f.kernels, Loaders: f.loaders, Agent: f.agent, HTTP: at, Switches: f.switches, KVM: kvmprobe.New(kvmprobe.Config{})}
			}
			l, err := lab.Start(c.Context(), cfg)
			if err != nil {
				return err
			}
			defer l.Close()
			l.SetTFTPServer(tftp)
			return l.ServeControl(c.Context(), filepath.Join(f.dir, "lab.sock"))
		}}
	c.Flags().StringVar(&f.dhcp, "dhcp-server", lab.DefaultBootServer, "where relays send DHCP")
	c.Flags().StringVar(&f.tftp, "tftp-server", "127.0.0.1:6969", "where firmware fetches by TFTP")
	c.Flags().StringVar(&f.http, "boot-server", "127.0.0.1:7080", "where real machines boot over HTTP")
	f.add(c)
	return c
}

func (f *labFlags) add(c *cobra.Command) {
	c.Flags().IntVar(&f.machines, "machines", 0, "generate a data centre of this many machines")
	c.Flags().StringVar(&f.example, "example", "story", "without files: story, story-scarce with fewer machines left, or real and real-story, made for --qemu")
	c.Flags().BoolVar(&f.qemu, "qemu", false, "run machines whose hardware type is labelled lab: qemu as QEMU processes that boot a real kernel; needs no root")
	c.Flags().StringSliceVar(&f.kernels, "qemu-kernel", kernelFolders(), "folders in which to look for an unpacked or installed linux-image")
	c.Flags().StringVar(&f.loaders, "qemu-loaders", "/usr/lib/ipxe", "folder with iPXE for real machines")
	c.Flags().StringVar(&f.agent, "qemu-agent", besides("rerack-agent"), "program that real hosts run")
	c.Flags().StringVar(&f.switches, "switches", "", "with --qemu: ovs makes every switch a real Open vSwitch; needs root")
	c.Flags().DurationVar(&f.post, "post", 0, "time every machine spends in its firmware before it boots")
}

func (f *labFlags) runArgs(paths []string) []string {
	args := []string{"--machines", fmt.Sprint(f.machines), "--post", f.post.String()}
	if f.example != "" {
		args = append(args, "--example", f.example)
	}
	if f.qemu {
		args = append(args, "--switches", f.switches, "--qemu", "--qemu-loaders", f.loaders, "--qemu-agent", f.agent, "--qemu-kernel", strings.Join(f.kernels, ","))
	}
	return append(args, paths...)
}

// besides is a program that is installed where this one is.
func besides(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name // looked for in the present folder, and named when it is not there
	}
	return filepath.Join(filepath.Dir(self), name)
}

// kernelFolders are where a kernel for real machines is looked for when none is named: where .ci/qemu
// unpacks one, and where one is installed.
func kernelFolders() []string {
	if named := os.Getenv("RERACK_QEMU_KERNEL"); named != "" {
		return []string{named}
	}
	return []string{".cache/qemu", "/"}
}

func labUp(f *labFlags) *cobra.Command {
	var listen string
	c := &cobra.Command{Use: "up [PATH...]", Short: "Start a lab and a server for it in the background, and apply its topology",
		Long: "Start a lab and a server for it in the background, and apply its topology. Without a path it is the story's data\ncentre: 20 machines in rack-a, ten elsewhere.",
		RunE: func(c *cobra.Command, paths []string) error {
			if _, err := f.source(c.Context(), paths); err != nil { // before anything is started
				return err
			}
			s, err := newStack(f.dir)
			if err != nil {
				return err
			}
			s.real = f.qemu
			if s.ports, err = freePorts(); err != nil {
				return err
			}
			if err := s.idle(); err != nil {
				return err
			}
			if err := s.listenOn(listen); err != nil {
				return err
			}
			// A new lab is a new data centre: what a server knew of the one before is not true of it.
			if _, err := os.Stat(s.path("data")); err == nil {
				fmt.Fprintf(c.ErrOrStderr(), "a new data centre: removed what the server of the last one knew (%s)\n", s.path("data"))
			}
			if err := os.RemoveAll(s.path("data")); err != nil {
				return err
			}
			if err := s.up(c.Context(), f.runArgs(paths)); err != nil {
				return err
			}
			n, err := s.apply(c.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), `lab is up: %d machines, server at http://%s
  export RERACK_SERVER=http://%[2]s RERACK_TOKEN_FILE=%s
  rerack get machines
  rerack lab burn rack-a && rerack recovery wait rack-a
  rerack lab down
`, n, s.ports.api, s.path("data/admin.token"))
			return nil
		}}
	f.add(c)
	c.Flags().StringVar(&listen, "listen", strings.TrimPrefix(defaultServer, "http://"), "address of the server's API")
	return c
}

// apply makes the lab's own topology the server's, and returns its number of machines.
func (s *stack) apply(ctx context.Context) (int, error) {
	files, err := readFiles(ctx, []string{s.path("topology")})
	if err != nil {
		return 0, err
	}
	cl, err := s.client()
	if err != nil {
		return 0, err
	}
	if err := cl.call(ctx, "POST", "/topology/apply", map[string]any{"files": files, "message": "lab"}, nil); err != nil {
		return 0, err
	}
	t, err := load(files)
	if err != nil {
		return 0, err
	}
	return len(t.Machines), nil
}

func labDown(f *labFlags) *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Stop the lab and its server", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := newStack(f.dir)
			if err != nil {
				return err
			}
			return s.down(c.Context())
		}}
}

func labStatus(f *labFlags) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "What is truly on, and what runs where", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := newStack(f.dir)
			if err != nil {
				return err
			}
			st, err := s.control().Status(c.Context())
			if err != nil {
				return err
			}
			g := global{output: flagOf(c, "output")}
			return g.show(c.OutOrStdout(), st, func(w io.Writer) {
				row(w, "MACHINE", "RACK", "MAINS", "ON", "PHASE", "RUNS")
				for _, m := range st.Machines {
					var runs []string
					for _, r := range m.Runs {
						runs = append(runs, fmt.Sprintf("%s(epoch %d)", r.Workload, r.Epoch))
					}
					row(w, m.Name, m.Rack, m.Mains, m.On, dash(m.Phase), dash(strings.Join(runs, ",")))
				}
			})
		}}
}

func flagOf(c *cobra.Command, name string) string {
	v, err := c.Flags().GetString(name)
	if err != nil {
		return ""
	}
	return v
}

func labCheck(f *labFlags) *cobra.Command {
	return &cobra.Command{Use: "check-invariants", Short: "Look at the true world for any broken safety rule", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := newStack(f.dir)
			if err != nil {
				return err
			}
			return checkInvariants(c.Context(), s, c.OutOrStdout())
		}}
}

func checkInvariants(ctx context.Context, s *stack, w io.Writer) error {
	r, err := s.control().CheckInvariants(ctx)
	if err != nil {
		return err
	}
	for _, v := range r.Violations {
		fmt.Fprintf(w, "VIOLATED %s %s: %s\n", v.Rule, v.Subject, v.Detail)
	}
	if len(r.Violations) > 0 {
		return exitCode{exitViolated, fault.Newf(fault.Unsafe, "%d violations", len(r.Violations))}
	}
	fmt.Fprintf(w, "all invariants hold: %d machines, %d workloads running, %d writes checked\n", r.Machines, r.Running, r.Writes)
	return nil
}

func labFault(f *labFlags) *cobra.Command {
	var off bool
	c := &cobra.Command{Use: "fault KIND NAME FAULT [ARG]", Short: "Make a simulated device misbehave", Args: cobra.RangeArgs(3, 4),
		Example: "  rerack lab fault bmc b03 hang\n  rerack lab fault machine b01 no-boot\n  rerack lab fault switch tor-b refuse\n  rerack lab fault --clear bmc b03 hang",
		RunE: func(c *cobra.Command, a []string) error {
			s, err := newStack(f.dir)
			if err != nil {
				return err
			}
			if off {
				return s.control().ClearFault(c.Context(), a[0], a[1], a[2])
			}
			return s.control().Fault(c.Context(), a[0], a[1], a[2], strings.Join(a[3:], ""))
		}}
	c.Flags().BoolVar(&off, "clear", false, "end the fault")
	return c
}
