package images_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
)

func open(t *testing.T, dir string, o images.Options) *images.Store {
	t.Helper()
	s, err := images.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func digest(b []byte) pxe.Digest { return pxe.DigestOf(sha256.Sum256(b)) }

// left counts what lies in a folder of the store.
func left(t *testing.T, dir, sub string) int {
	t.Helper()
	es, err := os.ReadDir(filepath.Join(dir, sub))
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func TestImportAndOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := open(t, dir, images.Options{})
	b := bytes.Repeat([]byte("kernel"), 100000)
	for range 2 {
		d, err := s.Import(t.Context(), "vmlinuz-6.1", bytes.NewReader(b), digest(b))
		if err != nil || d != digest(b) {
			t.Fatalf("%s %v", d, err)
		}
	}
	if d, err := open(t, dir, images.Options{}).Lookup("vmlinuz-6.1"); err != nil || d != digest(b) {
		t.Errorf("name: %s %v", d, err)
	}
	f, err := s.Open(digest(b))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, b) || f.Size() != int64(len(b)) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if left(t, dir, "incoming") != 0 {
		t.Error("imports left something behind")
	}
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[e.IsDir()]; err == nil && fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v", p, fi.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestImportRefuses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, images.Options{MaxSize: 1000})
	b := []byte("kernel")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct {
		ctx  context.Context
		name string
		r    io.Reader
		want pxe.Digest
		kind fault.Kind
	}{
		"CVE-2024-47211 other content": {t.Context(), "k", bytes.NewReader(b), digest([]byte("other")), fault.Unverified},
		"malformed digest":             {t.Context(), "k", bytes.NewReader(b), "md5:abc", fault.Invalid},
		"CVE-2026-44919 endless":       {t.Context(), "k", zeros{}, "", fault.Invalid},
		"traversal":                    {t.Context(), "../k", bytes.NewReader(b), "", fault.Invalid},
		"absolute":                     {t.Context(), "/etc/passwd", bytes.NewReader(b), "", fault.Invalid},
		"source breaks":                {t.Context(), "k", io.MultiReader(bytes.NewReader(b), broken{}), "", fault.Internal},
		"cancelled":                    {cancelled, "k", bytes.NewReader(b), "", fault.Internal},
	} {
		if _, err := s.Import(tt.ctx, tt.name, tt.r, tt.want); !fault.Is(err, tt.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := left(t, dir, "incoming") + left(t, dir, "sha256") + left(t, dir, "names"); n != 0 {
		t.Errorf("%d files left by refused imports", n)
	}
	for _, d := range []pxe.Digest{"", "sha256:../../../etc/passwd", "file:///etc/shadow", digest(b)} {
		if f, err := s.Open(d); err == nil {
			f.Close()
			t.Errorf("opened %q", d)
		}
		if s.Has(d) {
			t.Errorf("has %q", d)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection lost") }

// TestEveryFlippedBit is H42 and H43: a change of one bit anywhere is found before the file is served.
func TestEveryFlippedBit(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, images.Options{})
	b := []byte("a small kernel")
	d, err := s.Import(t.Context(), "", bytes.NewReader(b), "")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "sha256", d.Hex())
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(c []byte) {
		t.Helper()
		if err := os.WriteFile(path, c, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil {
			t.Fatal(err)
		}
	}
	for bit := range len(b) * 8 {
		f, err := s.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		c := bytes.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		write(c)
		if _, err := s.Open(d); !fault.Is(err, fault.Unverified) {
			t.Fatalf("bit %d: %v", bit, err)
		}
		write(b)
	}
	write(b[:len(b)-1])
	if _, err := s.Open(d); !fault.Is(err, fault.Unverified) {
		t.Errorf("truncated: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(d); err == nil {
		t.Error("followed a link out of the store")
	}
}

func TestBrokenImportsAreSwept(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, images.Options{})
	old, young := filepath.Join(dir, "incoming", "old"), filepath.Join(dir, "incoming", "young")
	for _, p := range []string{old, young} {
		if err := os.WriteFile(p, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	open(t, dir, images.Options{})
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an import of two days ago is still there")
	}
	if _, err := os.Stat(young); err != nil {
		t.Error("an import of now was taken away")
	}
}

func TestManyAtOnce(t *testing.T) {
	s := open(t, t.TempDir(), images.Options{})
	b := bytes.Repeat([]byte("initrd"), 50000)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.Import(t.Context(), "initrd", bytes.NewReader(b), digest(b)); err != nil {
				t.Error(err)
				return
			}
			f, err := s.Open(digest(b))
			if err != nil {
				t.Error(err)
				return
			}
			f.Close()
		})
	}
	wg.Wait()
}

// TestVerdictIsKept reads an old, unchanged file once for many machines, and again when it changes.
func TestVerdictIsKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, images.Options{})
	b := bytes.Repeat([]byte("k"), 8<<20)
	d, err := s.Import(t.Context(), "", bytes.NewReader(b), "")
	if err != nil {
		t.Fatal(err)
	}
	opened := func() time.Duration {
		t.Helper()
		at := time.Now()
		f, err := s.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		return time.Since(at)
	}
	first := opened()
	deadline := time.Now().Add(20 * time.Second)
	for opened() > first/4 { // until the file is old enough for a verdict to be kept
		if time.Now().After(deadline) {
			t.Fatal("every Open reads the whole file")
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "sha256", d.Hex()), b[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(d); !fault.Is(err, fault.Unverified) {
		t.Errorf("changed after the verdict: %v", err)
	}
}
