package consul

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/hashicorp/consul/api"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// largeValue is the size from which a value does not travel in a transaction, where it is base64 in a body
// that Consul bounds by 512 KiB, but as the body of a request of its own.
const largeValue = store.MaxTxn

// Txn applies ops in one Raft entry. An error of kind Timeout leaves open whether they were applied.
func (s *Store) Txn(ctx context.Context, ops ...store.Op) error {
	if err := store.CheckOps(ops); err != nil {
		return err
	}
	ctx, done, err := s.begin(ctx, callTimeout)
	if err != nil {
		return err
	}
	defer done()
	// Consul leaves a pair and its index alone when a write changes nothing, so that of two writers of one
	// value both would win. The flags, which mean nothing to it, make every write a change.
	stamp := rand.Uint64()
	switch {
	case len(ops) == 0:
		return nil
	case len(ops) == 1 && len(ops[0].Value) > largeValue:
		return s.putLarge(ctx, ops[0], stamp)
	}
	var verbs api.TxnOps
	var from []store.Op // the operation that each verb is part of
	for _, op := range ops {
		for _, verb := range s.verbs(op, stamp) {
			verbs = append(verbs, &api.TxnOp{KV: verb})
			from = append(from, op)
		}
	}
	ok, resp, _, err := s.client.Txn().Txn(verbs, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return s.fault("transaction", err, true)
	}
	if ok {
		return nil
	}
	return s.refused(resp.Errors, from)
}

// verbs translates op. Consul takes 128 verbs a transaction, twice store.MaxOps.
func (s *Store) verbs(op store.Op, stamp uint64) []*api.KVTxnOp {
	kv := func(verb api.KVOp) *api.KVTxnOp { return &api.KVTxnOp{Verb: verb, Key: s.kv + op.Key} }
	set := func(verb api.KVOp) *api.KVTxnOp {
		v := kv(verb)
		v.Value, v.Flags, v.Index = op.Value, stamp, op.Revision
		return v
	}
	check := kv(api.KVCheckNotExists)
	if op.Revision != 0 {
		check = kv(api.KVCheckIndex)
		check.Index = op.Revision
	}
	switch op.Kind {
	case store.OpPut:
		return []*api.KVTxnOp{set(api.KVSet)}
	case store.OpPutIf:
		return []*api.KVTxnOp{set(api.KVCAS)}
	case store.OpDelete:
		return []*api.KVTxnOp{kv(api.KVDelete)}
	case store.OpDeleteIf:
		if op.Revision == 0 {
			return []*api.KVTxnOp{check}
		}
		// delete-cas would succeed on an absent key, whatever the index.
		return []*api.KVTxnOp{check, kv(api.KVDelete)}
	case store.OpCheck:
		return []*api.KVTxnOp{check}
	}
	panic(fmt.Sprintf("store operation of kind %d passed the check", op.Kind))
}

// refused is the error of a transaction that Consul rolled back.
func (s *Store) refused(errs api.TxnErrors, from []store.Op) error {
	f := &fault.Error{Kind: fault.Conflict, What: "transaction", Where: s.where, Next: "read the keys again and decide anew"}
	var said []string
	for _, e := range errs {
		what := e.What
		if e.OpIndex >= 0 && e.OpIndex < len(from) {
			what = from[e.OpIndex].Key + ": " + what
		}
		said = append(said, what)
		// Access rules are reported like failed checks, told apart by their text alone.
		if strings.Contains(e.What, "Permission denied") {
			f.Kind, f.Next = fault.Unauthorized, "give the token key:write on the store's prefix"
		}
	}
	f.Evidence = strings.Join(said, "; ")
	return f
}

// putLarge writes one pair by itself.
func (s *Store) putLarge(ctx context.Context, op store.Op, stamp uint64) error {
	pair := &api.KVPair{Key: s.kv + op.Key, Value: op.Value, Flags: stamp, ModifyIndex: op.Revision}
	q := (&api.WriteOptions{}).WithContext(ctx)
	var err error
	ok := true
	switch op.Kind {
	case store.OpPut:
		_, err = s.client.KV().Put(pair, q)
	case store.OpPutIf:
		ok, _, err = s.client.KV().CAS(pair, q)
	case store.OpDelete, store.OpDeleteIf, store.OpCheck:
		return fault.Newf(fault.Invalid, "operation on %s has a value, which only a put takes", op.Key)
	}
	if err != nil {
		return s.fault("write "+op.Key, err, true)
	}
	if !ok {
		return &fault.Error{Kind: fault.Conflict, What: op.Key, Where: s.where,
			Evidence: fmt.Sprintf("it is not at revision %d", op.Revision), Next: "read it again and decide anew"}
	}
	return nil
}
