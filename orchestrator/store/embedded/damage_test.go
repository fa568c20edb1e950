package embedded_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
)

// TestFlippedBitIsNeverBelieved flips single bits of a closed file: it either does not open, or has the
// very content it had, because the bit meant nothing.
func TestFlippedBitIsNeverBelieved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store")
	s := open(t, embedded.Config{Path: path})
	for i := range 400 { // some branch pages, some free pages
		if err := s.Txn(background, store.Put(fmt.Sprintf("k/%03d", i%350), bytes.Repeat([]byte{byte(i)}, i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Txn(background, store.Put("long", bytes.Repeat([]byte("x"), 20000)), store.Delete("k/011")); err != nil {
		t.Fatal(err)
	}
	want := contentOf(t, s)
	var backup bytes.Buffer // without the unused end of the file
	if err := s.Backup(background, &backup); err != nil {
		t.Fatal(err)
	}
	refused := 0
	const flips = 200
	for i := range flips {
		image := bytes.Clone(backup.Bytes())
		bit := rand.IntN(len(image) * 8)
		if i%4 == 0 { // page headers and element tables, where the structure is
			bit = rand.IntN(len(image)/4096)*4096*8 + rand.IntN(160*8)
		}
		image[bit/8] ^= 1 << (bit % 8)
		flipped := filepath.Join(dir, "flipped")
		if err := os.WriteFile(flipped, image, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := embedded.Open(embedded.Config{Path: flipped})
		if err != nil {
			var f *fault.Error
			if !errors.As(err, &f) || f.Kind != fault.Internal || f.Where != flipped || f.Next == "" {
				t.Fatalf("bit %d: Open = %v, want fault.Internal with the path and what to do", bit, err)
			}
			refused++
			continue
		}
		got := contentOf(t, s)
		s.Close()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("bit %d: a changed store was opened as if it were sound", bit)
		}
	}
	if refused < flips/4 {
		t.Errorf("%d of %d flipped files were refused: the check does not see much", refused, flips)
	}
}

// TestDamageWhileRunning changes the file under an open store.
func TestDamageWhileRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	s := open(t, embedded.Config{Path: path})
	if err := s.Txn(background, store.Put("good", []byte("sound")), store.Put("bad", []byte("a value to be damaged"))); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	damaged := 0
	for rest := image; ; {
		i := bytes.Index(rest, []byte("value to be"))
		if i < 0 {
			break
		}
		if _, err := f.WriteAt([]byte("V"), int64(len(image)-len(rest)+i)); err != nil {
			t.Fatal(err)
		}
		rest = rest[i+1:]
		damaged++
	}
	if damaged == 0 {
		t.Fatal("the value is not in the file")
	}
	if e, err := s.Get(background, "good"); err != nil || string(e.Value) != "sound" {
		t.Errorf("Get of a sound record = %q, %v", e.Value, err)
	}
	if err := s.Err(); err != nil {
		t.Errorf("Err = %v before the damage was met", err)
	}
	_, err = s.Get(background, "bad")
	if !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), `"bad"`) {
		t.Errorf("Get of a damaged record = %v, want fault.Internal that names it", err)
	}
	if err := s.Err(); !fault.Is(err, fault.Internal) {
		t.Errorf("Err = %v after damage was met, want it", err)
	}
	if err := s.Txn(background, store.Put("good", nil)); !fault.Is(err, fault.Unreachable) {
		t.Errorf("Txn on a damaged store = %v, want fault.Unreachable", err)
	}
	if err := s.Backup(background, io.Discard); !fault.Is(err, fault.Internal) {
		t.Errorf("Backup of a damaged store = %v, want fault.Internal", err)
	}
}
