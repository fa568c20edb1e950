package images_test

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/images"
)

// TestFullDisk is H44, on a file system of 256 KiB.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=262144"); err != nil {
		t.Skipf("no small file system to be had: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, dir, images.Options{})
	small := bytes.Repeat([]byte("x"), 50<<10)
	d, err := s.Import(t.Context(), "small", bytes.NewReader(small), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), "large", bytes.NewReader(bytes.Repeat([]byte("y"), 1<<20)), ""); !errors.Is(err, syscall.ENOSPC) || !fault.Is(err, fault.Busy) {
		t.Errorf("full disk: %v", err)
	}
	if left(t, dir, "incoming") != 0 || left(t, dir, "sha256") != 1 {
		t.Error("the full disk kept a part")
	}
	f, err := s.Open(d)
	if err != nil {
		t.Fatalf("what was there is lost: %v", err)
	}
	f.Close()
	if _, err := s.Import(t.Context(), "again", bytes.NewReader(small[1:]), ""); err != nil {
		t.Errorf("after the failure there is room, yet: %v", err)
	}
}
