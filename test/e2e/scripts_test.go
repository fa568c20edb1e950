package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs test/scripts: each is an evening of somebody at a terminal. They have rerack in their PATH,
// the addresses $API, $API2 and $BOOT, of which the first is where rerack looks for its server, and besides the
// commands of testscript
//
//	exits CODE PROGRAM ARG...      the program ends with exactly this exit code
//	until DURATION PROGRAM ARG...  the program is run again until it succeeds
//	lab ARG...                     rerack lab, which is brought down at the end
func TestScripts(t *testing.T) {
	bin, err := filepath.Abs(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	story, err := filepath.Abs("../../examples/story")
	if err != nil {
		t.Fatal(err)
	}
	ports := freePorts(t, 64)
	testscript.Run(t, testscript.Params{
		Dir: "../scripts",
		Setup: func(env *testscript.Env) error {
			tools := filepath.Join(env.WorkDir, ".bin")
			if err := errors.Join(os.Mkdir(tools, 0o700), os.Symlink(bin, filepath.Join(tools, "rerack"))); err != nil {
				return err
			}
			env.Setenv("PATH", tools+string(os.PathListSeparator)+env.Getenv("PATH"))
			for _, name := range []string{"API", "API2", "BOOT"} {
				env.Setenv(name, <-ports)
			}
			env.Setenv("RERACK_SERVER", "http://"+env.Getenv("API"))
			env.Setenv("RERACK_DATA_DIR", filepath.Join(env.WorkDir, "data"))
			env.Setenv("RERACK_LAB_DIR", filepath.Join(env.WorkDir, "lab"))
			env.Setenv("STORY", story)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "until": until, "lab": labCommand},
	})
}

// freePorts offers loopback addresses that were free, each once.
func freePorts(t *testing.T, n int) <-chan string {
	t.Helper()
	out := make(chan string, n)
	used := map[string]bool{}
	for len(used) < n {
		if p := freePort(t); !used[p] {
			used[p] = true
			out <- p
		}
	}
	return out
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("%v ends with %d, not %d\n%s%s", args[1:], got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until DURATION PROGRAM ARG...")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(limit); ts.Exec(args[1], args[2:]...) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			ts.Fatalf("%v does not succeed within %s\n%s", args[1:], limit, ts.ReadFile("stderr"))
		}
	}
}

func labCommand(ts *testscript.TestScript, neg bool, args []string) {
	ts.Defer(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		down := exec.CommandContext(ctx, filepath.Join(ts.Getenv("WORK"), ".bin", "rerack"), "lab", "down", "--dir", ts.Getenv("RERACK_LAB_DIR"))
		if out, err := down.CombinedOutput(); err != nil {
			ts.Logf("lab down: %v\n%s", err, out)
		}
	})
	if err := ts.Exec("rerack", append([]string{"lab"}, args...)...); (err != nil) != neg {
		ts.Fatalf("rerack lab %v: %v\n%s%s", args, err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}
