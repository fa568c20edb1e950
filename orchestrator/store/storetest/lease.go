package storetest

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

func leaseOptions(owner string) store.LeaseOptions {
	return store.LeaseOptions{TTL: store.MinTTL, Delay: 10 * time.Second, Owner: owner}
}

func mustAcquire(t *testing.T, s store.Store, name, owner string) store.Lease {
	t.Helper()
	l, err := s.Acquire(bounded(t), name, leaseOptions(owner))
	if err != nil {
		t.Fatalf("Acquire(%q) = %v, want a lease", name, err)
	}
	return l
}

func isLost(l store.Lease) bool {
	select {
	case <-l.Lost():
		return true
	default:
		return false
	}
}

func leaseTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"ConflictNamesTheHolder": func(t *testing.T, s store.Store) {
			l := mustAcquire(t, s, "gateway/switch-1", "worker seven")
			_, err := s.Acquire(bounded(t), "gateway/switch-1", leaseOptions("worker eight"))
			wantKind(t, "Acquire of a held lease", err, fault.Conflict)
			if err == nil || !strings.Contains(err.Error(), "worker seven") {
				t.Errorf("conflict %v does not name the holder", err)
			}
			if isLost(l) {
				t.Error("the lease was lost to somebody who asked for it")
			}
			other := mustAcquire(t, s, "gateway/switch-2", "worker eight")
			for _, l := range []store.Lease{l, other} {
				if err := l.Release(bounded(t)); err != nil {
					t.Errorf("Release = %v", err)
				}
			}
		},
		"ReleaseHandsOverAtOnce": func(t *testing.T, s store.Store) {
			for _, owner := range []string{"a", "b", "c"} {
				l := mustAcquire(t, s, "x", owner) // with no wait for the lock-delay of the one before
				if err := l.Release(bounded(t)); err != nil {
					t.Fatalf("Release = %v", err)
				}
				await(bounded(t), t, l.Lost(), "Lost after Release")
				if err := l.Release(bounded(t)); err != nil {
					t.Errorf("second Release = %v, want nil", err)
				}
			}
			last := mustAcquire(t, s, "x", "d")
			if isLost(last) {
				t.Error("an old holder's Release took the lease from the new one")
			}
		},
		"OneOfManyWins": func(t *testing.T, s store.Store) {
			var mu sync.Mutex
			var held []store.Lease
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					l, err := s.Acquire(bounded(t), "x", leaseOptions("one of many"))
					if err != nil {
						wantKind(t, "Acquire", err, fault.Conflict)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					held = append(held, l)
				})
			}
			wg.Wait()
			if len(held) != 1 {
				t.Fatalf("%d of 8 hold the lease, want 1", len(held))
			}
		},
		"OutlivesTheContextOfAcquire": func(t *testing.T, s store.Store) {
			ctx, cancel := context.WithCancel(bounded(t))
			l, err := s.Acquire(ctx, "x", leaseOptions("a"))
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			_, err = s.Acquire(bounded(t), "x", leaseOptions("b"))
			wantKind(t, "Acquire after the holder's context ended", err, fault.Conflict)
			if isLost(l) {
				t.Error("the lease ended with the context of Acquire")
			}
		},
		"CloseLosesIt": func(t *testing.T, s store.Store) {
			l := mustAcquire(t, s, "x", "a")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			await(bounded(t), t, l.Lost(), "Lost after Close")
			if err := l.Release(bounded(t)); err != nil {
				t.Errorf("Release of a lost lease = %v, want nil", err)
			}
		},
		"IsNoEntry": func(t *testing.T, s store.Store) {
			mustAcquire(t, s, "x", "a")
			if entries, _ := mustList(t, s, ""); len(entries) != 0 {
				t.Errorf("List shows %s, want no trace of the lease", keys(entries))
			}
		},
		"OptionsAreChecked": func(t *testing.T, s store.Store) {
			short, delayed, anonymous := leaseOptions("a"), leaseOptions("a"), leaseOptions("")
			short.TTL = time.Second
			delayed.Delay = time.Hour
			for what, o := range map[string]store.LeaseOptions{"TTL": short, "Delay": delayed, "Owner": anonymous} {
				_, err := s.Acquire(bounded(t), "x", o)
				wantKind(t, "Acquire with a bad "+what, err, fault.Invalid)
			}
			_, err := s.Acquire(bounded(t), "/x", leaseOptions("a"))
			wantKind(t, "Acquire of a bad name", err, fault.Invalid)
		},
	}
}
