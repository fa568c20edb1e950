// Package debian boots the image that rerack image build debian makes on a real machine.
package debian

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/imagebuild"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/sitetest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// debianEnv asks for tests that install a Debian from the network, which takes minutes.
const debianEnv = "RERACK_TEST_DEBIAN"

// start is what the test's machine is for.
const start = `#!/bin/sh
echo "rerack: started by $(dpkg --print-architecture) $(hostname)"
`

func TestDebianBoots(t *testing.T) {
	if os.Getenv(debianEnv) == "" {
		t.Skip("installs a Debian; set " + debianEnv + "=1")
	}
	qemutest.QEMU(t)
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Fatal(err)
	}
	d := imagebuild.Debian{Suite: "bookworm", Arch: "amd64", Kernel: "linux-image-cloud-amd64", Epoch: 1700000000, Overlay: t.TempDir()}
	must(t, errors.Join(os.MkdirAll(filepath.Join(d.Overlay, "etc/rerack"), 0o700), os.WriteFile(filepath.Join(d.Overlay, "etc/rerack/start"), []byte(start), 0o700)))
	var kernel, initrd bytes.Buffer
	begin := time.Now()
	must(t, d.Build(t.Context(), &kernel, &initrd))
	t.Logf("built in %s: kernel %d KiB, initial RAM disk %d KiB", time.Since(begin).Round(time.Second), kernel.Len()>>10, initrd.Len()>>10)

	s := sitetest.New(t)
	boot := s.Serve()
	in := boot.Intent(1, boot.KernelBoot())
	k := in.Boot.Kernel
	var err error
	k.Kernel, err = boot.Images.Import(t.Context(), "debian.kernel", &kernel, "")
	must(t, err)
	i, err := boot.Images.Import(t.Context(), "debian.initrd", &initrd, "")
	must(t, err)
	k.Initrds = []pxe.Digest{i}
	k.Params = []ipxe.Param{{Key: "console", Value: "ttyS0"}, {Key: "quiet"}, {Key: "no_timer_check"}, {Key: "tsc", Value: "reliable"},
		{Key: "rerack.workload", Value: "web1"}, {Key: "rerack.epoch", Value: "3"}}
	in.NICs[0].Gateway, in.Hostname = s.Self, "web1"
	boot.Set(in)
	begin = time.Now()
	r := s.Start(1, machine.Boot{Device: machine.Network}, vswitch.Settings{Access: sitetest.VLAN}, machine.Config{MemoryMiB: 640, Firmware: machine.BIOS})
	ctx, cancel := context.WithTimeout(t.Context(), 3*sitetest.Patience)
	defer cancel()
	if _, err := boot.Ledger.Wait(ctx, in.Machine, pxe.KindHealthy); err != nil {
		t.Fatalf("%v; it reached %v", err, boot.Ledger.Kinds(in.Machine))
	}
	t.Logf("power-on to healthy: %s", time.Since(begin).Round(100*time.Millisecond))
	s.Says(r, "rerack: start workload=web1 epoch=3 volumes=0")
	s.Says(r, "rerack: started by amd64 web1")
}
