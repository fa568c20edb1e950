package kvmprobe_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/kvmprobe"
)

// patience is for an emulated guest on a busy machine.
const patience = 30 * time.Second

func emulator(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("qemu-system-x86_64")
	if err == nil && runtime.GOARCH == "amd64" {
		return path
	}
	if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
		t.Fatal(err)
	}
	t.Skip("no emulator; run .ci/qemu")
	return ""
}

// wrap is an emulator that is told more, and counts how often it is started.
func wrap(t *testing.T, more string) (script, starts string) {
	t.Helper()
	dir := t.TempDir()
	script, starts = filepath.Join(dir, "qemu"), filepath.Join(dir, "starts")
	text := fmt.Sprintf("#!/bin/sh\necho >>%s\nexec %s \"$@\" %s\n", starts, emulator(t), more)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return script, starts
}

func started(t *testing.T, starts string) int {
	t.Helper()
	b, err := os.ReadFile(starts)
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// The guest really speaks: what it says under emulation is what a working KVM is known by.
func TestAGuestThatRuns(t *testing.T) {
	qemu, starts := wrap(t, "")
	p := kvmprobe.New(kvmprobe.Config{QEMU: qemu, Accelerator: kvmprobe.TCG, Limit: patience})
	for range 2 {
		if r := p.Result(t.Context()); !r.OK || r.Why != "" {
			t.Fatalf("%+v", r)
		}
	}
	if n := started(t, starts); n != 1 {
		t.Errorf("probed %d times", n)
	}
}

// A guest whose processor never runs is what a /dev/kvm looks like that opens and does not work.
func TestAGuestThatHangs(t *testing.T) {
	qemu, starts := wrap(t, "-S")
	p := kvmprobe.New(kvmprobe.Config{QEMU: qemu, Accelerator: kvmprobe.TCG, Limit: 300 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := p.Result(ctx); r.OK {
		t.Fatalf("cut short: %+v", r)
	}
	begin := time.Now()
	for range 2 {
		if r := p.Result(t.Context()); r.OK || !strings.Contains(r.Why, "says nothing for 300ms") {
			t.Fatalf("%+v", r)
		}
	}
	if took := time.Since(begin); took > patience {
		t.Errorf("it took %s", took)
	}
	if n := started(t, starts); n != 1 {
		t.Errorf("probed %d times", n)
	}
}

func TestAnEmulatorThatFails(t *testing.T) {
	qemu, _ := wrap(t, "-no-such-option")
	for path, want := range map[string]string{qemu: "no-such-option", "/no/such/emulator": "no such file"} {
		p := kvmprobe.New(kvmprobe.Config{QEMU: path, Accelerator: kvmprobe.TCG, Limit: patience})
		if r := p.Result(t.Context()); r.OK || !strings.Contains(r.Why, want) {
			t.Errorf("%s: %+v", path, r)
		}
	}
}

// TestKVM is true of every machine: what the probe trusts runs a guest, and what it does not is replaced.
func TestKVM(t *testing.T) {
	p := kvmprobe.New(kvmprobe.Config{QEMU: emulator(t)})
	begin := time.Now()
	r := p.Result(t.Context())
	t.Logf("%+v after %s", r, time.Since(begin).Round(time.Millisecond))
	want := kvmprobe.TCG
	if r.OK {
		want = kvmprobe.KVM
	}
	if got := p.Best(t.Context()); got != want {
		t.Errorf("the accelerator is %s, want %s", got, want)
	}
	if r.OK == (r.Why != "") {
		t.Errorf("no reason, or one too many: %+v", r)
	}
	if _, err := os.Stat("/dev/kvm"); err != nil && r.OK {
		t.Error("there is no /dev/kvm")
	}
}
