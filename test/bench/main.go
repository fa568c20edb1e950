// Bench runs the benchmarks and prints their figures as one table. The packages named are benchmarked as they are;
// the scale runs of test/e2e, with the binary named by -bin, come last.
//
//	go run ./test/bench -bin bin/rerack ./policies/... ./pxe/...
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	bin := flag.String("bin", "", "rerack to measure at scale; without it the scale runs are left out")
	each := flag.Duration("time", time.Second, "how long each benchmark of a package runs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *bin, *each, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, each time.Duration, packages []string) error {
	begin := time.Now()
	var all []result
	var failed error
	if len(packages) > 0 {
		rs, err := bench(ctx, nil, append([]string{"-benchtime", each.String(), "-p", "1"}, packages...))
		all, failed = append(all, rs...), err
	}
	if bin != "" {
		path, err := filepath.Abs(bin)
		if err != nil {
			return err
		}
		rs, err := bench(ctx, []string{"RERACK_BIN=" + path}, []string{"-benchtime", "1x", "-timeout", "20m", "./test/e2e"})
		all = append(all, rs...)
		if failed == nil {
			failed = err
		}
	}
	if err := show(os.Stdout, all); err != nil {
		return err
	}
	fmt.Printf("\n%s/%s, %d processors, %s; took %s\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), time.Since(begin).Round(time.Second))
	return failed
}

// bench runs go test with args and reads the results as they come; everything else that is printed goes to stderr.
func bench(ctx context.Context, env, args []string) (out []result, err error) {
	c := exec.CommandContext(ctx, "go", append([]string{"test", "-run", "^$", "-bench", "."}, args...)...)
	// An interrupt reaches the tests as well, which clean up after themselves; go test must not be killed over them.
	c.Cancel, c.WaitDelay = func() error { return c.Process.Signal(os.Interrupt) }, time.Minute
	c.Env, c.Stderr = append(os.Environ(), env...), os.Stderr
	pipe, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	pkg := ""
	lines := bufio.NewScanner(pipe)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if p, ok := strings.CutPrefix(line, "pkg: "); ok {
			pkg = p
		}
		if r, ok := parse(line); ok {
			r.pkg = pkg[strings.Index(pkg, "/rerack/")+len("/rerack/"):]
			out = append(out, r)
		} else if line != "PASS" && !strings.HasSuffix(line, "[no test files]") {
			fmt.Fprintln(os.Stderr, line)
		}
	}
	if err := c.Wait(); err != nil {
		return out, fmt.Errorf("go test: %w", err)
	}
	return out, lines.Err()
}

// result is one line of a benchmark: its figures in the order in which they stand there.
type result struct {
	pkg, name string
	figures   []figure
}

type figure struct {
	value float64
	unit  string
}

// parse reads a line in the format of go test: name, iterations, and then pairs of value and unit.
func parse(line string) (result, bool) {
	f := strings.Fields(line)
	if len(f) < 4 || len(f)%2 != 0 || !strings.HasPrefix(f[0], "Benchmark") {
		return result{}, false
	}
	name := strings.TrimPrefix(f[0], "Benchmark")
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		name = name[:i] // the number of processors
	}
	r := result{name: name}
	for i := 2; i < len(f); i += 2 {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return result{}, false
		}
		r.figures = append(r.figures, figure{v, f[i+1]})
	}
	return r, true
}

// show prints the results package by package.
func show(w io.Writer, all []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	pkg := ""
	for _, r := range all {
		if r.pkg != pkg {
			pkg = r.pkg
			fmt.Fprintf(t, "\n%s\n", pkg)
		}
		name := r.name
		for _, f := range r.figures {
			if f.unit == "ns/op" && len(r.figures) > 4 {
				continue // a scale run: its whole duration says nothing
			}
			what, value := f.text()
			fmt.Fprintf(t, "  %s\t%s\t%s\n", name, what, value)
			name = "" // stands in its first line only
		}
	}
	return t.Flush()
}

// text is a figure for people: a unit behind the last hyphen is the value's, the rest says what it is of.
func (f figure) text() (what, value string) {
	if f.unit == "ns/op" {
		return "each", significant(time.Duration(f.value)).String()
	}
	number := strconv.FormatFloat(f.value, 'g', 4, 64)
	if f.value >= 1000 {
		number = strconv.FormatFloat(f.value, 'f', 0, 64)
	}
	i := strings.LastIndexByte(f.unit, '-')
	if i < 0 || strings.Contains(f.unit, "/") {
		return f.unit, number
	}
	return strings.ReplaceAll(f.unit[:i], "-", " "), number + " " + f.unit[i+1:]
}

// significant rounds a time to three digits.
func significant(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit)
}
