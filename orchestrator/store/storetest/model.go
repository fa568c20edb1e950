package storetest

import (
	"fmt"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// model is the store as a plain map. A revision that a transaction has just given is unknown to it until
// it reads the store.
type model map[string]store.Entry

// unknown is the revision of a key written earlier in the same transaction: no check can hold on it.
const unknown = ^uint64(0)

// apply returns the model after ops, or false when a check does not hold.
func (m model) apply(ops []store.Op) (model, bool) {
	next := model{}
	for k, e := range m {
		next[k] = e
	}
	for _, op := range ops {
		current := next[op.Key].Revision // 0 when it does not exist
		switch op.Kind {
		case store.OpPutIf, store.OpDeleteIf, store.OpCheck:
			if current != op.Revision {
				return m, false
			}
		case store.OpPut, store.OpDelete:
		}
		switch op.Kind {
		case store.OpPut, store.OpPutIf:
			next[op.Key] = store.Entry{Key: op.Key, Value: op.Value, Revision: unknown}
		case store.OpDelete, store.OpDeleteIf:
			delete(next, op.Key)
		case store.OpCheck:
		}
	}
	return next, true
}

func modelTests() map[string]func(*testing.T, store.Store) {
	return map[string]func(*testing.T, store.Store){"BehavesLikeAMap": behavesLikeAMap}
}

// behavesLikeAMap runs random transactions on the store and on the model, and compares outcome and
// content after each; a watch must arrive at the same content.
func behavesLikeAMap(t *testing.T, s store.Store) {
	var run atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		prefix := fmt.Sprintf("m%d/", run.Add(1))
		watched := newMirror(t, s, prefix)
		defer watched.follow(s, false)()
		m := model{}
		name := rapid.SampledFrom([]string{"a", "a/b", "b", "c"})
		for range rapid.IntRange(1, 12).Draw(rt, "transactions") {
			ops := make([]store.Op, rapid.IntRange(1, 5).Draw(rt, "operations"))
			for i := range ops {
				key := prefix + name.Draw(rt, "key")
				rev := rapid.SampledFrom([]uint64{m[key].Revision, m[key].Revision, m[key].Revision, 0, 1 << 40}).Draw(rt, "revision")
				value := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(rt, "value")
				ops[i] = rapid.SampledFrom([]store.Op{
					store.Put(key, value), store.PutIf(key, value, rev), store.Delete(key), store.DeleteIf(key, rev), store.Check(key, rev),
				}).Draw(rt, "op")
			}
			next, holds := m.apply(ops)
			switch err := s.Txn(t.Context(), ops...); {
			case holds && err != nil:
				rt.Fatalf("Txn(%s) = %v, want nil", describe(ops), err)
			case !holds && !fault.Is(err, fault.Conflict):
				rt.Fatalf("Txn(%s) = %v, want fault.Conflict", describe(ops), err)
			}
			m = next.compare(rt, t, s, prefix)
		}
		watched.untilEqual(s)
	})
}

// compare checks that the store holds what the model says, and returns the model with the store's
// revisions in place of unknown ones.
func (m model) compare(rt *rapid.T, t *testing.T, s store.Store, prefix string) model {
	entries, rev, err := s.List(t.Context(), prefix)
	if err != nil {
		rt.Fatalf("List = %v", err)
	}
	if len(entries) != len(m) {
		rt.Fatalf("the store has %d entries (%s), the model %d", len(entries), keys(entries), len(m))
	}
	learned := model{}
	for _, e := range entries {
		want, ok := m[e.Key]
		switch {
		case !ok || string(want.Value) != string(e.Value):
			rt.Fatalf("%s = %x, the model has %x (there: %v)", e.Key, e.Value, want.Value, ok)
		case want.Revision != unknown && want.Revision != e.Revision:
			rt.Fatalf("%s moved from revision %d to %d without a write", e.Key, want.Revision, e.Revision)
		case e.Revision == 0 || e.Revision > rev:
			rt.Fatalf("%s has revision %d in a list of revision %d", e.Key, e.Revision, rev)
		}
		learned[e.Key] = e
	}
	return learned
}
