// Package revision keeps every applied topology as a numbered, immutable revision in the store. A
// revision's content is written first; the head then moves to it by one compare-and-set, so that an
// apply is seen whole or not at all.
package revision

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
)

const (
	headKey  = "topology/head"
	revsAt   = "topology/revision/"
	chunkLen = 256 << 10
	// maxPlain bounds what a stored revision may unpack to.
	maxPlain = 256 << 20
)

// Head describes one revision.
type Head struct {
	Revision int       `json:"revision"` // 1 is the first
	Hash     string    `json:"hash"`
	At       time.Time `json:"at"`
	By       string    `json:"by"`
	Message  string    `json:"message,omitempty"`
	Chunks   int       `json:"chunks"`
	Objects  int       `json:"objects"`
}

// Log is the sequence of revisions.
type Log struct {
	Store store.Store
	Now   func() time.Time

	current atomic.Pointer[loaded]

	mu    sync.Mutex
	older map[int]*topology.Topology // by number, of those that were asked for last
	asked []int                      // oldest first
}

// maxOlder bounds how many revisions besides the current one are kept unpacked: as many as runs that are
// under way are likely to go by.
const maxOlder = 4

type loaded struct {
	head Head
	topo *topology.Topology
}

// Current is the newest revision this process has seen; empty before the first.
func (l *Log) Current() (Head, *topology.Topology) {
	if c := l.current.Load(); c != nil {
		return c.head, c.topo
	}
	return Head{}, topology.New()
}

// Topology is the current one.
func (l *Log) Topology() *topology.Topology {
	_, t := l.Current()
	return t
}

// Present is the newest revision that the store has, and its number.
func (l *Log) Present(ctx context.Context) (int, *topology.Topology, error) {
	if err := l.Refresh(ctx); err != nil {
		return 0, nil, err
	}
	h, t := l.Current()
	return h.Revision, t, nil
}

// At is one revision, which nobody may change: others are given the same.
func (l *Log) At(ctx context.Context, revision int) (*topology.Topology, error) {
	if h, t := l.Current(); h.Revision == revision {
		return t, nil
	}
	if t := l.kept(revision); t != nil {
		return t, nil
	}
	_, t, err := l.Load(ctx, revision)
	if err != nil {
		return nil, err
	}
	l.keep(revision, t)
	return t, nil
}

func (l *Log) kept(revision int) *topology.Topology {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.older[revision]
}

func (l *Log) keep(revision int, t *topology.Topology) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.older == nil {
		l.older = map[int]*topology.Topology{}
	}
	if l.older[revision] == nil {
		l.asked = append(l.asked, revision)
	}
	l.older[revision] = t
	if len(l.asked) > maxOlder {
		delete(l.older, l.asked[0])
		l.asked = l.asked[1:]
	}
}

// Apply makes t the next revision. expect is the revision it was planned against, or -1 for any; a
// topology equal to the present one makes no revision.
func (l *Log) Apply(ctx context.Context, t *topology.Topology, by, message string, expect int) (Head, bool, error) {
	hash := topology.Hash(t)
	plain, err := topology.EncodeJSON(t)
	if err != nil {
		return Head{}, false, err
	}
	// What cannot be read back must never become the current revision.
	if back, err := topology.DecodeJSON(plain); err != nil || topology.Hash(back) != hash || len(plain) > maxPlain {
		return Head{}, false, &fault.Error{Kind: fault.Invalid, Where: "topology", What: "it cannot be stored and read back", Err: err}
	}
	packed, err := pack(plain)
	if err != nil {
		return Head{}, false, err
	}
	for {
		head, rev, err := state.Load[Head](ctx, l.Store, headKey)
		if err != nil {
			return Head{}, false, err
		}
		if expect >= 0 && head.Revision != expect {
			return head, false, &fault.Error{Kind: fault.Conflict, Where: "topology", What: "it has changed since it was planned",
				Evidence: fmt.Sprintf("revision %d by %s, planned against %d", head.Revision, head.By, expect), Next: "plan again"}
		}
		if head.Hash == hash {
			return head, false, l.Refresh(ctx)
		}
		next := Head{Revision: head.Revision + 1, Hash: hash, At: l.Now(), By: by, Message: message, Objects: t.Len()}
		err = l.write(ctx, next, packed, rev)
		if fault.Is(err, fault.Conflict) {
			continue
		}
		if err != nil {
			return Head{}, false, err
		}
		return next, true, l.Refresh(ctx)
	}
}

// write stores the content and moves the head. Content is found by number and hash, so that of two who
// write the same number neither touches the other's; that of the loser stays behind unseen.
func (l *Log) write(ctx context.Context, h Head, packed []byte, headRev uint64) error {
	id := fmt.Sprintf("%s%08d-%s", revsAt, h.Revision, h.Hash)
	for len(packed) > 0 {
		n := min(len(packed), chunkLen)
		if err := l.Store.Txn(ctx, store.Put(fmt.Sprintf("%s/%04d", id, h.Chunks), packed[:n])); err != nil {
			return err
		}
		packed = packed[n:]
		h.Chunks++
	}
	b, err := state.Encode(h)
	if err != nil {
		return err
	}
	return l.Store.Txn(ctx, store.PutIf(headKey, b, headRev), store.Put(fmt.Sprintf("topology/log/%08d", h.Revision), b))
}

// Load reads one revision back and checks that it is what was applied.
func (l *Log) Load(ctx context.Context, revision int) (Head, *topology.Topology, error) {
	h, rev, err := state.Load[Head](ctx, l.Store, fmt.Sprintf("topology/log/%08d", revision))
	if err != nil {
		return h, nil, err
	}
	if rev == 0 {
		return h, nil, &fault.Error{Kind: fault.NotFound, What: "no such revision", Where: fmt.Sprint(revision), Next: "rerack revisions"}
	}
	var packed bytes.Buffer
	for i := range h.Chunks {
		e, err := l.Store.Get(ctx, fmt.Sprintf("%s%08d-%s/%04d", revsAt, h.Revision, h.Hash, i))
		if fault.Is(err, fault.NotFound) {
			return h, nil, damaged(revision, fmt.Sprintf("part %d of %d is missing", i+1, h.Chunks), nil)
		}
		if err != nil {
			return h, nil, fault.Wrap(err, "read revision", fmt.Sprint(revision))
		}
		packed.Write(e.Value)
	}
	plain, err := unpack(&packed)
	if err != nil {
		return h, nil, damaged(revision, "it does not unpack", err)
	}
	t, err := topology.DecodeJSON(plain)
	if err != nil {
		return h, nil, damaged(revision, "it is no topology", err)
	}
	if got := topology.Hash(t); got != h.Hash {
		return h, nil, damaged(revision, "hash "+got+" instead of "+h.Hash, nil)
	}
	return h, t, nil
}

func damaged(revision int, evidence string, err error) error {
	return &fault.Error{Kind: fault.Internal, Where: fmt.Sprintf("revision %d", revision), What: "its content is damaged",
		Evidence: evidence, Err: err, Next: "restore the store from a backup"}
}

// List returns all revisions, oldest first.
func (l *Log) List(ctx context.Context) ([]Head, error) {
	return state.List[Head](ctx, l.Store, "topology/log/")
}

// Refresh makes the stored head the current one.
func (l *Log) Refresh(ctx context.Context) error {
	head, rev, err := state.Load[Head](ctx, l.Store, headKey)
	if err != nil || rev == 0 {
		return err
	}
	if c := l.current.Load(); c != nil && c.head.Revision == head.Revision {
		return nil
	}
	head, t, err := l.Load(ctx, head.Revision)
	if err != nil {
		return err
	}
	for {
		c := l.current.Load()
		if c != nil && c.head.Revision >= head.Revision {
			return nil
		}
		if l.current.CompareAndSwap(c, &loaded{head, t}) {
			return nil
		}
	}
}

// followAgain is the pause before the head is watched again after the store did not answer.
const followAgain = time.Second

// Follow keeps the current revision up to date until ctx ends. While the store does not answer the last
// one seen stays current.
func (l *Log) Follow(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if k := fault.KindOf(err); err != nil && k != fault.Unreachable && k != fault.Timeout {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(followAgain):
		}
	}
}

func (l *Log) follow(ctx context.Context) error {
	_, rev, err := l.Store.List(ctx, headKey)
	if err != nil {
		return err
	}
	if err := l.Refresh(ctx); err != nil {
		return err
	}
	return l.Store.Watch(ctx, headKey, rev, func(store.Batch) error { return l.Refresh(ctx) })
}

func pack(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(plain); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func unpack(r io.Reader) ([]byte, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(io.LimitReader(z, maxPlain+1))
	if err == nil && len(plain) > maxPlain {
		err = fault.Newf(fault.Invalid, "it unpacks to more than %d bytes", maxPlain)
	}
	return plain, err
}
