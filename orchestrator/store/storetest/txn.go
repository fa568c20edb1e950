package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

func limitTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"Operations": func(t *testing.T, s store.Store) {
			// Every kind fills a transaction, because an implementation may need more than one step for some.
			var create, change, remove []store.Op
			for i := range store.MaxOps {
				create = append(create, store.PutIf(fmt.Sprintf("k/%02d", i), nil, 0))
			}
			mustTxn(t, s, create...)
			entries, _ := mustList(t, s, "k/")
			if len(entries) != store.MaxOps {
				t.Fatalf("%d entries after a transaction of %d", len(entries), store.MaxOps)
			}
			for _, e := range entries {
				change = append(change, store.Check(e.Key, e.Revision))
				remove = append(remove, store.DeleteIf(e.Key, e.Revision))
			}
			mustTxn(t, s, change...)
			mustTxn(t, s, remove...)
			if entries, _ := mustList(t, s, ""); len(entries) != 0 {
				t.Errorf("%s left after deleting all", keys(entries))
			}
			wantKind(t, "Txn of 65 operations", s.Txn(bounded(t), append(create, store.Put("x", nil))...), fault.Invalid)
			if err := s.Txn(bounded(t)); err != nil {
				t.Errorf("Txn of nothing = %v, want nil", err)
			}
		},
		"ValueSize": func(t *testing.T, s store.Store) {
			value := bytes.Repeat([]byte{0xa5, 0, 0xff, '"'}, store.MaxValue/4)
			mustTxn(t, s, store.PutIf("big", value, 0))
			e := mustGet(t, s, "big")
			if !bytes.Equal(e.Value, value) {
				t.Errorf("a value of MaxValue came back changed (%d bytes)", len(e.Value))
			}
			wantKind(t, "PutIf of a big value with a stale revision", s.Txn(bounded(t), store.PutIf("big", value, 0)), fault.Conflict)
			mustTxn(t, s, store.PutIf("big", value, e.Revision))
			if again := mustGet(t, s, "big"); again.Revision <= e.Revision {
				t.Errorf("revision of a big value went from %d to %d", e.Revision, again.Revision)
			}
			mustTxn(t, s, store.Put("big", value))
			wantKind(t, "Txn of a value over the limit", s.Txn(bounded(t), store.Put("big", append(value, 0))), fault.Invalid)
		},
		"TransactionSize": func(t *testing.T, s store.Store) {
			half := bytes.Repeat([]byte{0xff}, store.MaxTxn/2-1)
			mustTxn(t, s, store.Put("a", half), store.Put("b", half))
			if e := mustGet(t, s, "b"); !bytes.Equal(e.Value, half) {
				t.Error("a transaction of MaxTxn bytes came back changed")
			}
			err := s.Txn(bounded(t), store.Put("a", half), store.Put("b", half), store.Put("c", nil))
			wantKind(t, "Txn over MaxTxn", err, fault.Invalid)
		},
		"Keys": func(t *testing.T, s store.Store) {
			long := strings.Repeat("k", store.MaxKey)
			mustTxn(t, s, store.Put(long, []byte("v")))
			if e := mustGet(t, s, long); e.Key != long {
				t.Errorf("Get of the longest key = %q", e.Key)
			}
			for _, bad := range []string{"", "/a", "a/", "a//b", "a/../b", "a\x00", "\xff", long + "k"} {
				wantKind(t, fmt.Sprintf("Txn with key %.10q", bad), s.Txn(bounded(t), store.Put("good", nil), store.Put(bad, nil)), fault.Invalid)
				_, err := s.Get(bounded(t), bad)
				wantKind(t, fmt.Sprintf("Get(%.10q)", bad), err, fault.Invalid)
			}
			for _, bad := range []string{"/a", "a//", "a/.."} {
				_, _, err := s.List(bounded(t), bad)
				wantKind(t, fmt.Sprintf("List(%q)", bad), err, fault.Invalid)
				err = s.Watch(bounded(t), bad, 0, func(store.Batch) error { return errors.New("called") })
				wantKind(t, fmt.Sprintf("Watch(%q)", bad), err, fault.Invalid)
			}
			if _, err := s.Get(bounded(t), "good"); !fault.Is(err, fault.NotFound) {
				t.Errorf("a refused transaction was applied in part: Get = %v", err)
			}
		},
	}
}

func txnTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){
		"AllOrNothingForEveryKind": allOrNothing,
		"LaterOperationsSeeEarlierOnes": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("a", []byte("1")))
			rev := mustGet(t, s, "a").Revision
			mustTxn(t, s, store.DeleteIf("a", rev), store.PutIf("a", []byte("2"), 0))
			if e := mustGet(t, s, "a"); string(e.Value) != "2" || e.Revision <= rev {
				t.Errorf("a = %+v, want value 2 and a revision over %d", e, rev)
			}
			mustTxn(t, s, store.Put("b", []byte("1")), store.Delete("b"), store.Check("b", 0))
			_, err := s.Get(bounded(t), "b")
			wantKind(t, "Get of a key made and deleted in one transaction", err, fault.NotFound)
			rev = mustGet(t, s, "a").Revision
			err = s.Txn(bounded(t), store.Put("a", []byte("3")), store.Check("a", rev))
			wantKind(t, "Check of the revision before a Put of the same transaction", err, fault.Conflict)
		},
		"ConflictNamesTheKey": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("machine/a07", []byte("1")))
			err := s.Txn(bounded(t), store.Put("other", nil), store.PutIf("machine/a07", nil, 0))
			wantKind(t, "PutIf", err, fault.Conflict)
			if err == nil || !strings.Contains(err.Error(), "machine/a07") {
				t.Errorf("conflict %v does not name the key", err)
			}
		},
		"ConcurrentCountersLoseNothing": concurrentCounters,
		"EqualWritesHaveOneWinner": func(t *testing.T, s store.Store) {
			mustTxn(t, s, store.Put("claim", []byte("free")))
			for range 5 {
				rev := mustGet(t, s, "claim").Revision
				var won atomic.Int32
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						switch err := s.Txn(bounded(t), store.PutIf("claim", []byte("free"), rev)); {
						case err == nil:
							won.Add(1)
						case !fault.Is(err, fault.Conflict):
							t.Errorf("PutIf = %v, want nil or fault.Conflict", err)
						}
					})
				}
				wg.Wait()
				if won.Load() != 1 {
					t.Fatalf("%d of 8 writers of the same value at revision %d won, want 1", won.Load(), rev)
				}
			}
		},
	}
}

// allOrNothing puts every kind of operation, with a check that holds and one that does not, between two
// writes that must share its fate.
func allOrNothing(t *testing.T, s store.Store) {
	const far = 1 << 40 // a revision that no key of a test ever has
	type step struct {
		name  string
		op    func(there, gone string, rev uint64) store.Op
		holds bool
	}
	value := []byte("new")
	steps := []step{
		{"Put there", func(k, _ string, _ uint64) store.Op { return store.Put(k, value) }, true},
		{"Put gone", func(_, k string, _ uint64) store.Op { return store.Put(k, value) }, true},
		{"PutIf there at its revision", func(k, _ string, r uint64) store.Op { return store.PutIf(k, value, r) }, true},
		{"PutIf there at another", func(k, _ string, r uint64) store.Op { return store.PutIf(k, value, r+far) }, false},
		{"PutIf there at 0", func(k, _ string, _ uint64) store.Op { return store.PutIf(k, value, 0) }, false},
		{"PutIf gone at 0", func(_, k string, _ uint64) store.Op { return store.PutIf(k, value, 0) }, true},
		{"PutIf gone at a revision", func(_, k string, r uint64) store.Op { return store.PutIf(k, value, r) }, false},
		{"Delete there", func(k, _ string, _ uint64) store.Op { return store.Delete(k) }, true},
		{"Delete gone", func(_, k string, _ uint64) store.Op { return store.Delete(k) }, true},
		{"DeleteIf there at its revision", func(k, _ string, r uint64) store.Op { return store.DeleteIf(k, r) }, true},
		{"DeleteIf there at another", func(k, _ string, r uint64) store.Op { return store.DeleteIf(k, r+far) }, false},
		{"DeleteIf there at 0", func(k, _ string, _ uint64) store.Op { return store.DeleteIf(k, 0) }, false},
		{"DeleteIf gone at 0", func(_, k string, _ uint64) store.Op { return store.DeleteIf(k, 0) }, true},
		{"DeleteIf gone at a revision", func(_, k string, r uint64) store.Op { return store.DeleteIf(k, r) }, false},
		{"Check there at its revision", func(k, _ string, r uint64) store.Op { return store.Check(k, r) }, true},
		{"Check there at another", func(k, _ string, r uint64) store.Op { return store.Check(k, r+far) }, false},
		{"Check there at 0", func(k, _ string, _ uint64) store.Op { return store.Check(k, 0) }, false},
		{"Check gone at 0", func(_, k string, _ uint64) store.Op { return store.Check(k, 0) }, true},
		{"Check gone at a revision", func(_, k string, r uint64) store.Op { return store.Check(k, r) }, false},
	}
	for i, st := range steps {
		root := fmt.Sprintf("%02d/", i)
		there, gone := root+"there", root+"gone"
		mustTxn(t, s, store.Put(there, []byte("old")), store.Put(gone, nil))
		mustTxn(t, s, store.Delete(gone))
		before, _ := mustList(t, s, root)
		op := st.op(there, gone, before[0].Revision)

		// On its own, as an implementation may take a shorter way for one operation.
		if !st.holds {
			wantKind(t, st.name+" alone", s.Txn(bounded(t), op), fault.Conflict)
		}
		err := s.Txn(bounded(t), store.Put(root+"first", nil), op, store.Put(root+"last", nil))
		after, _ := mustList(t, s, root)
		if !st.holds {
			wantKind(t, st.name, err, fault.Conflict)
			if len(after) != 1 || after[0].Revision != before[0].Revision || string(after[0].Value) != "old" {
				t.Errorf("%s failed but left %s", st.name, keys(after))
			}
			continue
		}
		if err != nil {
			t.Errorf("%s = %v, want nil", st.name, err)
			continue
		}
		want := map[string]string{root + "first": "", root + "last": "", there: "old"}
		switch op.Kind {
		case store.OpPut, store.OpPutIf:
			want[op.Key] = "new"
		case store.OpDelete, store.OpDeleteIf:
			delete(want, op.Key)
		case store.OpCheck:
		}
		if len(after) != len(want) {
			t.Errorf("%s left %s, want %v", st.name, keys(after), want)
		}
		for _, e := range after {
			if v, ok := want[e.Key]; !ok || v != string(e.Value) {
				t.Errorf("%s left %s = %q, want %q", st.name, e.Key, e.Value, v)
			}
		}
	}
}

// concurrentCounters has goroutines that move one unit from a purse to a counter in one transaction:
// none may be lost or made.
func concurrentCounters(t *testing.T, s store.Store) {
	const workers, each = 8, 15
	mustTxn(t, s, store.Put("purse", []byte(strconv.Itoa(workers*each))), store.Put("count", []byte("0")))
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				entries, _, err := s.List(bounded(t), "")
				if err != nil || len(entries) != 2 {
					t.Errorf("List = %s, %v", keys(entries), err)
					return
				}
				count, _ := strconv.Atoi(string(entries[0].Value))
				purse, _ := strconv.Atoi(string(entries[1].Value))
				if count+purse != workers*each {
					t.Errorf("a list saw half a transaction: count %d, purse %d", count, purse)
					return
				}
				err = s.Txn(bounded(t),
					store.PutIf("count", []byte(strconv.Itoa(count+1)), entries[0].Revision),
					store.PutIf("purse", []byte(strconv.Itoa(purse-1)), entries[1].Revision))
				switch {
				case err == nil:
					done++
				case !fault.Is(err, fault.Conflict):
					t.Errorf("Txn = %v, want nil or fault.Conflict", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if e := mustGet(t, s, "count"); string(e.Value) != strconv.Itoa(workers*each) {
		t.Errorf("count = %s, want %d", e.Value, workers*each)
	}
}
