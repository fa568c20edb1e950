package embedded_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
)

// TestFullDiskMakesItReadOnly fills a real file system: a small tmpfs in a mount namespace of its own.
func TestFullDiskMakesItReadOnly(t *testing.T) {
	cmd, words := child(t, "fill", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Start(); err != nil {
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatalf("no user namespaces: %v", err)
		}
		t.Skipf("no user namespaces: %v", err)
	}
	var said []string
	for words.Scan() {
		said = append(said, words.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, strings.Join(said, "\n"))
	}
}

// fill mounts a tmpfs of 1 MiB at dir, fills it through a store, gives it room and opens the store again.
func fill(dir string) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	path := filepath.Join(dir, "store")
	s, err := embedded.Open(embedded.Config{Path: path})
	if err != nil {
		return err
	}
	value := bytes.Repeat([]byte("v"), 10_000)
	acknowledged := 0
	for ; acknowledged < 1000; acknowledged++ {
		if err = s.Txn(background, store.Put(fmt.Sprintf("k/%d", acknowledged), value)); err != nil {
			break
		}
	}
	switch {
	case !fault.Is(err, fault.Unreachable) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room"):
		return fmt.Errorf("Txn on a full disk = %v, want fault.Unreachable that says to make room", err)
	case s.Err() == nil:
		return errors.New("the store does not say that it is read-only")
	case acknowledged == 0:
		return errors.New("nothing was acknowledged")
	}
	if err := s.Txn(background, store.Delete("k/0")); !fault.Is(err, fault.Unreachable) {
		return fmt.Errorf("Txn of a read-only store = %w, want fault.Unreachable", err)
	}
	if err := holds(s, acknowledged, value); err != nil {
		return fmt.Errorf("while read-only: %w", err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if s, err = embedded.Open(embedded.Config{Path: path}); err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	defer s.Close()
	if err := holds(s, acknowledged, value); err != nil {
		return fmt.Errorf("after opening again: %w", err)
	}
	return s.Txn(background, store.Put("k/more", value))
}

func holds(s *embedded.Store, n int, value []byte) error {
	entries, _, err := s.List(background, "")
	if err != nil {
		return err
	}
	if len(entries) != n {
		return fmt.Errorf("%d entries, %d were acknowledged", len(entries), n)
	}
	for _, e := range entries {
		if !bytes.Equal(e.Value, value) {
			return fmt.Errorf("%s has a wrong value", e.Key)
		}
	}
	return nil
}
