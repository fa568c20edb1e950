// Package store is the contract of Rerack's state: a small, ordered, watchable key-value store with
// compare-and-set transactions and leases. storetest holds its conformance suite; embedded and consul
// implement it.
package store

import (
	"context"
	"time"
)

// Limits that every implementation enforces, so that what works on one works on all. They are
// Consul's: 64 operations a transaction, 512 KiB a value.
const (
	MaxOps   = 64
	MaxValue = 512 << 10
	MaxKey   = 512
)

// Store is the contract. Keys are slash-separated paths without a leading slash. All methods are safe
// for concurrent use, honour ctx, and return errors with a fault.Kind: NotFound, Conflict (a check did
// not hold), Unreachable (no quorum, disk full), Invalid (a limit).
type Store interface {
	// Get returns the entry at key, read consistently, or fault.NotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns the entries whose key starts with prefix in key order, and the revision the list
	// was read at: a Watch from it misses nothing. An empty prefix lists everything.
	List(ctx context.Context, prefix string) ([]Entry, uint64, error)
	// Txn applies all operations or none. When it returns nil the result is durable.
	// It returns fault.Conflict when a check does not hold.
	Txn(ctx context.Context, ops ...Op) error
	// Watch calls fn with batches of changes under prefix that came after revision from, in order per
	// key, until ctx ends (nil) or fn or the store fails. Changes of one key may be merged into its
	// last state; none is missed for ever. If the store can no longer tell what came after from, the
	// batch has Reset set and holds the whole present content of the prefix.
	Watch(ctx context.Context, prefix string, from uint64, fn func(Batch) error) error
	// Acquire takes the named lock for this process and keeps it alive until released or lost. It
	// returns fault.Conflict with the holder's name while another holds it, or while the lock-delay
	// after a crashed holder runs.
	Acquire(ctx context.Context, name string, o LeaseOptions) (Lease, error)
	Close() error
}

// Entry is one key with its value. Revision changes with every write of this key and is what checks
// compare; it is never 0 for an existing key.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Op is one operation of a transaction. Make it with Put, Delete and their checked forms.
type Op struct {
	Kind     OpKind
	Key      string
	Value    []byte
	Revision uint64 // of PutIf, DeleteIf, Check; 0 means "must not exist"
}

// OpKind is what an Op does.
type OpKind uint8

const (
	OpPut OpKind = iota
	OpPutIf
	OpDelete
	OpDeleteIf
	OpCheck
)

// Put writes key whatever it held.
func Put(key string, value []byte) Op { return Op{Kind: OpPut, Key: key, Value: value} }

// PutIf writes key if its revision is rev; 0 means that it must not exist.
func PutIf(key string, value []byte, rev uint64) Op {
	return Op{Kind: OpPutIf, Key: key, Value: value, Revision: rev}
}

// Delete removes key; an absent key is success.
func Delete(key string) Op { return Op{Kind: OpDelete, Key: key} }

// DeleteIf removes key if its revision is rev.
func DeleteIf(key string, rev uint64) Op { return Op{Kind: OpDeleteIf, Key: key, Revision: rev} }

// Check holds the transaction to key being at rev; 0 means that it must not exist.
func Check(key string, rev uint64) Op { return Op{Kind: OpCheck, Key: key, Revision: rev} }

// Batch is a group of changes seen by a watch.
type Batch struct {
	Revision uint64 // watch again from here
	Reset    bool   // Changes is the whole content; forget what was there
	Changes  []Change
}

// Change is one key's last state.
type Change struct {
	Entry
	Deleted bool
}

// LeaseOptions of Acquire. TTL is 10 s to 24 h (Consul's bounds).
type LeaseOptions struct {
	TTL   time.Duration // a holder that stops renewing loses the lease after TTL to 2*TTL
	Delay time.Duration // how long nobody may take it after a crash; a clean release has none
	Owner string        // shown to others that want it
}

// Lease is a held lock.
type Lease interface {
	// Lost is closed when the lease is no longer held, whatever the reason.
	Lost() <-chan struct{}
	// Release gives it up at once, without lock-delay.
	Release(ctx context.Context) error
}
