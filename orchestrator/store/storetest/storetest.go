// Package storetest is the conformance suite of store.Store: what every implementation must do, tested
// the same way for all of them.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// patience bounds every single test: what has not happened by then never will.
const patience = 60 * time.Second

// Run tests the stores that open makes. Each call of open must return an empty store of its own, and
// clean up after itself; the suite may close a store before that.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, group := range []struct {
		name  string
		tests map[string]func(*testing.T, store.Store)
	}{
		{"Read", readTests()},
		{"Limits", limitTests()},
		{"Txn", txnTests()},
		{"Watch", watchTests()},
		{"Lease", leaseTests()},
		{"Lifecycle", lifecycleTests()},
		{"Model", modelTests()},
	} {
		t.Run(group.name, func(t *testing.T) {
			for name, test := range group.tests {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t, open(t))
				})
			}
		})
	}
}

// bounded returns the context of one test.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func mustTxn(t *testing.T, s store.Store, ops ...store.Op) {
	t.Helper()
	if err := s.Txn(bounded(t), ops...); err != nil {
		t.Fatalf("Txn(%s) = %v, want nil", describe(ops), err)
	}
}

func mustGet(t *testing.T, s store.Store, key string) store.Entry {
	t.Helper()
	e, err := s.Get(bounded(t), key)
	if err != nil {
		t.Fatalf("Get(%q) = %v, want an entry", key, err)
	}
	return e
}

func mustList(t *testing.T, s store.Store, prefix string) ([]store.Entry, uint64) {
	t.Helper()
	entries, rev, err := s.List(bounded(t), prefix)
	if err != nil {
		t.Fatalf("List(%q) = %v, want nil", prefix, err)
	}
	return entries, rev
}

func wantKind(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("%s = %v, want fault.%v", what, err, kind)
	}
}

func describe(ops []store.Op) string {
	names := [...]string{"Put", "PutIf", "Delete", "DeleteIf", "Check"}
	var parts []string
	for _, op := range ops {
		parts = append(parts, fmt.Sprintf("%s %s@%d", names[op.Kind], op.Key, op.Revision))
	}
	return strings.Join(parts, ", ")
}

func keys(entries []store.Entry) string {
	var out []string
	for _, e := range entries {
		out = append(out, e.Key)
	}
	return strings.Join(out, " ")
}

func readTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"MissingKeyIsNotFound": func(t *testing.T, s store.Store) {
			_, err := s.Get(bounded(t), "no/such")
			wantKind(t, "Get of a missing key", err, fault.NotFound)
		},
		"RevisionChangesWithEveryWrite": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a", []byte("same")))
			first := mustGet(t, s, "a")
			if first.Key != "a" || string(first.Value) != "same" || first.Revision == 0 {
				t.Fatalf("Get = %+v, want key a, value same, revision not 0", first)
			}
			mustTxn(t, s, store.Put("a", []byte("same")))
			if again := mustGet(t, s, "a"); again.Revision <= first.Revision {
				t.Errorf("revision %d after writing the same value, want more than %d", again.Revision, first.Revision)
			}
			mustTxn(t, s, store.Put("b", nil))
			before := mustGet(t, s, "a")
			mustTxn(t, s, store.Put("b", []byte("x")))
			if after := mustGet(t, s, "a"); after.Revision != before.Revision {
				t.Errorf("revision of a moved from %d to %d by a write of b", before.Revision, after.Revision)
			}
		},
		"EmptyValue": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("nil", nil), store.Put("empty", []byte{}))
			for _, key := range []string{"nil", "empty"} {
				if e := mustGet(t, s, key); len(e.Value) != 0 {
					t.Errorf("Get(%q) has value %q, want none", key, e.Value)
				}
			}
		},
		"BinaryValue": func(t *testing.T, s store.Store) {
			value := make([]byte, 256)
			for i := range value {
				value[i] = byte(i)
			}
			mustTxn(t, s, store.Put("bin", value))
			if e := mustGet(t, s, "bin"); !bytes.Equal(e.Value, value) {
				t.Errorf("Get = %x, want %x", e.Value, value)
			}
		},
		"ListIsOrderedAndExact": func(t *testing.T, s store.Store) {
			for _, key := range []string{"b", "a/2", "ab", "a/10", "a/1", "a", "a0", "a/1/x"} {
				mustTxn(t, s, store.Put(key, []byte(key)))
			}
			for prefix, want := range map[string]string{
				"":     "a a/1 a/1/x a/10 a/2 a0 ab b",
				"a":    "a a/1 a/1/x a/10 a/2 a0 ab",
				"a/":   "a/1 a/1/x a/10 a/2",
				"a/1":  "a/1 a/1/x a/10",
				"a/1/": "a/1/x",
				"c":    "",
			} {
				entries, rev := mustList(t, s, prefix)
				if got := keys(entries); got != want {
					t.Errorf("List(%q) = %s, want %s", prefix, got, want)
				}
				for _, e := range entries {
					if e.Revision == 0 || e.Revision > rev || string(e.Value) != e.Key {
						t.Errorf("List(%q) at revision %d has %+v", prefix, rev, e)
					}
					if g := mustGet(t, s, e.Key); g.Revision != e.Revision {
						t.Errorf("List says %q is at %d, Get says %d", e.Key, e.Revision, g.Revision)
					}
				}
			}
		},
		"OddKeys": func(t *testing.T, s store.Store) {
			for _, key := range []string{"a b", "ü/ß/日本", "a%2Fb", "a?b#c&d=e", "a+b", "a;b,c", `q"uo\te`, "<t>", "a/.b/..c", "~"} {
				mustTxn(t, s, store.Put(key, []byte(key)))
				if e := mustGet(t, s, key); string(e.Value) != key {
					t.Errorf("Get(%q) = %q", key, e.Value)
				}
				if entries, _ := mustList(t, s, key); len(entries) != 1 || entries[0].Key != key {
					t.Errorf("List(%q) = %s, want that key", key, keys(entries))
				}
				mustTxn(t, s, store.Delete(key))
				_, err := s.Get(bounded(t), key)
				wantKind(t, fmt.Sprintf("Get of the deleted %q", key), err, fault.NotFound)
			}
		},
		"CallersOwnTheirSlices": func(t *testing.T, s store.Store) {
			value := []byte("kept")
			mustTxn(t, s, store.Put("a", value))
			copy(value, "LOST")
			e := mustGet(t, s, "a")
			if string(e.Value) != "kept" {
				t.Fatalf("Get = %q after the writer changed its slice, want kept", e.Value)
			}
			copy(e.Value, "LOST")
			entries, _ := mustList(t, s, "")
			if string(entries[0].Value) != "kept" {
				t.Fatalf("List = %q after a reader changed its slice, want kept", entries[0].Value)
			}
			copy(entries[0].Value, "LOST")
			if e := mustGet(t, s, "a"); string(e.Value) != "kept" {
				t.Errorf("Get = %q after a lister changed its slice, want kept", e.Value)
			}
		},
	}
}

func lifecycleTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"CancelledContext": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a", []byte("1")))
			ctx, cancel := context.WithCancel(bounded(t))
			cancel()
			_, getErr := s.Get(ctx, "a")
			_, _, listErr := s.List(ctx, "")
			_, acquireErr := s.Acquire(ctx, "x", leaseOptions("a"))
			for what, err := range map[string]error{
				"Get": getErr, "List": listErr, "Acquire": acquireErr, "Txn": s.Txn(ctx, store.Put("a", []byte("2"))),
			} {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s with a cancelled context = %v, want context.Canceled", what, err)
				}
			}
			if err := s.Watch(ctx, "", 0, func(store.Batch) error { return nil }); err != nil {
				t.Errorf("Watch with a cancelled context = %v, want nil", err)
			}
			if e := mustGet(t, s, "a"); string(e.Value) != "1" {
				t.Errorf("a = %q, the cancelled transaction was applied", e.Value)
			}
			l, err := s.Acquire(bounded(t), "x", leaseOptions("b"))
			if err != nil {
				t.Fatalf("Acquire after a cancelled one = %v, want the lease", err)
			}
			if err := l.Release(bounded(t)); err != nil {
				t.Error(err)
			}
		},
		"ClosedStoreRefuses": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a", nil))
			watching, ended := make(chan struct{}, 1), make(chan error, 1)
			go func() {
				ended <- s.Watch(t.Context(), "", 0, func(store.Batch) error { watching <- struct{}{}; return nil })
			}()
			ctx := bounded(t)
			await(ctx, t, watching, "the first batch")
			if err := s.Close(); err != nil {
				t.Fatalf("Close = %v", err)
			}
			if err := s.Close(); err != nil {
				t.Errorf("second Close = %v, want nil", err)
			}
			if err := await(ctx, t, ended, "the end of the watch"); err == nil {
				t.Error("Watch = nil when its store was closed, want an error")
			}
			_, getErr := s.Get(ctx, "a")
			_, _, listErr := s.List(ctx, "")
			_, acquireErr := s.Acquire(ctx, "x", leaseOptions("a"))
			for what, err := range map[string]error{
				"Get": getErr, "List": listErr, "Acquire": acquireErr, "Txn": s.Txn(ctx, store.Put("a", nil)),
				"Watch": s.Watch(ctx, "", 0, func(store.Batch) error { return nil }),
			} {
				wantKind(t, what+" of a closed store", err, fault.Unreachable)
			}
		},
	}
}

// await receives from ch or fails the test when ctx ends.
func await[T any](ctx context.Context, t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-ctx.Done():
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}
