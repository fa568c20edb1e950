package capture_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/capture"
)

// source is a disk in a file, with sectors that cannot be read.
type source struct {
	*os.File
	size int64
	bad  map[int64]bool // by LBA
}

func (s *source) Size() int64 { return s.size }

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	for lba := off / 512; lba <= (off+int64(len(p))-1)/512; lba++ {
		if s.bad[lba] {
			n := max(lba*512-off, 0)
			n2, _ := s.File.ReadAt(p[:n], off)
			return n2, errors.New("input/output error")
		}
	}
	return s.File.ReadAt(p, off)
}

// volume is a volume in a file that counts, and goes away after some writes.
type volume struct {
	f      *os.File
	size   int64
	writes []int64 // where
	reads  int
	away   int // writes until the connection breaks; negative: never
	dirty  bool
}

func gone() error { return fault.New(fault.Unreachable, "connection reset") }

func (v *volume) Size() int64 { return v.size }

func (v *volume) ReadAt(_ context.Context, p []byte, off int64) error {
	v.reads++
	_, err := v.f.ReadAt(p, off)
	return err
}

func (v *volume) WriteAt(_ context.Context, p []byte, off int64) error {
	if v.away == 0 {
		v.away = -1
		return gone()
	}
	v.away--
	v.writes, v.dirty = append(v.writes, off), true
	_, err := v.f.WriteAt(p, off)
	return err
}

func (v *volume) Sync(context.Context) error { v.dirty = false; return nil }
func (v *volume) Close() error               { return nil }

// ledger is the server's book: it checks that what is reported is on the volume's disk.
type ledger struct {
	t       *testing.T
	v       *volume
	chunks  int64
	stands  capture.State
	digests []string
	sha     string
	reports int
	fail    func(n int) error // of the nth report, before it is written down
}

func (l *ledger) report(_ context.Context, r capture.Report) (capture.State, error) {
	must(l.t, r.Validate())
	l.reports++
	if l.fail != nil {
		if err := l.fail(l.reports); err != nil {
			return capture.State{}, err
		}
	}
	if r.First != l.stands.Next || r.Stage != l.stands.Stage {
		l.t.Errorf("a report of %s %d, it stands at %+v", r.Stage, r.First, l.stands)
	}
	if len(r.Digests) > 0 && r.Stage == capture.Copy && l.v.dirty {
		l.t.Error("chunks were reported that are in the volume's cache only")
	}
	for i, d := range r.Digests {
		switch n := r.First + int64(i); r.Stage {
		case capture.Copy:
			l.digests = append(l.digests[:n], d)
		case capture.Verify, capture.Done:
			if l.digests[n] != d {
				return capture.State{}, fault.Newf(fault.Conflict, "digest mismatch at chunk %d", n)
			}
		}
	}
	if len(r.Digests) == 0 {
		return l.stands, nil
	}
	l.stands.Next, l.stands.Hash = r.First+int64(len(r.Digests)), r.Hash
	if l.stands.Next == l.chunks {
		if r.Stage == capture.Copy {
			l.stands = capture.State{Stage: capture.Verify}
		} else {
			l.stands, l.sha = capture.State{Stage: capture.Done}, r.SHA256
		}
	}
	return l.stands, nil
}

const chunk = 4 << 10

type bench struct {
	src  *source
	dst  *volume
	book *ledger
	cfg  capture.Config
	sum  string
}

// setup makes a disk of size bytes, some chunks of which are zero, and a volume full of something else.
func setup(t *testing.T, size int64) *bench {
	t.Helper()
	data := bytes.Repeat([]byte("what was on the disk "), int(size/21)+1)[:size]
	for i := int64(0); i*chunk < size; i += 3 {
		clear(data[i*chunk : min((i+1)*chunk, size)])
	}
	open := func(name string, b []byte) *os.File {
		path := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(path, b, 0o600))
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		t.Cleanup(func() { must(t, f.Close()) })
		return f
	}
	v := &volume{f: open("volume", bytes.Repeat([]byte{0xa5}, int(size)+chunk)), size: size + chunk, away: -1}
	sum := sha256.Sum256(data)
	b := &bench{src: &source{File: open("disk", data), size: size}, dst: v, sum: hex.EncodeToString(sum[:]),
		book: &ledger{t: t, v: v, chunks: capture.Chunks(size, chunk), stands: capture.State{Stage: capture.Copy}}}
	b.cfg = capture.Config{Source: b.src, Ledger: b.book.report, Every: time.Millisecond, Patience: time.Second,
		Open: func(context.Context) (capture.Target, error) { return b.dst, nil }}
	return b
}

// run goes on from where the book stands, as a new boot does.
func (b *bench) run(t *testing.T) error {
	b.cfg.Orders = capture.Orders{Disk: "serial:x", Portals: []string{"10.0.0.1:3260"}, Target: "iqn.2026-01.org.example:v", Initiator: "iqn.2026-01.org.example:h",
		ChunkBytes: chunk, State: b.book.stands}
	if b.book.reports > 0 {
		b.cfg.Orders.Size = b.src.size
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return capture.Run(ctx, b.cfg)
}

func (b *bench) mustBeCopied(t *testing.T) {
	t.Helper()
	got := make([]byte, b.src.size)
	_, err := b.dst.f.ReadAt(got, 0)
	must(t, err)
	want := make([]byte, b.src.size)
	_, err = b.src.File.ReadAt(want, 0)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the volume does not hold the disk")
	}
	rest := make([]byte, chunk)
	_, err = b.dst.f.ReadAt(rest, b.src.size)
	if err != nil && err != io.EOF || !bytes.Equal(rest, bytes.Repeat([]byte{0xa5}, chunk)) {
		t.Error("something was written behind the disk's end")
	}
	if b.book.sha != b.sum {
		t.Errorf("the digest is %s, of the disk %s", b.book.sha, b.sum)
	}
}

func TestCopy(t *testing.T) {
	for _, size := range []int64{512, chunk, 100 * chunk, 99*chunk + 512} {
		b := setup(t, size)
		must(t, b.run(t))
		b.mustBeCopied(t)
	}
}

// What is zero on both sides is not written, and what is zero on the disk alone is.
func TestThinVolumesStayThin(t *testing.T) {
	b := setup(t, 9*chunk)
	must(t, b.dst.f.Truncate(0))
	must(t, b.dst.f.Truncate(b.dst.size))
	dirty := bytes.Repeat([]byte{1}, 10)
	_, err := b.dst.f.WriteAt(dirty, 3*chunk)
	must(t, err)
	must(t, b.run(t))
	if want := []int64{1 * chunk, 2 * chunk, 3 * chunk, 4 * chunk, 5 * chunk, 7 * chunk, 8 * chunk}; !slices.Equal(b.dst.writes, want) {
		t.Errorf("written at %v, want %v", b.dst.writes, want)
	}
}

// Whatever report is the last before it is killed: the next boot goes on, in both stages.
func TestResumeAfterEveryReport(t *testing.T) {
	const size = 200*chunk + 512
	whole := setup(t, size)
	must(t, whole.run(t))
	killed := errors.New("killed")
	for n := 1; n <= whole.book.reports; n += 5 {
		b := setup(t, size)
		b.book.fail = func(i int) error {
			if i == n {
				return killed
			}
			return nil
		}
		if err := b.run(t); !errors.Is(err, killed) {
			if err == nil { // batches are by time as well
				continue
			}
			t.Fatal(err)
		}
		stood, writes := b.book.stands, len(b.dst.writes)
		b.book.fail = nil
		must(t, b.run(t))
		for _, at := range b.dst.writes[writes:] {
			if stood.Stage != capture.Copy || at < stood.Next*chunk {
				t.Fatalf("killed at %s %d, and %d was written again", stood.Stage, stood.Next, at/chunk)
			}
		}
		if b.book.sha != b.sum {
			t.Fatalf("killed at %s %d: the digest is %s, of the disk %s", stood.Stage, stood.Next, b.book.sha, b.sum)
		}
	}
}

func TestConnectionLost(t *testing.T) {
	b := setup(t, 100*chunk)
	b.dst.away = 30
	opened := 0
	b.cfg.Open = func(context.Context) (capture.Target, error) {
		if opened++; opened == 2 {
			return nil, gone()
		}
		return b.dst, nil
	}
	must(t, b.run(t))
	b.mustBeCopied(t)
	if opened != 3 {
		t.Errorf("connected %d times", opened)
	}
	b.cfg.Open = func(context.Context) (capture.Target, error) { return nil, gone() }
	b.cfg.Patience = 20 * time.Millisecond
	b.book.stands = capture.State{Stage: capture.Copy}
	if err := b.run(t); !fault.Is(err, fault.Unreachable) {
		t.Errorf("a volume that stays away: %v", err)
	}
}

func TestReadErrorNamesTheSector(t *testing.T) {
	b := setup(t, 20*chunk)
	b.src.bad = map[int64]bool{77: true, 78: true, 140: true}
	err := b.run(t)
	if err == nil || !strings.Contains(err.Error(), "read error at LBA 77") || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("%v", err)
	}
	if b.book.stands.Stage != capture.Copy || b.book.stands.Next > 9 {
		t.Errorf("chunks with bad sectors were reported: %+v", b.book.stands)
	}
}

func TestRefusals(t *testing.T) {
	b := setup(t, 20*chunk)
	b.dst.size = 20*chunk - 512
	if err := b.run(t); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "volume too small") {
		t.Errorf("%v", err)
	}
	if len(b.dst.writes) > 0 || b.book.reports > 0 {
		t.Error("something was done")
	}
	b = setup(t, 20*chunk)
	o := b.cfg
	o.Orders = capture.Orders{Disk: "serial:x", Portals: []string{"p"}, Target: "t", Initiator: "i", ChunkBytes: chunk, Size: 19 * chunk, State: b.book.stands}
	if err := capture.Run(t.Context(), o); !fault.Is(err, fault.Conflict) {
		t.Errorf("a disk of another size: %v", err)
	}
	b.src.size = 0
	o.Orders.Size = 0
	if err := capture.Run(t.Context(), o); !fault.Is(err, fault.Unsupported) {
		t.Errorf("an empty disk: %v", err)
	}
}

// What somebody else writes to the volume in between is found.
func TestMismatchIsFound(t *testing.T) {
	b := setup(t, 50*chunk)
	b.book.fail = func(int) error {
		if b.book.stands.Stage == capture.Verify && b.book.stands.Next == 0 {
			_, err := b.dst.f.WriteAt([]byte("!"), 40*chunk)
			return err
		}
		return nil
	}
	if err := b.run(t); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "digest mismatch at chunk 40") {
		t.Errorf("%v", err)
	}
}
