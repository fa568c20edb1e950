package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Every scenario of the demo ends as it should, with all invariants of the simulated world intact. The
// binary itself compares the end with the one wanted and exits with 0 only then.
func TestDemoScenarios(t *testing.T) {
	for name, wants := range map[string][]string{
		"story":         {"20/20 recovered: 8 bare metal, 12 as VMs on 2 new hosts", "agree for all 20 machines"},
		"scarce":        {"11/20 recovered", "machines: ", "9 of 20 workloads stay down"},
		"partition":     {": suspect", "2 independent kinds are needed", "signs of life"},
		"half-alive":    {"20/20 recovered", "a person attests it, although machine/a03, machine/a11 show life"},
		"power-returns": {"20/20 recovered", "Powered on although fenced, cut off from network and storage: a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "demo")
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			var out bytes.Buffer
			cmd := exec.CommandContext(ctx, binary(t), "demo", "--scenario", name, "--post", "0s", "--dir", dir)
			cmd.Stdout, cmd.Stderr = &out, &out
			// Asked to end, it takes its lab and server along.
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			cmd.WaitDelay = 30 * time.Second
			if err := cmd.Run(); err != nil {
				t.Error(err)
			}
			for _, want := range append(wants, "all invariants hold") {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the output does not say %q", want)
				}
			}
			if t.Failed() {
				t.Log(out.String())
			}
			keepLogs(t, dir)
			if figures := regexp.MustCompile(`(?m)^Detection .*$`).FindString(out.String()); figures != "" {
				t.Log(figures)
			}
		})
	}
}
