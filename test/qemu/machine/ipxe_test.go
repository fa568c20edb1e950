package machine_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/sitetest"
)

// TestIPXEDoesWhatWeThink runs a script in iPXE and in our own reading of it.
func TestIPXEDoesWhatWeThink(t *testing.T) {
	// A name that is not there is the way for a command to fail.
	const fails = "imgfree --timeout"
	script := strings.ReplaceAll(`#!ipxe
echo say-1a || echo say-1b && echo say-1c || echo say-1d
echo say-2a && echo say-2b || echo say-2c
FAIL || echo say-3a && echo say-3b || echo say-3c
FAIL && echo say-4a || echo say-4b
FAIL && echo say-5a ||
echo say-6a && goto over ||
echo say-6b
:over
FAIL && goto over ||
echo say-7
exit 0
`, "FAIL", fails)
	cmds, err := ipxe.Parse([]byte(script))
	must(t, err)
	var want []string
	var exit *ipxe.ExitError
	err = ipxe.Run(t.Context(), cmds, func(_ context.Context, c ipxe.Command) error {
		if c.String() == fails {
			return errors.New("no such option")
		}
		want = append(want, c.Args[0])
		return nil
	})
	if !errors.As(err, &exit) {
		t.Fatal(err)
	}

	dir := t.TempDir()
	file, console := filepath.Join(dir, "script"), filepath.Join(dir, "console")
	must(t, os.WriteFile(file, []byte(script), 0o600))
	said := make(chan string, 256)
	m, err := machine.New(machine.Config{Name: "m", QEMU: qemutest.QEMU(t), Dir: dir, Console: console, MemoryMiB: 128,
		OnLine: func(l string) { said <- l }})
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), sitetest.Patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- m.Run(ctx, machine.Boot{Device: machine.Disk, Kernel: &machine.Kernel{Path: filepath.Join(qemutest.Loaders(t), "ipxe.lkrn"), Initrd: file}})
	}()
	var got []string
	for late := time.After(sitetest.Patience); len(got) == 0 || got[len(got)-1] != want[len(want)-1]; {
		select {
		case l := <-said:
			if i := strings.Index(l, "say-"); i >= 0 {
				got = append(got, l[i:])
			}
		case <-late:
			t.Fatalf("iPXE says %q", got)
		}
	}
	cancel()
	must(t, <-ended)
	if !slices.Equal(got, want) {
		t.Errorf("iPXE says\n%q, and we thought\n%q", got, want)
	}
}
