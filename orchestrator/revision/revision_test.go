package revision_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/examples"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/topology"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB) store.Store {
	t.Helper()
	s, err := embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func story(t testing.TB) *topology.Topology {
	t.Helper()
	topo, err := topology.LoadFS(examples.Story, "story")
	must(t, err)
	return topo
}

// labelled is the story with one more label on its site.
func labelled(t testing.TB, key, value string) *topology.Topology {
	topo := story(t)
	site := topo.Sites["hall-1"]
	site.Meta.Labels = map[string]string{key: value}
	topo.Sites["hall-1"] = site
	return topo
}

func newLog(s store.Store) *revision.Log {
	return &revision.Log{Store: s, Now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }}
}

func TestApplyMakesARevisionOnlyOfAChange(t *testing.T) {
	l := newLog(open(t))
	ctx := t.Context()
	if h, topo := l.Current(); h.Revision != 0 || topo.Len() != 0 {
		t.Fatalf("before the first: %+v", h)
	}
	a := story(t)
	h, changed, err := l.Apply(ctx, a, "ann", "first", -1)
	must(t, err)
	if !changed || h.Revision != 1 || h.Objects != a.Len() || h.By != "ann" || h.Message != "first" {
		t.Fatalf("first: %+v", h)
	}
	if h, changed, err = l.Apply(ctx, story(t), "bob", "again", -1); err != nil || changed || h.Revision != 1 || h.By != "ann" {
		t.Errorf("again: %+v %t %v", h, changed, err)
	}
	// What is exported, as YAML, is what was applied.
	yaml, err := topology.Marshal(l.Topology())
	must(t, err)
	back, err := topology.Load([]topology.File{{Name: "export.yaml", Data: yaml}})
	must(t, err)
	if h, changed, err = l.Apply(ctx, back, "bob", "export", 1); err != nil || changed || h.Revision != 1 {
		t.Errorf("the export: %+v %t %v", h, changed, err)
	}
	b := labelled(t, "floor", "2")
	if h, changed, err = l.Apply(ctx, b, "bob", "label", 1); err != nil || !changed || h.Revision != 2 {
		t.Fatalf("second: %+v %t %v", h, changed, err)
	}
	if _, _, err := l.Apply(ctx, a, "ann", "too late", 1); !fault.Is(err, fault.Conflict) {
		t.Errorf("planned against revision 1: %v", err)
	}
	// Going back makes a new revision of the old content.
	_, old, err := l.Load(ctx, 1)
	must(t, err)
	if h, changed, err = l.Apply(ctx, old, "ann", "back to 1", 2); err != nil || !changed || h.Revision != 3 {
		t.Fatalf("rollback: %+v %t %v", h, changed, err)
	}
	if !topology.Equal(l.Topology(), a) {
		t.Error("the rollback is not what revision 1 was")
	}
	all, err := l.List(ctx)
	must(t, err)
	var said []string
	for _, h := range all {
		said = append(said, fmt.Sprintf("%d %s %s", h.Revision, h.By, h.Message))
	}
	if got := strings.Join(said, ", "); got != "1 ann first, 2 bob label, 3 ann back to 1" {
		t.Errorf("history: %s", got)
	}
	if _, _, err := l.Load(ctx, 4); !fault.Is(err, fault.NotFound) {
		t.Errorf("a revision that is not: %v", err)
	}
	// A process that starts now sees the newest.
	again := newLog(l.Store)
	must(t, again.Refresh(ctx))
	if h, topo := again.Current(); h.Revision != 3 || !topology.Equal(topo, a) {
		t.Errorf("after a restart: %+v", h)
	}
}

// Who goes by an older revision is given it, also after another process applied a newer one, and many asking for
// many of them are each given theirs.
func TestAtIsTheRevisionThatWasAskedFor(t *testing.T) {
	t.Parallel()
	kv := open(t)
	writer, reader := newLog(kv), newLog(kv)
	const revisions = 8
	var want [revisions + 1]string
	for i := 1; i <= revisions; i++ {
		topo := labelled(t, "n", fmt.Sprint(i))
		want[i] = topology.Hash(topo)
		_, _, err := writer.Apply(t.Context(), topo, "ann", "", -1)
		must(t, err)
		n, got, err := reader.Present(t.Context())
		must(t, err)
		if n != i || topology.Hash(got) != want[i] {
			t.Errorf("after revision %d the present one is %d", i, n)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for _, i := range rand.Perm(revisions) {
				got, err := reader.At(t.Context(), i+1)
				if err != nil || topology.Hash(got) != want[i+1] {
					t.Errorf("revision %d: %v", i+1, err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := reader.At(t.Context(), revisions+1); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that was never applied: %v", err)
	}
}

func TestWhatCannotBeReadBackIsNotApplied(t *testing.T) {
	l := newLog(open(t))
	if _, _, err := l.Apply(t.Context(), labelled(t, "long", strings.Repeat("x", 1<<20)), "ann", "", -1); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
	if all, err := l.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("it made %v, %v", all, err)
	}
}

func TestConcurrentAppliesAreOneAfterAnother(t *testing.T) {
	s := open(t)
	const writers = 8
	logs := []*revision.Log{newLog(s), newLog(s)} // two processes
	topos := make([]*topology.Topology, writers)
	for i := range topos {
		topos[i] = labelled(t, "writer", fmt.Sprint(i))
	}
	var wg sync.WaitGroup
	for i, topo := range topos {
		wg.Go(func() {
			if _, changed, err := logs[i%2].Apply(t.Context(), topo, fmt.Sprint(i), "", -1); err != nil || !changed {
				t.Errorf("writer %d: %t, %v", i, changed, err)
			}
		})
	}
	wg.Wait()
	l := newLog(s)
	all, err := l.List(t.Context())
	must(t, err)
	if len(all) != writers {
		t.Fatalf("%d revisions of %d applies", len(all), writers)
	}
	seen := map[string]bool{}
	for i, h := range all {
		if h.Revision != i+1 || seen[h.By] {
			t.Errorf("revision %d by %s", h.Revision, h.By)
		}
		seen[h.By] = true
		_, topo, err := l.Load(t.Context(), h.Revision)
		must(t, err)
		if got := topo.Sites["hall-1"].Meta.Labels["writer"]; got != h.By {
			t.Errorf("revision %d by %s holds what %s wrote", h.Revision, h.By, got)
		}
	}
}

func TestOneOfTwoWhoPlannedOnTheSameWins(t *testing.T) {
	l := newLog(open(t))
	var won, lost atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		topo := labelled(t, "writer", fmt.Sprint(i))
		wg.Go(func() {
			_, changed, err := l.Apply(t.Context(), topo, fmt.Sprint(i), "", 0)
			switch {
			case err == nil && changed:
				won.Add(1)
			case fault.Is(err, fault.Conflict):
				lost.Add(1)
			default:
				t.Error(changed, err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 7 {
		t.Errorf("%d won, %d lost", won.Load(), lost.Load())
	}
}

// large is a topology that does not fit into one value of the store, however it is packed.
func large(t testing.TB, seed uint64) *topology.Topology {
	r := rand.New(rand.NewPCG(seed, 1))
	topo := story(t)
	site := topo.Sites["hall-1"]
	site.Meta.Labels = map[string]string{}
	for i := range 256 {
		noise := make([]byte, 1200)
		for i := range noise {
			noise[i] = byte(r.Uint32())
		}
		site.Meta.Labels[fmt.Sprintf("noise-%d", i)] = hex.EncodeToString(noise)
	}
	topo.Sites["hall-1"] = site
	return topo
}

func parts(t testing.TB, s store.Store) []store.Entry {
	t.Helper()
	all, _, err := s.List(t.Context(), "topology/revision/")
	must(t, err)
	return all
}

func TestADamagedRevisionIsFoundOut(t *testing.T) {
	flip := func(v []byte, i int) []byte {
		v = append([]byte(nil), v...)
		v[i] ^= 1
		return v
	}
	for name, damage := range map[string]func(e []store.Entry) store.Op{
		"a part is missing":  func(e []store.Entry) store.Op { return store.Delete(e[1].Key) },
		"a bit in a part":    func(e []store.Entry) store.Op { return store.Put(e[0].Key, flip(e[0].Value, 5000)) },
		"the packing's head": func(e []store.Entry) store.Op { return store.Put(e[0].Key, flip(e[0].Value, 0)) },
		"parts exchanged":    func(e []store.Entry) store.Op { return store.Put(e[0].Key, e[1].Value) },
		"a part cut short":   func(e []store.Entry) store.Op { return store.Put(e[1].Key, e[1].Value[:100]) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			l := newLog(s)
			_, _, err := l.Apply(t.Context(), large(t, 1), "ann", "", -1)
			must(t, err)
			all := parts(t, s)
			if len(all) < 2 {
				t.Fatalf("only %d parts", len(all))
			}
			must(t, s.Txn(t.Context(), damage(all)))
			if _, _, err := l.Load(t.Context(), 1); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("got %v", err)
			}
			if err := newLog(s).Refresh(t.Context()); !fault.Is(err, fault.Internal) {
				t.Errorf("a process that starts: %v", err)
			}
		})
	}
	t.Run("another topology under its name", func(t *testing.T) {
		s := open(t)
		l := newLog(s)
		_, _, err := l.Apply(t.Context(), labelled(t, "a", "1"), "ann", "", -1)
		must(t, err)
		_, _, err = l.Apply(t.Context(), labelled(t, "a", "2"), "ann", "", -1)
		must(t, err)
		all := parts(t, s)
		must(t, s.Txn(t.Context(), store.Put(all[0].Key, all[len(all)-1].Value)))
		if _, _, err := l.Load(t.Context(), 1); !fault.Is(err, fault.Internal) {
			t.Errorf("got %v", err)
		}
	})
}

// crashStore ends the process, so to say, before the n-th transaction.
type crashStore struct {
	store.Store
	left atomic.Int32
}

var errCrash = errors.New("crash")

func (c *crashStore) Txn(ctx context.Context, ops ...store.Op) error {
	if c.left.Add(-1) < 0 {
		return errCrash
	}
	return c.Store.Txn(ctx, ops...)
}

func TestAnApplyIsSeenWholeOrNotAtAll(t *testing.T) {
	topo := large(t, 1)
	for n := range int32(20) {
		s := open(t)
		_, _, err := newLog(s).Apply(t.Context(), story(t), "ann", "", -1)
		must(t, err)
		c := &crashStore{Store: s}
		c.left.Store(n)
		_, _, err = newLog(c).Apply(t.Context(), topo, "bob", "", 1)
		l := newLog(s) // after the restart
		must(t, l.Refresh(t.Context()))
		h, now := l.Current()
		if err == nil {
			if h.Revision != 2 || !topology.Equal(now, topo) {
				t.Errorf("acknowledged and not there: %+v", h)
			}
			if n < 3 {
				t.Errorf("only %d transactions for so much", n)
			}
			return
		}
		if h.Revision != 1 || !errors.Is(err, errCrash) {
			t.Fatalf("after %d transactions: %+v, %v", n, h, err)
		}
		if _, _, err := l.Apply(t.Context(), topo, "bob", "", 1); err != nil {
			t.Fatalf("again after %d transactions: %v", n, err)
		}
		if !topology.Equal(l.Topology(), topo) {
			t.Fatal("not what was applied")
		}
	}
	t.Fatal("it never got through")
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// silentStore does not answer while told so.
type silentStore struct {
	store.Store
	silent atomic.Bool
}

func (s *silentStore) Get(ctx context.Context, key string) (store.Entry, error) {
	if s.silent.Load() {
		return store.Entry{}, fault.New(fault.Unreachable, "no quorum")
	}
	return s.Store.Get(ctx, key)
}

func TestFollowSeesOtherWriters(t *testing.T) {
	s := &silentStore{Store: open(t)}
	follower, writer := newLog(s), newLog(s.Store)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- follower.Follow(ctx) }()
	apply := func(i int) {
		_, _, err := writer.Apply(t.Context(), labelled(t, "n", fmt.Sprint(i)), "ann", "", i-1)
		must(t, err)
	}
	sees := func(i int) bool {
		h, topo := follower.Current()
		return h.Revision == i && topo.Sites["hall-1"].Meta.Labels["n"] == fmt.Sprint(i)
	}
	for i := 1; i <= 3; i++ {
		apply(i)
		eventually(t, fmt.Sprintf("revision %d", i), func() bool { return sees(i) })
	}
	s.silent.Store(true)
	apply(4)
	if !sees(3) {
		t.Error("a silent store changed what is current")
	}
	s.silent.Store(false)
	eventually(t, "what changed in the silence", func() bool { return sees(4) })
	cancel()
	if err := <-done; err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestFollowEndsOnADamagedRevision(t *testing.T) {
	s := open(t)
	_, _, err := newLog(s).Apply(t.Context(), story(t), "ann", "", -1)
	must(t, err)
	must(t, s.Txn(t.Context(), store.Delete(parts(t, s)[0].Key)))
	if err := newLog(s).Follow(t.Context()); !fault.Is(err, fault.Internal) {
		t.Errorf("got %v", err)
	}
}
