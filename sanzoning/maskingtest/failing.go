package maskingtest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"rerack.dev/rerack/internal/fault"
)

// testFailEach moves a volume from one holder with a live session to another, and makes each request of
// that move fail in each way. At no time may two hosts be able to write, and repeating the move must
// bring it to its end.
func testFailEach(t *testing.T, make func(t *testing.T) Rig) {
	for _, how := range []Failure{Refused, Lost, Dropped} {
		t.Run(string(how), func(t *testing.T) {
			for at := 0; ; at++ {
				more := true
				t.Run(fmt.Sprintf("request %d", at), func(t *testing.T) { more = failOne(t, make(t), at, how) })
				if !more || t.Failed() {
					if at < 8 {
						t.Errorf("only %d requests were sent", at)
					}
					return
				}
			}
		})
	}
}

// failOne is false when the move needs no request number at.
func failOne(t *testing.T, r Rig, at int, how Failure) bool {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	apply(t, c, change(1, v[0], h[0]))
	old := start(t, r, h[0], v[0])

	var mu sync.Mutex
	var seen []string
	r.Watch(func() {
		got := r.Holders(v[0])
		slices.Sort(got)
		if got = slices.Compact(got); len(got) > 1 {
			mu.Lock()
			seen = append(seen, fmt.Sprint(got))
			mu.Unlock()
		}
	})
	before := r.Requests()
	r.Fail(at, how)
	move := change(2, v[0], h[1])
	_, err := c.Apply(t.Context(), move)
	if !r.Heal() {
		if err != nil {
			t.Fatalf("nothing failed, and yet: %v", err)
		}
		if sent := r.Requests() - before; sent > at {
			t.Fatalf("%d requests were sent and number %d did not fail", sent, at)
		}
		return false
	}
	if err == nil {
		// A failed request may be of no consequence, but then everything is as it was asked for.
		holders(t, r, v[0], h[1])
	} else if k := fault.KindOf(err); !k.Retryable() {
		t.Fatalf("a failure of the transport gave kind %v: %v", k, err)
	}
	apply(t, c, move)
	holders(t, r, v[0], h[1])
	if old.Write() {
		t.Fatal("the old holder wrote after the move")
	}
	if m := maskOf(t, c, v[0]); m.Epoch != 2 || !slices.Equal(m.Initiators, []string{h[1]}) {
		t.Fatalf("the move ends in %+v", m)
	}
	start(t, r, h[1], v[0])
	if res := apply(t, c, move); len(res.Changed) != 0 {
		t.Fatalf("the move has not ended: %v", res.Changed)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) > 0 {
		t.Fatalf("two holders at once: %v", seen)
	}
	return true
}
