// Package maskingtest is the contract that every driver of a storage array passes: against its
// simulator, and against a real array where one can be had.
package maskingtest

import (
	"context"
	"slices"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/masking"
)

// Failure is what becomes of one request of a driver to its array.
type Failure string

// Refused requests fail without effect, lost ones take effect and get no answer, dropped ones are cut
// off without effect.
const (
	Refused Failure = "refused"
	Lost    Failure = "applied, reply lost"
	Dropped Failure = "dropped"
)

// Rig is one array under test, fresh for each test, with two volumes that nobody may reach.
type Rig interface {
	// Open makes a driver for the array. Several may be open at once.
	Open(t *testing.T) driver.Array
	// Volumes are the array's names of the two volumes, Hosts three initiators.
	Volumes() [2]string
	Hosts() [3]string
	// Start makes a host use a volume: it logs in, if that is the protocol's way, and is ready to
	// write. False means that it was not let in.
	Start(t *testing.T, host, volume string) (Holder, bool)
	// Holders is the truth, by no way of the driver: who could write to the volume now, by the mask or
	// by an open session.
	Holders(volume string) []string
	// Watch calls fn after every change of the truth, from any goroutine, until the test ends.
	Watch(fn func())
	// Requests counts what drivers sent. Fail lets that many more requests pass and makes one fail.
	Requests() int
	Fail(pass int, how Failure)
	// Heal takes a failure back that has not come about, and reports whether it had.
	Heal() (fired bool)
	// Loosen lets everybody, or a stranger, in to the volume behind the driver's back, in a way that the
	// driver must not undo on a volume that is not ours.
	Loosen(t *testing.T, volume string)
}

// Holder is a host that uses a volume.
type Holder interface {
	// Write writes one block; false means that it did not arrive.
	Write() bool
	Stop()
}

// Run runs the contract. make is called for every test.
func Run(t *testing.T, make func(t *testing.T) Rig) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Rig)
	}{
		{"grant, move and fence", testMove},
		{"a live session cannot write after Apply", testLiveSession},
		{"a stale epoch changes nothing", testStale},
		{"repeating changes nothing", testIdempotent},
		{"other volumes stay as they are", testOthers},
		{"somebody else's rules stop it", testForeign},
		{"wrong requests change nothing", testInvalid},
		{"shared volumes keep their holders", testShared},
		{"cancelled", testCancelled},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, make(t)) })
	}
	t.Run("every request fails once", func(t *testing.T) { testFailEach(t, make) })
}

func open(t *testing.T, r Rig) *masking.Client {
	t.Helper()
	c, err := masking.New(r.Open(t), masking.Config{Array: "a1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func change(epoch uint64, volume string, hosts ...string) driver.MaskChange {
	return driver.MaskChange{Owner: "recovery/rack-7/3", Masks: []driver.Mask{{Volume: volume, Initiators: hosts, Epoch: epoch}}}
}

func apply(t *testing.T, c *masking.Client, ch driver.MaskChange) driver.MaskResult {
	t.Helper()
	res, err := c.Apply(t.Context(), ch)
	if err != nil {
		t.Fatalf("apply %+v: %v", ch, err)
	}
	return res
}

func holders(t *testing.T, r Rig, volume string, want ...string) {
	t.Helper()
	got := r.Holders(volume)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(slices.Compact(got), want) {
		t.Fatalf("%s can be written by %v, want %v", volume, got, want)
	}
}

func maskOf(t *testing.T, c *masking.Client, volume string) driver.Mask {
	t.Helper()
	all, err := c.Masks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(all, func(m driver.Mask) bool { return m.Volume == volume })
	if at < 0 {
		t.Fatalf("no mask of %s in %+v", volume, all)
	}
	return all[at]
}

func start(t *testing.T, r Rig, host, volume string) Holder {
	t.Helper()
	h, ok := r.Start(t, host, volume)
	if !ok {
		t.Fatalf("%s is not let in to %s", host, volume)
	}
	t.Cleanup(h.Stop)
	if !h.Write() {
		t.Fatalf("%s cannot write to %s", host, volume)
	}
	return h
}

func testMove(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	if m := maskOf(t, c, v[0]); m.Epoch != 0 || len(m.Initiators) != 0 {
		t.Fatalf("a fresh volume has %+v", m)
	}
	for i, hosts := range [][]string{{h[0]}, {h[1]}, {}, {h[0], h[2]}, {}} {
		epoch := uint64(i + 5)
		res := apply(t, c, change(epoch, v[0], hosts...))
		if !slices.Equal(res.Changed, []string{v[0]}) {
			t.Fatalf("step %d changed %v", i, res.Changed)
		}
		holders(t, r, v[0], hosts...)
		m := maskOf(t, c, v[0])
		if m.Epoch != epoch || !slices.Equal(m.Initiators, hosts) {
			t.Fatalf("step %d reads back %+v", i, m)
		}
		for _, host := range h {
			got, ok := r.Start(t, host, v[0])
			if want := slices.Contains(hosts, host); ok != want {
				t.Fatalf("step %d: %s let in: %v, want %v", i, host, ok, want)
			}
			if ok {
				if !got.Write() {
					t.Fatalf("step %d: %s cannot write", i, host)
				}
				got.Stop()
			}
		}
	}
}

// testLiveSession is the hard truth of hazard H26: a holder that is in stays in until it is put out.
func testLiveSession(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	apply(t, c, change(1, v[0], h[0]))
	old := start(t, r, h[0], v[0])
	sessions, err := c.Sessions(t.Context())
	if err != nil || !slices.ContainsFunc(sessions, func(s driver.Session) bool { return s.Volume == v[0] && s.Initiator == h[0] }) {
		t.Fatalf("sessions %+v, %v", sessions, err)
	}
	apply(t, c, change(2, v[0], h[1]))
	if old.Write() {
		t.Fatal("the old holder wrote after the volume was given to another")
	}
	holders(t, r, v[0], h[1])
	next := start(t, r, h[1], v[0])
	if _, ok := r.Start(t, h[0], v[0]); ok {
		t.Fatal("the old holder logged in again")
	}
	if sessions, err = c.Sessions(t.Context()); err != nil || slices.ContainsFunc(sessions, func(s driver.Session) bool { return s.Volume == v[0] && s.Initiator != h[1] }) {
		t.Fatalf("sessions %+v, %v", sessions, err)
	}
	if strays, err := c.Strays(t.Context()); err != nil || len(strays) != 0 {
		t.Fatalf("strays %+v, %v", strays, err)
	}
	apply(t, c, change(3, v[0]))
	if next.Write() {
		t.Fatal("the fenced holder wrote")
	}
	holders(t, r, v[0])
}

func testStale(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	apply(t, c, change(7, v[0], h[0]))
	_, err := c.Apply(t.Context(), driver.MaskChange{Owner: "old", Masks: []driver.Mask{
		{Volume: v[1], Initiators: []string{h[1]}, Epoch: 6}, {Volume: v[0], Initiators: []string{h[1]}, Epoch: 6}}})
	if !fault.Is(err, fault.Stale) {
		t.Fatalf("got %v", err)
	}
	holders(t, r, v[0], h[0])
	holders(t, r, v[1])
	if m := maskOf(t, c, v[0]); m.Epoch != 7 {
		t.Fatalf("epoch %d", m.Epoch)
	}
	second := open(t, r) // the epoch is on the device, not in the driver
	if _, err := second.Apply(t.Context(), change(6, v[0])); !fault.Is(err, fault.Stale) {
		t.Fatalf("got %v", err)
	}
	apply(t, second, change(7, v[0], h[1])) // the same epoch may go on
	holders(t, r, v[0], h[1])
}

func testIdempotent(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	ch := change(3, v[0], h[0], h[1])
	apply(t, c, ch)
	holder := start(t, r, h[0], v[0])
	for range 3 {
		if res := apply(t, c, ch); len(res.Changed) != 0 {
			t.Fatalf("a repetition changed %v", res.Changed)
		}
	}
	if !holder.Write() {
		t.Fatal("a repetition ended a session that is allowed")
	}
}

func testOthers(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	apply(t, c, change(3, v[1], h[2]))
	other := start(t, r, h[2], v[1])
	before := maskOf(t, c, v[1])
	apply(t, c, change(9, v[0], h[0]))
	apply(t, c, change(10, v[0]))
	if after := maskOf(t, c, v[1]); after.Epoch != before.Epoch || !slices.Equal(after.Initiators, before.Initiators) {
		t.Fatalf("the other volume went from %+v to %+v", before, after)
	}
	if !other.Write() {
		t.Fatal("the other volume's holder cannot write any more")
	}
}

func testForeign(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	r.Loosen(t, v[0])
	before := r.Holders(v[0])
	for _, ch := range []driver.MaskChange{change(1, v[0], h[0]), change(2, v[0])} {
		if _, err := c.Apply(t.Context(), ch); !fault.Is(err, fault.Unsafe) {
			t.Fatalf("got %v", err)
		}
	}
	holders(t, r, v[0], before...)
	apply(t, c, change(1, v[1], h[0]))
}

func testInvalid(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	for name, w := range map[string]struct {
		change driver.MaskChange
		kind   fault.Kind
	}{
		"no masks":       {driver.MaskChange{Owner: "x"}, fault.Invalid},
		"no epoch":       {change(0, v[0], h[0]), fault.Invalid},
		"no such volume": {change(1, v[0]+"x", h[0]), fault.NotFound},
		"no owner":       {driver.MaskChange{Masks: change(1, v[0]).Masks}, fault.Invalid},
		"a name":         {change(1, v[0], "iqn.2026-01.x:y"), fault.Invalid},
		"everybody":      {change(1, v[0], "ALL"), fault.Invalid},
		"twice":          {change(1, v[0], h[0], h[0]), fault.Invalid},
		"volume twice":   {driver.MaskChange{Owner: "x", Masks: append(change(1, v[0]).Masks, change(1, v[0], h[0]).Masks...)}, fault.Invalid},
	} {
		if _, err := c.Apply(t.Context(), w.change); !fault.Is(err, w.kind) {
			t.Errorf("%s: got %v, want kind %v", name, err, w.kind)
		}
	}
	holders(t, r, v[0])
	if m := maskOf(t, c, v[0]); m.Epoch != 0 {
		t.Fatalf("a refused request left %+v", m)
	}
}

func testShared(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	apply(t, c, change(1, v[0], h[0], h[1]))
	stays, goes := start(t, r, h[0], v[0]), start(t, r, h[1], v[0])
	apply(t, c, change(2, v[0], h[0], h[2]))
	if !stays.Write() {
		t.Fatal("the holder that stays was put out")
	}
	if goes.Write() {
		t.Fatal("the holder that goes wrote")
	}
	start(t, r, h[2], v[0])
}

func testCancelled(t *testing.T, r Rig) {
	c, v, h := open(t, r), r.Volumes(), r.Hosts()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Apply(ctx, change(1, v[0], h[0])); err == nil {
		t.Fatal("a cancelled change succeeded")
	}
	holders(t, r, v[0])
	ctx, cancel = context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	<-ctx.Done()
	if _, err := c.Masks(ctx); !fault.Is(err, fault.Timeout) {
		t.Fatalf("got %v", err)
	}
}
