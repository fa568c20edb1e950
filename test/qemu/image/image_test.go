package image_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/qemutest"
)

func TestTheSameBytesAgain(t *testing.T) {
	s := qemutest.Sources(t)
	kernel, first, err := image.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := image.Build(s)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("built twice, not the same: %v", err)
	}
	if len(kernel) < 1<<20 || len(first) > 4<<20 {
		t.Errorf("kernel of %d bytes, initial RAM disk of %d", len(kernel), len(first))
	}
	z, err := gzip.NewReader(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	tar, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if len(tar)%4 != 0 || !bytes.HasPrefix(tar, []byte("070701")) || !strings.HasSuffix(strings.TrimRight(string(tar), "\x00"), "TRAILER!!!") {
		t.Error("not a cpio archive")
	}
	// virtio_net needs what needs what: all of it, the needed first.
	at := -1
	for _, m := range []string{"virtio", "virtio_ring", "virtio_pci", "failover", "net_failover", "virtio_net"} {
		i := bytes.Index(tar, []byte("modules/"+m+".ko\x00"))
		if i < 0 {
			t.Errorf("no module %s", m)
		}
		if m == "virtio_net" && i < at {
			t.Error("virtio_net comes before what it needs")
		}
		at = max(at, i)
	}
}

func TestFind(t *testing.T) {
	root := t.TempDir()
	if _, err := image.Find(root); !fault.Is(err, fault.NotFound) {
		t.Errorf("an empty root: %v", err)
	}
	for _, f := range []string{"boot/vmlinuz-6.1.0-9", "boot/vmlinuz-6.2.0-1", "lib/modules/6.1.0-9/x.ko"} {
		path := filepath.Join(root, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := image.Find(t.TempDir(), root)
	if err != nil || filepath.Base(s.Kernel) != "vmlinuz-6.1.0-9" { // the newer one has no modules
		t.Errorf("%+v, %v", s, err)
	}
	if _, _, err := image.Build(s); !fault.Is(err, fault.NotFound) {
		t.Errorf("a kernel without drivers: %v", err)
	}
}
