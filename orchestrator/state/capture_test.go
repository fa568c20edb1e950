package state_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
)

const captureRun = "volume-copy-1"

func digests(first, n int64) (out [][]byte) {
	for i := range n {
		sum := sha256.Sum256(fmt.Append(nil, first+i))
		out = append(out, sum[:])
	}
	return out
}

func openCapture(t *testing.T, s store.Store) {
	t.Helper()
	put(t, s, state.CapturesAt+captureRun, state.Capture{Run: captureRun, ChunkBytes: 1 << 20, Stage: state.CaptureCopy})
}

func advance(t *testing.T, s store.Store, stage string, size, first, n int64) (state.Capture, error) {
	t.Helper()
	r := state.CaptureReport{Size: size, Stage: stage, First: first, Digests: digests(first, n)}
	if stage == state.CaptureVerify {
		r.Hash, r.SHA256 = []byte{byte(first)}, strings.Repeat("a", 64)
	}
	return state.Advance(t.Context(), s, captureRun, r, now)
}

func TestAdvance(t *testing.T) {
	s := open(t)
	openCapture(t, s)
	const size, chunks = 600<<20 - 512, 600 // on three pages
	for at := int64(0); at < chunks; at += 100 {
		c, err := advance(t, s, state.CaptureCopy, size, at, 100)
		must(t, err)
		if at+100 < chunks && (c.Next != at+100 || c.Stage != state.CaptureCopy) {
			t.Fatalf("after %d: %+v", at, c)
		}
		// The answer was lost, and it is reported again.
		if again, err := advance(t, s, state.CaptureCopy, size, at, 100); err != nil || again.Next != c.Next || again.Stage != c.Stage {
			t.Fatalf("again at %d: %+v, %v", at, again, err)
		}
	}
	c := load[state.Capture](t, s, state.CapturesAt+captureRun)
	if c.Stage != state.CaptureVerify || c.Next != 0 || c.Size != size || !c.Began.Equal(now) {
		t.Fatalf("copied: %+v", c)
	}
	for at := int64(0); at < chunks; at += 50 {
		_, err := advance(t, s, state.CaptureVerify, size, at, 50)
		must(t, err)
	}
	c = load[state.Capture](t, s, state.CapturesAt+captureRun)
	if c.Stage != state.CaptureDone || c.SHA256 != strings.Repeat("a", 64) || c.Proven() != size {
		t.Fatalf("read back: %+v", c)
	}
	must(t, state.DropCaptureChunks(t.Context(), s, captureRun))
	if left, _, err := s.List(t.Context(), "capture-chunks/"); err != nil || len(left) > 0 {
		t.Errorf("%d pages are left, %v", len(left), err)
	}
}

func TestAdvanceRefuses(t *testing.T) {
	const size = 10 << 20
	for name, tt := range map[string]struct {
		stage       string
		size, at, n int64
	}{
		"a gap":           {state.CaptureCopy, size, 5, 1},
		"an overlap":      {state.CaptureCopy, size, 3, 2},
		"beyond the end":  {state.CaptureCopy, size, 4, 7},
		"another size":    {state.CaptureCopy, size + 1, 4, 1},
		"no size":         {state.CaptureCopy, 0, 4, 1},
		"too soon":        {state.CaptureVerify, size, 0, 1},
		"far too many":    {state.CaptureCopy, 1 << 50, 4, 300},
		"a stage unheard": {"wash", size, 4, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			openCapture(t, s)
			_, err := advance(t, s, state.CaptureCopy, size, 0, 4)
			must(t, err)
			before := load[state.Capture](t, s, state.CapturesAt+captureRun)
			if _, err := advance(t, s, tt.stage, tt.size, tt.at, tt.n); !fault.Is(err, fault.Conflict) {
				t.Errorf("%v", err)
			}
			if after := load[state.Capture](t, s, state.CapturesAt+captureRun); after.Next != before.Next || after.Stage != before.Stage || after.Size != size {
				t.Errorf("it stands at %+v", after)
			}
		})
	}
	s := open(t)
	if _, err := advance(t, s, state.CaptureCopy, size, 0, 1); !fault.Is(err, fault.NotFound) {
		t.Errorf("no such capture: %v", err)
	}
	// The same place with another digest is no repetition.
	openCapture(t, s)
	_, err := advance(t, s, state.CaptureCopy, size, 0, 4)
	must(t, err)
	r := state.CaptureReport{Size: size, Stage: state.CaptureCopy, First: 0, Digests: digests(7, 4)}
	if _, err := state.Advance(t.Context(), s, captureRun, r, now); !fault.Is(err, fault.Conflict) {
		t.Errorf("other digests: %v", err)
	}
}

func TestAdvanceFindsMismatch(t *testing.T) {
	s := open(t)
	openCapture(t, s)
	const size = 300 << 20
	for at := int64(0); at < 300; at += 100 {
		_, err := advance(t, s, state.CaptureCopy, size, at, 100)
		must(t, err)
	}
	bad := digests(0, 256)
	bad[200] = bytes.Repeat([]byte{1}, 32)
	c, err := state.Advance(t.Context(), s, captureRun, state.CaptureReport{Size: size, Stage: state.CaptureVerify, Digests: bad}, now)
	if err != nil || c.Stage != state.CaptureFailed || !strings.Contains(c.Reason, "chunk 200") || !strings.Contains(c.Reason, "LBA 409600 ") || c.Kind != "unverified" {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err := advance(t, s, state.CaptureVerify, size, 0, 1); !fault.Is(err, fault.Conflict) {
		t.Errorf("it goes on after it has failed: %v", err)
	}
}

func TestCaptureFails(t *testing.T) {
	s := open(t)
	openCapture(t, s)
	c, err := state.Advance(t.Context(), s, captureRun, state.CaptureReport{Stage: state.CaptureCopy, Kind: "not-found", Reason: "disk not found"}, now)
	if err != nil || c.Stage != state.CaptureFailed || c.Reason != "disk not found" || !c.Ended.Equal(now) {
		t.Errorf("%+v, %v", c, err)
	}
}

// Of many who report the same at once, all are answered and it counts once.
func TestAdvanceRace(t *testing.T) {
	s := open(t)
	openCapture(t, s)
	if n := race(t, func(int) error {
		_, err := state.Advance(t.Context(), s, captureRun, state.CaptureReport{Size: 10 << 20, Stage: state.CaptureCopy, Digests: digests(0, 4)}, now)
		return err
	}); n != racers {
		t.Errorf("%d of %d were answered", n, racers)
	}
	if c := load[state.Capture](t, s, state.CapturesAt+captureRun); c.Next != 4 {
		t.Errorf("it stands at %d", c.Next)
	}
}
