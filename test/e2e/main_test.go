// Package e2e runs the built binary as its users do: real processes, real sockets, on loopback.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	artifacts = "../../artifacts/e2e"      // logs of what failed, and the figures
	figures   = artifacts + "/figures.txt" // what was measured, one a line
	reap      = `cat >/dev/null
find "$1" -name '*.pid' | while read -r f; do
	pid=$(cat "$f")
	grep -aqs "$1" "/proc/$pid/cmdline" && kill -9 "-$pid"
done
rm -rf "$1"`
)

// TestMain keeps every lab of a test run below one directory. A process of its own waits until this one
// is gone, for whatever reason, and then ends all that was left running there.
func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if path := os.Getenv(engineEnv); path != "" {
		return serveEngine(path)
	}
	root, err := os.MkdirTemp("", "rerack-e2e-")
	if err != nil {
		return fail(err)
	}
	if err := os.Setenv("TMPDIR", root); err != nil {
		return fail(err)
	}
	if err := os.RemoveAll(artifacts); err != nil {
		return fail(err)
	}
	reaper := exec.Command("sh", "-c", reap, "reaper", root)
	reaper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	alive, err := reaper.StdinPipe()
	if err != nil {
		return fail(err)
	}
	if err := reaper.Start(); err != nil {
		return fail(err)
	}
	code := m.Run()
	if err := alive.Close(); err != nil {
		return fail(err)
	}
	if err := reaper.Wait(); err != nil {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// binary is the rerack under test.
func binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("RERACK_BIN")
	if path == "" {
		t.Fatal("RERACK_BIN does not name the binary; run make e2e")
	}
	return path
}

// figure notes something measured, for people to read.
func figure(t testing.TB, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	if err := os.MkdirAll(artifacts, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(figures, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s: %s\n", t.Name(), line); err != nil {
		t.Error(err)
	}
}

// keepLogs copies the logs of a lab that served a failed test to where they outlive it.
func keepLogs(t testing.TB, dir string) {
	if !t.Failed() {
		return
	}
	to := filepath.Join(artifacts, strings.ReplaceAll(t.Name(), "/", "-"))
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Error(err)
		return
	}
	for _, name := range []string{"lab.log", "server.log"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue // it did not come that far
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o644); err != nil {
			t.Error(err)
		}
		t.Logf("%s, the end of it:\n%s", name, tail(string(b), 40))
	}
	t.Logf("the logs are kept in %s", to)
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
