package iscsi_test

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

// transfer writes and reads far more than one command takes, at both ends of the disk.
func transfer(t *testing.T, s *iscsi.Session) {
	t.Helper()
	ctx := t.Context()
	const size = 4 << 20
	want := make([]byte, 1<<20+3*512)
	for i, r := 0, rand.New(rand.NewPCG(1, 2)); i < len(want); i++ {
		want[i] = byte(r.Uint32())
	}
	for _, off := range []int64{0, 512, size - int64(len(want))} {
		if err := s.WriteAt(ctx, 1, want, off); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(ctx, 1); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := s.ReadAt(ctx, 1, got, off); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("what is read at %d is not what was written: %v", off, err)
		}
	}
	for _, bad := range []struct {
		n   int
		off int64
	}{{512, 1}, {511, 0}, {512, -512}, {512, size}} {
		if err := s.WriteAt(ctx, 1, make([]byte, bad.n), bad.off); !fault.Is(err, fault.Invalid) {
			t.Errorf("%d bytes at %d: %v", bad.n, bad.off, err)
		}
	}
	if err := s.Ping(ctx); err != nil {
		t.Errorf("the session is gone: %v", err)
	}
}

func TestLargeTransfers(t *testing.T) {
	_, _, at := portal(t, &disk{}, iscsi.Account{}, from)
	s, err := login(t, at, iscsi.Params{Target: volume})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	transfer(t, s)
}

func TestLargeTransfersToTgtd(t *testing.T) {
	d := maskingtest.StartTgtd(t)
	d.AddVolume(1, volume, 4<<20, iscsi.Account{})
	d.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: 1, Params: "initiator-address=" + from})
	s, err := login(t, d.Portal, iscsi.Params{Target: volume})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	transfer(t, s)
}

// huge is a disk of 3 TiB of which the blocks written are kept.
type huge struct {
	mu   sync.Mutex
	kept map[int64][]byte
}

func (h *huge) Blocks() uint64 { return 3 << 40 / iscsi.BlockSize }
func (h *huge) Serial() string { return "huge" }

func (h *huge) ReadAt(_ iscsi.Identity, p []byte, off int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	copy(p, h.kept[off])
	return nil
}

func (h *huge) WriteAt(_ iscsi.Identity, p []byte, off int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept[off] = bytes.Clone(p)
	return nil
}

// A disk of more than 2^32 blocks needs other commands, for its size and for its far end.
func TestBeyondTwoTebibytes(t *testing.T) {
	h := &huge{kept: map[int64][]byte{}}
	at := serveDevice(t, h, iscsi.Account{}, from)
	s, err := login(t, at, iscsi.Params{Target: volume})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	blocks, size, err := s.Capacity(t.Context(), 1)
	if err != nil || blocks != h.Blocks() || size != iscsi.BlockSize {
		t.Fatalf("%d blocks of %d, %v", blocks, size, err)
	}
	want := bytes.Repeat([]byte("far away"), 64)
	off := int64(blocks-1) * iscsi.BlockSize
	if err := s.WriteAt(t.Context(), 1, want, off); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := s.ReadAt(t.Context(), 1, got, off); err != nil || !bytes.Equal(got, want) || !bytes.Equal(h.kept[off], want) {
		t.Errorf("the last block: %v", err)
	}
}
