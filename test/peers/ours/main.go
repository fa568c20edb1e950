// Command ours is our side of a comparison with other people's programs, for test/peers/run: our DHCP,
// TFTP and HTTP boot servers and our poll of BMCs as they ship, a load for TFTP and one for HTTP that are
// the same for every server, and a stopwatch for a child's CPU time.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"
)

const usage = `usage: ours dhcp|tftp|http|poll|fetch|get|time [flags]
  dhcp   serve reservations on one interface
  tftp   serve the files of one directory
  http   serve a kernel and an initial RAM disk as a recovery does
  poll   read the power of many BMCs
  fetch  fetch one file from a TFTP server, many at once
  get    fetch files from an HTTP server, many machines at once
  time   run a command and print the CPU and wall time it took, in ms`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run, ok := map[string]func(context.Context, []string) error{
		"dhcp": serveDHCP, "tftp": serveTFTP, "http": serveHTTP, "poll": poll, "fetch": fetch, "get": get, "time": stopwatch}[os.Args[1]]
	if !ok {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err := profiled(func() error { return run(ctx, os.Args[2:]) }); err != nil {
		fmt.Fprintln(os.Stderr, "ours", os.Args[1]+":", err)
		os.Exit(1)
	}
}

// profiled writes a CPU profile to the file that PROFILE names, which is where to look when a figure
// is missed.
func profiled(run func() error) error {
	name := os.Getenv("PROFILE")
	if name == "" {
		return run()
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return run()
}

func stopwatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no command")
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	begin := time.Now()
	out, err := cmd.Output()
	wall := time.Since(begin)
	if err != nil {
		return err
	}
	u := cmd.ProcessState
	fmt.Printf("cpu_ms=%.3f wall_ms=%.3f\n", ms(u.UserTime()+u.SystemTime()), ms(wall))
	_, err = os.Stdout.Write(out)
	return err
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // of oneself it cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
