package imagebuild_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/imagebuild"
)

func debian() imagebuild.Debian {
	return imagebuild.Debian{Suite: "bookworm", Arch: "amd64", Kernel: "linux-image-cloud-amd64", Epoch: 1700000000}
}

func TestDebianRefusesOptionsInDisguise(t *testing.T) {
	for name, spoil := range map[string]func(*imagebuild.Debian){
		"suite":   func(d *imagebuild.Debian) { d.Suite = "--setup-hook=reboot" },
		"arch":    func(d *imagebuild.Debian) { d.Arch = "amd64,--x" },
		"mirror":  func(d *imagebuild.Debian) { d.Mirror = "deb [trusted=yes] copy:/etc x main" },
		"file":    func(d *imagebuild.Debian) { d.Mirror = "file:///etc" },
		"kernel":  func(d *imagebuild.Debian) { d.Kernel = "" },
		"include": func(d *imagebuild.Debian) { d.Include = []string{"./evil.deb"} },
		"list":    func(d *imagebuild.Debian) { d.Include = []string{"a,b"} },
		"epoch":   func(d *imagebuild.Debian) { d.Epoch = -1 },
	} {
		d := debian()
		spoil(&d)
		if err := d.Build(t.Context(), &bytes.Buffer{}, &bytes.Buffer{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// debianEnv asks for tests that install a Debian from the network, which takes minutes.
const debianEnv = "RERACK_TEST_DEBIAN"

// TestDebianTwice builds an image twice, with an overlay.
func TestDebianTwice(t *testing.T) {
	if os.Getenv(debianEnv) == "" {
		t.Skip("installs a Debian twice; set " + debianEnv + "=1")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Fatal(err)
	}
	d := debian()
	d.Overlay = t.TempDir()
	must(t, errors.Join(os.MkdirAll(filepath.Join(d.Overlay, "etc/rerack"), 0o700), os.WriteFile(filepath.Join(d.Overlay, "etc/rerack/start"), []byte("#!/bin/sh\n"), 0o700)))
	var sums [2][sha256.Size]byte
	for i := range sums {
		var kernel, initrd bytes.Buffer
		must(t, d.Build(t.Context(), &kernel, &initrd))
		if kernel.Len() < 1<<20 || initrd.Len() < 10<<20 {
			t.Errorf("kernel of %d bytes, initial RAM disk of %d", kernel.Len(), initrd.Len())
		}
		names, _ := list(t, initrd.Bytes())
		for _, want := range []string{"init", "etc/rerack/start", "etc/rerack/udhcpc", "usr/bin/busybox", "usr/sbin/iscsistart", "usr/bin/dpkg"} {
			if !slices.Contains(names, want) {
				t.Errorf("no %s", want)
			}
		}
		for _, not := range []string{"etc/machine-id", "etc/iscsi/initiatorname.iscsi", "etc/shadow-"} {
			if slices.Contains(names, not) {
				t.Errorf("%s is of one machine", not)
			}
		}
		sums[i] = sha256.Sum256(append(kernel.Bytes(), initrd.Bytes()...))
	}
	if sums[0] != sums[1] {
		t.Error("built twice, not the same")
	}
}
