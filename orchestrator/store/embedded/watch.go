package embedded

import (
	"bytes"
	"context"
	"sort"
	"strings"
	"sync"

	"go.etcd.io/bbolt"

	"rerack.dev/rerack/orchestrator/store"
)

const (
	maxRingBytes = 64 << 20 // values kept for watchers
	maxBatch     = 1024     // changes a batch begins to be complete at
)

// ring holds the most recent changes, oldest first.
type ring struct {
	limit int

	mu       sync.Mutex
	changes  []store.Change
	bytes    int
	floor    uint64        // all changes after this revision are here
	revision uint64        // of the last transaction published
	news     chan struct{} // closed and replaced with every publication
}

func newRing(limit int, revision uint64) *ring {
	return &ring{limit: limit, floor: revision, revision: revision, news: make(chan struct{})}
}

// publish appends the changes of one commit, in order, and drops the oldest over the limits.
func (r *ring) publish(revision uint64, changes []store.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes = append(r.changes, changes...)
	for _, c := range changes {
		r.bytes += len(c.Value)
	}
	drop := 0
	for drop < len(r.changes) && (len(r.changes)-drop > r.limit || r.bytes > maxRingBytes) {
		r.bytes -= len(r.changes[drop].Value)
		r.floor = r.changes[drop].Revision
		drop++
	}
	clear(r.changes[:drop]) // lets go of the values while the array is still in use
	r.changes = r.changes[drop:]
	r.revision = revision
	close(r.news)
	r.news = make(chan struct{})
}

// after returns copies of the changes under prefix after revision from, and up to which revision they are
// complete. news is closed when there are more. ok is false when the ring does not reach back to from.
func (r *ring) after(from uint64, prefix string) (changes []store.Change, upTo uint64, news <-chan struct{}, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if from < r.floor {
		return nil, 0, nil, false
	}
	upTo = r.revision
	i := sort.Search(len(r.changes), func(i int) bool { return r.changes[i].Revision > from })
	for ; i < len(r.changes); i++ {
		c := r.changes[i]
		if len(changes) >= maxBatch && c.Revision > r.changes[i-1].Revision {
			upTo = r.changes[i-1].Revision // never in the middle of a transaction
			break
		}
		if strings.HasPrefix(c.Key, prefix) {
			c.Value = bytes.Clone(c.Value)
			changes = append(changes, c)
		}
	}
	return changes, upTo, r.news, true
}

// Watch calls fn with the changes under prefix after from. A watch from before the changes kept in memory
// (all of them are from this process's lifetime), or from a revision that the store has not reached, as
// after restoring a backup, begins with a reset.
func (s *Store) Watch(ctx context.Context, prefix string, from uint64, fn func(store.Batch) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return err
	}
	reset, err := s.ahead(from)
	if err != nil {
		return ended(ctx, err)
	}
	for ctx.Err() == nil {
		select {
		case <-s.closing:
			return s.closedError()
		default:
		}
		changes, upTo, news, ok := s.ring.after(from, prefix)
		if reset || !ok {
			if from, err = s.reset(ctx, prefix, fn); err != nil {
				return ended(ctx, err)
			}
			reset = false
			continue
		}
		if len(changes) > 0 {
			if err := fn(store.Batch{Revision: upTo, Changes: changes}); err != nil {
				return err
			}
		}
		if upTo > from {
			from = upTo
			continue
		}
		select {
		case <-news:
		case <-ctx.Done():
		case <-s.closing:
		}
	}
	return nil
}

// ahead tells whether revision from is one that the store has not reached. A list may be ahead of the
// ring, which is told only after the commit, but not of the file.
func (s *Store) ahead(from uint64) (bool, error) {
	s.ring.mu.Lock()
	published := s.ring.revision
	s.ring.mu.Unlock()
	if from <= published {
		return false, nil
	}
	var h head
	err := s.view(func(tx *bbolt.Tx) (err error) {
		h, err = readHead(tx)
		return err
	})
	return from > h.Revision, err
}

// reset calls fn with the whole content of prefix and returns the revision to go on from.
func (s *Store) reset(ctx context.Context, prefix string, fn func(store.Batch) error) (uint64, error) {
	entries, revision, err := s.List(ctx, prefix)
	if err != nil {
		return 0, err
	}
	b := store.Batch{Revision: revision, Reset: true, Changes: make([]store.Change, len(entries))}
	for i, e := range entries {
		b.Changes[i].Entry = e
	}
	return revision, fn(b)
}

// ended is the error of a watch, which is none when its context ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
