package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
)

func TestReopenKeepsContentAndRevision(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s := open(t, embedded.Config{Path: path})
	for i := range 300 {
		if err := s.Txn(background, store.Put(fmt.Sprintf("k/%d", i), bytes.Repeat([]byte("v"), i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Txn(background, store.Delete("k/7")); err != nil {
		t.Fatal(err)
	}
	want := contentOf(t, s)
	_, revision, _ := s.List(background, "")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	again := open(t, embedded.Config{Path: path})
	if got := contentOf(t, again); len(got) != 299 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%d entries after opening again, want the same %d", len(got), len(want))
	}
	if _, rev, _ := again.List(background, ""); rev != revision {
		t.Errorf("revision %d after opening again, want %d", rev, revision)
	}
	if err := again.Txn(background, store.Put("new", nil)); err != nil {
		t.Fatal(err)
	}
	if e, _ := again.Get(background, "new"); e.Revision != revision+1 {
		t.Errorf("first revision after opening again is %d, want %d", e.Revision, revision+1)
	}
}

func TestFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	for _, loosen := range []bool{false, true} {
		s, err := embedded.Open(embedded.Config{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, want 0600 (file existed: %v)", info.Mode().Perm(), loosen)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 1 {
		t.Errorf("the directory has %v (%v), want the one file", files, err)
	}
}

func TestSecondOpenNamesTheHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	cmd, words := child(t, "hold", path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if !words.Scan() || words.Text() != "open" {
		t.Fatalf("the holder said %q", words.Text())
	}
	_, err = embedded.Open(embedded.Config{Path: path})
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "locked by") {
		t.Errorf("Open of a held file = %v, want fault.Conflict that says it is locked", err)
	}
	if _, noProc := os.Stat("/proc/locks"); noProc == nil && !strings.Contains(err.Error(), strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("Open of a held file = %v, want it to name process %d", err, cmd.Process.Pid)
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	open(t, embedded.Config{Path: path})
	if _, err = embedded.Open(embedded.Config{Path: path}); !fault.Is(err, fault.Conflict) {
		t.Errorf("second Open in one process = %v, want fault.Conflict", err)
	}
}

func TestConcurrentFirstOpens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	var wg sync.WaitGroup
	opened := make(chan *embedded.Store, 8)
	for range 8 {
		wg.Go(func() {
			s, err := embedded.Open(embedded.Config{Path: path})
			if err == nil {
				opened <- s
			} else if !fault.Is(err, fault.Conflict) {
				t.Errorf("Open = %v, want a store or fault.Conflict", err)
			}
		})
	}
	wg.Wait()
	close(opened)
	if len(opened) != 1 {
		t.Errorf("%d of 8 have the file open, want 1", len(opened))
	}
	for s := range opened {
		s.Close()
	}
}

func TestOpenRefusesWhatIsNoStore(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "", "text": strings.Repeat("no store\n", 4096), "short": "x"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := embedded.Open(embedded.Config{Path: path})
		var f *fault.Error
		if !errors.As(err, &f) || f.Kind != fault.Internal || !strings.Contains(f.Next, "backup") {
			t.Errorf("Open of a file with %s = %v, want fault.Internal that points to the backup", name, err)
		}
		if now, _ := os.ReadFile(path); string(now) != content {
			t.Errorf("Open changed the %s file that it refused", name)
		}
	}
	if _, err := embedded.Open(embedded.Config{Path: filepath.Join(dir, "no", "such", "store")}); !fault.Is(err, fault.Invalid) {
		t.Errorf("Open in a missing directory = %v, want fault.Invalid", err)
	}
	if _, err := embedded.Open(embedded.Config{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "Path") {
		t.Errorf("Open without a path = %v, want fault.Invalid that names Path", err)
	}
}

func TestBackupIsAStore(t *testing.T) {
	s := open(t, embedded.Config{})
	for i := range 500 {
		if err := s.Txn(background, store.Put(fmt.Sprintf("k/%d", i), bytes.Repeat([]byte{byte(i)}, i*7))); err != nil {
			t.Fatal(err)
		}
	}
	want := contentOf(t, s)
	// The writer behind w makes transactions go on while the backup is taken.
	var out bytes.Buffer
	busy := writerFunc(func(p []byte) (int, error) {
		if err := s.Txn(background, store.Put("during", p[:16])); err != nil {
			t.Error(err)
		}
		return out.Write(p)
	})
	if err := s.Backup(background, busy); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "restored")
	wantContent(t, path, out.Bytes(), want)

	restored := open(t, embedded.Config{Path: path})
	for i := range 50 { // the restored file takes transactions and survives another start
		if err := restored.Txn(background, store.Put(fmt.Sprintf("k/%d", i), nil), store.Delete(fmt.Sprintf("k/%d", 499-i))); err != nil {
			t.Fatal(err)
		}
	}
	want = contentOf(t, restored)
	if err := restored.Close(); err != nil {
		t.Fatal(err)
	}
	if got := contentOf(t, open(t, embedded.Config{Path: path})); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error("a restored store lost content over a restart")
	}

	ctx, cancel := context.WithCancel(background)
	cancel()
	if err := s.Backup(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("Backup with a cancelled context = %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
