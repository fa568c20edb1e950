package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"rerack.dev/rerack/orchestrator/store"
)

// mirror keeps a copy of a prefix the way a watcher does, and checks what every batch must satisfy.
type mirror struct {
	t      *testing.T
	prefix string

	mu      sync.Mutex
	state   map[string]store.Entry
	rev     uint64
	resets  int
	changed chan struct{} // closed and replaced with every batch
}

// newMirror lists prefix and returns a mirror that is to be watched from there.
func newMirror(t *testing.T, s store.Store, prefix string) *mirror {
	entries, rev := mustList(t, s, prefix)
	m := &mirror{t: t, prefix: prefix, state: map[string]store.Entry{}, rev: rev, changed: make(chan struct{})}
	for _, e := range entries {
		m.state[e.Key] = e
	}
	return m
}

// follow runs the watch in the background until the test ends or stop is called, and restarts it after
// every batch when resume is set.
func (m *mirror) follow(s store.Store, resume bool) (stop func()) {
	ctx, cancel := context.WithCancel(m.t.Context())
	again := errors.New("once more")
	done := make(chan struct{})
	stop = func() { cancel(); <-done }
	m.t.Cleanup(stop)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			m.mu.Lock()
			from := m.rev
			m.mu.Unlock()
			err := s.Watch(ctx, m.prefix, from, func(b store.Batch) error {
				m.apply(b)
				if resume {
					return again
				}
				return nil
			})
			if err != nil && (!resume || !errors.Is(err, again)) {
				m.t.Errorf("Watch(%q) = %v", m.prefix, err)
				return
			}
		}
	}()
	return stop
}

func (m *mirror) apply(b store.Batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.state
	if b.Reset {
		m.state = map[string]store.Entry{}
		m.resets++
	}
	for _, c := range b.Changes {
		if !strings.HasPrefix(c.Key, m.prefix) {
			m.t.Errorf("a watch of %q got %q", m.prefix, c.Key)
		}
		if c.Deleted {
			if b.Reset {
				m.t.Errorf("a reset says that %q is deleted", c.Key)
			}
			delete(m.state, c.Key)
			continue
		}
		if c.Revision < old[c.Key].Revision || c.Revision == 0 || c.Revision > b.Revision {
			m.t.Errorf("%q came at revision %d after %d in a batch of revision %d", c.Key, c.Revision, old[c.Key].Revision, b.Revision)
		}
		m.state[c.Key] = c.Entry
		old[c.Key] = c.Entry
	}
	if b.Revision < m.rev && !b.Reset {
		m.t.Errorf("batch revision went back from %d to %d", m.rev, b.Revision)
	}
	m.rev = b.Revision
	close(m.changed)
	m.changed = make(chan struct{})
}

// until waits for the copy to satisfy ok.
func (m *mirror) until(what string, ok func(map[string]store.Entry) bool) {
	m.t.Helper()
	ctx := bounded(m.t)
	for {
		m.mu.Lock()
		satisfied, changed := ok(m.state), m.changed
		m.mu.Unlock()
		if satisfied {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			m.t.Fatalf("a watch of %q never showed %s; it has %v", m.prefix, what, slices.Sorted(maps.Keys(m.state)))
		}
	}
}

// untilEqual waits for the copy to equal what the store lists, which must not change meanwhile.
func (m *mirror) untilEqual(s store.Store) {
	m.t.Helper()
	entries, _ := mustList(m.t, s, m.prefix)
	m.until("the content of the store", func(state map[string]store.Entry) bool {
		if len(state) != len(entries) {
			return false
		}
		for _, e := range entries {
			if got := state[e.Key]; got.Revision != e.Revision || string(got.Value) != string(e.Value) {
				return false
			}
		}
		return true
	})
}

func watchTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"MissesNothingUnderConcurrentWrites": func(t *testing.T, s store.Store) { churn(t, s, false) },
		"ResumesFromEveryBatch":              func(t *testing.T, s store.Store) { churn(t, s, true) },
		"SeesChangesBetweenListAndWatch": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a/kept", nil), store.Put("a/deleted", nil), store.Put("a/changed", []byte("1")))
			m := newMirror(t, s, "a/")
			mustTxn(t, s, store.Delete("a/deleted"))
			mustTxn(t, s, store.Put("a/changed", []byte("2")), store.Put("a/made", nil))
			m.follow(s, false)
			m.untilEqual(s)
		},
		"SeesDeletes": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a/1", nil), store.Put("a/2", nil))
			m := newMirror(t, s, "a/")
			m.follow(s, false)
			mustTxn(t, s, store.Delete("a/1"))
			m.until("that a/1 is gone", func(state map[string]store.Entry) bool { _, ok := state["a/1"]; return !ok && len(state) == 1 })
			mustTxn(t, s, store.Delete("a/2"))
			m.until("that all is gone", func(state map[string]store.Entry) bool { return len(state) == 0 })
			mustTxn(t, s, store.Put("a/1", []byte("back")))
			m.untilEqual(s)
		},
		"IgnoresOtherPrefixes": func(t *testing.T, s store.Store) {
			m := newMirror(t, s, "a/")
			m.follow(s, false)
			mustTxn(t, s, store.Put("a", nil), store.Put("ab", nil), store.Put("b/1", nil))
			mustTxn(t, s, store.Put("a/1", nil)) // apply fails the test for anything else
			m.until("a/1", func(state map[string]store.Entry) bool { return len(state) == 1 })
		},
		"FromZeroGivesEverything": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a", []byte("1")), store.Put("b", []byte("2")))
			mustTxn(t, s, store.Delete("a"))
			m := &mirror{t: t, state: map[string]store.Entry{}, changed: make(chan struct{})}
			m.follow(s, false)
			m.untilEqual(s)
		},
		"FromTheFutureResets": func(t *testing.T, s store.Store) {
			// That is how a store restored from an older backup looks to its watchers.
			mustTxn(t, s, store.Put("a", []byte("1")))
			m := &mirror{t: t, state: map[string]store.Entry{"ghost": {Key: "ghost"}}, rev: 1 << 40, changed: make(chan struct{})}
			m.follow(s, false)
			m.untilEqual(s)
			if m.resets == 0 {
				t.Error("a watch from a revision that never was gave no reset")
			}
		},
		"CallbackErrorEndsIt": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a", nil))
			enough := errors.New("enough")
			if err := s.Watch(bounded(t), "", 0, func(store.Batch) error { return enough }); !errors.Is(err, enough) {
				t.Errorf("Watch = %v, want the callback's error", err)
			}
		},
		"CancelEndsAnIdleWatch": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a", nil))
			ctx, cancel := context.WithCancel(bounded(t))
			seen, ended := make(chan struct{}, 1), make(chan error, 1)
			go func() {
				ended <- s.Watch(ctx, "", 0, func(store.Batch) error { seen <- struct{}{}; return nil })
			}()
			await(ctx, t, seen, "the first batch")
			cancel()
			if err := await(bounded(t), t, ended, "the end of the watch"); err != nil {
				t.Errorf("Watch = %v after its context ended, want nil", err)
			}
		},
		"WatchersOwnTheirSlices": func(t *testing.T, s store.Store) {
			ctx, cancel := context.WithCancel(bounded(t))
			defer cancel()
			seen := make(chan string, 16)
			spoil := func(b store.Batch) error {
				for _, c := range b.Changes {
					seen <- string(c.Value)
					copy(c.Value, "LOST")
				}
				return nil
			}
			_, from := mustList(t, s, "")
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			for range 2 {
				wg.Go(func() {
					if err := s.Watch(ctx, "", from, spoil); err != nil {
						t.Error(err)
					}
				})
			}
			mustTxn(t, s, store.Put("a", []byte("kept")))
			for range 2 {
				if v := await(ctx, t, seen, "both watchers"); v != "kept" {
					t.Errorf("a watcher saw %q, want kept", v)
				}
			}
			if e := mustGet(t, s, "a"); string(e.Value) != "kept" {
				t.Errorf("Get = %q after watchers changed their slices, want kept", e.Value)
			}
		},
	}
}

// churn writes from several goroutines while mirrors join at different moments; in the end each must
// have the content of the store, and per key the counters may never go back.
func churn(t *testing.T, s store.Store, resume bool) {
	const writers, rounds = 4, 40
	early := newMirror(t, s, "w/")
	early.follow(s, resume)
	mirrors := []*mirror{early}
	half := make(chan struct{}, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				key := fmt.Sprintf("w/%d/%d", w, i%5)
				op := store.Put(key, []byte(strconv.Itoa(i)))
				if i%7 == 6 {
					op = store.Delete(key)
				}
				if err := s.Txn(bounded(t), op, store.Put(fmt.Sprintf("w/%d/last", w), []byte(strconv.Itoa(i)))); err != nil {
					t.Errorf("Txn = %v", err)
				}
				if i == rounds/2 {
					half <- struct{}{}
				}
			}
		})
	}
	for range writers {
		await(bounded(t), t, half, "the writers")
		late := newMirror(t, s, "w/")
		late.follow(s, resume)
		mirrors = append(mirrors, late)
	}
	wg.Wait()
	for _, m := range mirrors {
		m.untilEqual(s)
	}
}
