package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"go.etcd.io/bbolt"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// A group of transactions that are written together is bounded, so that the first does not wait for ever.
const (
	maxGroup      = 512
	maxGroupBytes = 8 << 20
)

// request is one transaction on its way to the committer.
type request struct {
	ops   []store.Op
	size  int
	taken atomic.Bool // by the committer, or by its caller that gave up
	done  chan error  // has room for the answer
}

// queue holds the requests that came while the last group was being written.
type queue struct {
	mu      sync.Mutex
	waiting []*request
	wake    chan struct{}
}

func (q *queue) push(r *request) {
	q.mu.Lock()
	q.waiting = append(q.waiting, r)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pop returns the next group in order of arrival, and nothing when none wait.
func (q *queue) pop() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, 0
	for n < len(q.waiting) && n < maxGroup && (n == 0 || size < maxGroupBytes) {
		size += q.waiting[n].size
		n++
	}
	group := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	if len(q.waiting) == 0 {
		q.waiting = nil
	}
	return group
}

// Txn applies ops, and returns nil once they are on the disk. An error of kind Unreachable or Timeout
// leaves open whether they are.
func (s *Store) Txn(ctx context.Context, ops ...store.Op) error {
	if err := store.CheckOps(ops); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return s.interrupted("transaction", err)
	}
	if len(ops) == 0 {
		return nil
	}
	r := &request{ops: make([]store.Op, len(ops)), done: make(chan error, 1)}
	for i, op := range ops {
		op.Value = bytes.Clone(op.Value)
		r.ops[i] = op
		r.size += len(op.Value)
	}
	s.queue.push(r)
	select {
	case err := <-r.done:
		return err
	case <-s.stopped:
		select {
		case err := <-r.done:
			return err
		default:
			return s.closedError()
		}
	case <-ctx.Done():
		if r.taken.CompareAndSwap(false, true) {
			return s.interrupted("transaction", ctx.Err())
		}
		return &fault.Error{Kind: fault.Timeout, What: "transaction", Where: s.path,
			Evidence: "the disk did not confirm it in time", Next: "read the keys to see whether it took effect", Err: ctx.Err()}
	}
}

// commitLoop writes groups of transactions until the store closes. It is the only writer.
func (s *Store) commitLoop(h head) {
	defer close(s.stopped)
	for {
		select {
		case <-s.queue.wake:
		case <-s.closing:
			for group := s.queue.pop(); len(group) > 0; group = s.queue.pop() {
				for _, r := range group {
					r.done <- s.closedError()
				}
			}
			return
		}
		for group := s.queue.pop(); len(group) > 0; group = s.queue.pop() {
			h = s.commit(h, group)
		}
	}
}

// errNoWrites rolls a group back that wrote nothing.
var errNoWrites = errors.New("nothing to write")

// commit applies the group in one transaction of the file and returns the new summary. Each request
// holds or fails on its own; all are answered only when the file is safe, because a failed check may
// have been compared with another request's write.
func (s *Store) commit(h head, group []*request) head {
	if f := s.failed.Load(); f != nil {
		for _, r := range group {
			r.done <- s.readOnly(f)
		}
		return h
	}
	next := h
	answers := make([]error, len(group))
	var changes []store.Change
	err := guard(func() error {
		return s.db.Update(func(tx *bbolt.Tx) error {
			kv := tx.Bucket([]byte(bucketKV))
			for i, r := range group {
				if !r.taken.CompareAndSwap(false, true) {
					continue // its caller has left
				}
				made, err := apply(kv, &next, r.ops)
				if err != nil && !fault.Is(err, fault.Conflict) {
					return err
				}
				answers[i] = err
				changes = append(changes, made...)
			}
			if next == h {
				return errNoWrites
			}
			next.Commit = uint64(tx.ID())
			return tx.Bucket([]byte(bucketMeta)).Put([]byte(keyHead), next.encode())
		})
	})
	switch {
	case errors.Is(err, errNoWrites):
		next = h
	case err != nil:
		f := s.diskFault(err)
		s.fail(f)
		for _, r := range group {
			r.done <- s.readOnly(f)
		}
		return h
	default:
		s.ring.publish(next.Revision, changes)
	}
	for i, r := range group {
		r.done <- answers[i]
	}
	return next
}

// diskFault says why a group could not be written. After a failed write or sync the kernel may have
// dropped the pages, so that only a new start, which reads the file again, can tell what is on the disk.
func (s *Store) diskFault(err error) *fault.Error {
	f := &fault.Error{Kind: fault.Unreachable, What: "write store", Where: s.path, Err: err,
		Next: "check the disk (kernel log, SMART), then start again"}
	var d *damage
	switch {
	case errors.As(err, &d):
		f.Kind, f.What, f.Next = fault.Internal, "store is damaged", adviceRestore
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		f.Next = "make room on that file system, then start again"
	}
	return f
}

// readOnly is the answer to every transaction after f.
func (s *Store) readOnly(f *fault.Error) error {
	return &fault.Error{Kind: fault.Unreachable, What: "the store is read-only", Err: f}
}

// state is a key within a transaction.
type state struct {
	revision uint64 // 0: does not exist
	old      uint32 // checksum of the record in the file, if stored
	stored   bool
	written  bool
	value    []byte
}

// apply checks and applies one transaction on kv and h. It has changed nothing when it returns
// fault.Conflict; after any other error kv is not to be committed.
func apply(kv *bbolt.Bucket, h *head, ops []store.Op) ([]store.Change, error) {
	revision := h.Revision + 1
	states := make(map[string]*state, len(ops))
	touched := make([]string, 0, len(ops))
	for _, op := range ops {
		st := states[op.Key]
		if st == nil {
			st = &state{}
			if raw := kv.Get([]byte(op.Key)); raw != nil {
				rev, sum, _, err := decodeRecord([]byte(op.Key), raw)
				if err != nil {
					return nil, &damage{fmt.Sprintf("key %q: %v", op.Key, err)}
				}
				st.revision, st.old, st.stored = rev, sum, true
			}
			states[op.Key] = st
			touched = append(touched, op.Key)
		}
		switch op.Kind {
		case store.OpPutIf, store.OpDeleteIf, store.OpCheck:
			if st.revision != op.Revision {
				return nil, conflict(op, st.revision)
			}
		case store.OpPut, store.OpDelete:
		}
		switch op.Kind {
		case store.OpPut, store.OpPutIf:
			st.revision, st.value, st.written = revision, op.Value, true
		case store.OpDelete, store.OpDeleteIf:
			st.revision, st.value, st.written = 0, nil, true
		case store.OpCheck:
		}
	}
	var changes []store.Change
	for _, key := range touched {
		st := states[key]
		deleted := st.revision == 0
		if !st.written || deleted && !st.stored {
			continue
		}
		if st.stored {
			h.remove(st.old)
		}
		if deleted {
			if err := kv.Delete([]byte(key)); err != nil {
				return nil, err
			}
		} else {
			raw, sum := encodeRecord([]byte(key), revision, st.value)
			if err := kv.Put([]byte(key), raw); err != nil {
				return nil, err
			}
			h.add(sum)
		}
		h.Revision = revision
		changes = append(changes, store.Change{Entry: store.Entry{Key: key, Value: st.value, Revision: revision}, Deleted: deleted})
	}
	return changes, nil
}

func conflict(op store.Op, found uint64) error {
	is := fmt.Sprintf("is at revision %d", found)
	if found == 0 {
		is = "does not exist"
	}
	want := fmt.Sprintf("be at revision %d", op.Revision)
	if op.Revision == 0 {
		want = "not exist"
	}
	return &fault.Error{Kind: fault.Conflict, What: op.Key, Evidence: fmt.Sprintf("it %s and should %s", is, want),
		Next: "read it again and decide anew"}
}
