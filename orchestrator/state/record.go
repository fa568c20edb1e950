// Package state is what Rerack knows beyond the declared topology: revisions, leases, claims, fences,
// boot intents and runs, as typed records in the store. Every record is one key and changes by
// compare-and-set, so that of two writers one loses and looks again.
package state

import (
	"bytes"
	"context"
	"encoding/json"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// Load reads the record at key into a T. A missing record is the zero value with revision 0.
func Load[T any](ctx context.Context, s store.Store, key string) (T, uint64, error) {
	var v T
	e, err := s.Get(ctx, key)
	if fault.Is(err, fault.NotFound) {
		return v, 0, nil
	}
	if err != nil {
		return v, 0, fault.Wrap(err, "read record", key)
	}
	v, err = Decode[T](e)
	return v, e.Revision, err
}

// List reads all records under prefix, in key order.
func List[T any](ctx context.Context, s store.Store, prefix string) ([]T, error) {
	entries, _, err := s.List(ctx, prefix)
	if err != nil {
		return nil, fault.Wrap(err, "list records", prefix)
	}
	out := make([]T, len(entries))
	for i, e := range entries {
		if out[i], err = Decode[T](e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Decode reads a record out of its entry.
func Decode[T any](e store.Entry) (T, error) {
	var v T
	if err := json.Unmarshal(e.Value, &v); err != nil {
		return v, &fault.Error{Kind: fault.Internal, What: "decode record", Where: e.Key, Err: err}
	}
	return v, nil
}

// Encode turns a record into its stored form.
func Encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, What: "encode record", Err: err}
	}
	return b, nil
}

// Update changes the record at key by change and writes it with compare-and-set; when another writer
// came first it reads again and calls change again. change decides on the record it is given and
// returns an error to leave it alone. An unchanged record is not written.
func Update[T any](ctx context.Context, s store.Store, key string, change func(*T) error) (T, error) {
	for {
		v, rev, err := Load[T](ctx, s, key)
		if err != nil {
			return v, err
		}
		before, err := Encode(v)
		if err != nil {
			return v, err
		}
		if err := change(&v); err != nil {
			return v, err
		}
		after, err := Encode(v)
		if err != nil {
			return v, err
		}
		if rev != 0 && bytes.Equal(before, after) {
			return v, nil
		}
		err = s.Txn(ctx, store.PutIf(key, after, rev))
		if err == nil {
			return v, nil
		}
		if !fault.Is(err, fault.Conflict) {
			return v, fault.Wrap(err, "write record", key)
		}
	}
}
