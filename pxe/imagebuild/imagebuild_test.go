package imagebuild_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/imagebuild"
	"rerack.dev/rerack/test/qemu/qemutest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// recipe is the hypervisor's, of what is installed here.
func recipe(t *testing.T) imagebuild.Recipe {
	t.Helper()
	k, err := imagebuild.FindKernel(qemutest.Roots(t)...)
	if err != nil {
		qemutest.Sources(t) // skips, or fails where peers are required
	}
	agent := filepath.Join(t.TempDir(), "rerack-agent")
	must(t, os.WriteFile(agent, []byte("\x7fELF stands here for an agent"), 0o700)) //nolint:gosec // a program
	r := imagebuild.Hypervisor(k, "/", agent)
	if err := r.Validate(); err != nil {
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return r
}

// list unpacks with a program that is not ours and lists what came out.
func list(t *testing.T, initrd []byte) (names []string, dir string) {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(initrd))
	must(t, err)
	defer z.Close()
	tar, err := io.ReadAll(z)
	must(t, err)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir = t.TempDir()
	c := exec.Command(busybox, "cpio", "-idv")
	c.Dir, c.Stdin = dir, bytes.NewReader(tar)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for l := range strings.Lines(string(out)) {
		if !strings.HasSuffix(l, " blocks\n") { // how much it was
			names = append(names, strings.TrimSpace(l))
		}
	}
	return names, dir
}

func TestHypervisor(t *testing.T) {
	r := recipe(t)
	var first, second bytes.Buffer
	must(t, r.Build(&first))
	must(t, r.Build(&second))
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("built twice, not the same")
	}
	t.Logf("initial RAM disk: %d bytes", first.Len())
	names, dir := list(t, first.Bytes())
	seen := map[string]bool{}
	for _, n := range names {
		if seen[n] {
			t.Errorf("%s is in it twice", n)
		}
		seen[n] = true
	}
	// The image runs QEMU with nothing from outside: its modules and all their libraries are found.
	if os.Geteuid() == 0 {
		c := exec.Command("/usr/sbin/chroot", dir, "/usr/bin/qemu-system-x86_64", "-M", "none", "-accel", "tcg", "-nodefaults", "-display", "none",
			"-blockdev", "driver=iscsi,node-name=n,transport=tcp,portal=127.0.0.1:1,target=iqn.2026-01.org.example:x,lun=1")
		if out, _ := c.CombinedOutput(); !strings.Contains(string(out), "Failed to connect to LUN") {
			t.Errorf("QEMU of the image says %s", out)
		}
	}
}

func TestMissing(t *testing.T) {
	r := recipe(t)
	r.Root = t.TempDir()
	if err := r.Validate(); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "qemu-block-extra") || !strings.Contains(err.Error(), "ovmf") {
		t.Errorf("an empty root: %v", err)
	}
	r = recipe(t)
	r.Always = append(r.Always, "no_such_module")
	if err := r.Build(io.Discard); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("a kernel without a module: %v", err)
	}
	if _, err := imagebuild.FindKernel(t.TempDir()); !fault.Is(err, fault.NotFound) {
		t.Errorf("no kernel: %v", err)
	}
}

// An archive is what cpio takes for one, however it is filled.
func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := imagebuild.NewArchive(&b)
	a.File("/usr/lib/x/../x/a", 0o755, []byte("one"))
	a.File("usr/lib/x/a", 0o644, []byte("two"))
	a.Link("bin", "usr/bin")
	a.Dir("../../etc")
	must(t, a.Close())
	var z bytes.Buffer
	w, err := zstd.NewWriter(&z)
	must(t, err)
	_, err = w.Write(b.Bytes())
	must(t, err)
	must(t, w.Close())
	names, dir := list(t, z.Bytes())
	if got := strings.Join(names, " "); got != "usr usr/lib usr/lib/x usr/lib/x/a bin etc" {
		t.Errorf("it holds %s", got)
	}
	got, err := os.ReadFile(filepath.Join(dir, "usr/lib/x/a"))
	must(t, err)
	link, err := os.Readlink(filepath.Join(dir, "bin"))
	if err != nil || string(got) != "one" || link != "usr/bin" {
		t.Errorf("%q, %q, %v", got, link, err)
	}
}
