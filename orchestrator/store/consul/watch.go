package consul

import (
	"context"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"rerack.dev/rerack/orchestrator/store"
)

// pacePerPair is how long a watch rests for every pair of its prefix before it asks again. Consul always
// answers with the whole prefix, so that a large and busy one would otherwise keep it busy: 10,000 pairs
// are listed ten times a second at most.
const pacePerPair = 10 * time.Microsecond

// version tells the states of a pair apart, even over a restored snapshot, after which an index may come
// again for another value: the stamp of a write does not.
type version struct{ index, stamp uint64 }

// cursor is where a series of blocking queries stands.
type cursor struct {
	index uint64
	asked time.Time
	look  bool // the next query is not to wait
}

// after is the index that the next query waits to be passed; 0 does not wait.
func (c *cursor) after() uint64 {
	c.asked = time.Now()
	if c.look {
		return 0
	}
	return c.index
}

// advance takes the index of an answer and reports whether it went back. An answer without news that comes
// before the wait is over is how Consul ends the queries on a state that a restored snapshot replaces, with
// the content from before. The index of the restored state is the smaller one, so that to wait again would
// be to wait for the next write; therefore the next query only looks.
func (c *cursor) advance(index uint64) (back bool) {
	back = index < c.index
	c.look = !c.look && index == c.index && time.Since(c.asked) < maxWait
	c.index = max(index, 1) // 0 would not wait
	return back
}

// Watch calls fn with the changes under prefix, found by comparing one list with the next. Consul keeps no
// history that would tell what was deleted since from, so the first batch is always a reset. Another comes
// when the index goes back, as it does when a snapshot is restored and when Consul forgets deletions
// (consul docs, "Blocking queries": reset the index if it goes backwards).
//
// Watch returns fault.Unreachable or fault.Timeout when Consul does not answer; watch again to go on.
func (s *Store) Watch(ctx context.Context, prefix string, _ uint64, fn func(store.Batch) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return err
	}
	var known map[string]version
	var at cursor
	for {
		pairs, index, err := s.pairs(ctx, s.kv+prefix, at.after())
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if at.advance(index) {
			known = nil
		}
		var b store.Batch
		if b, known = s.difference(known, pairs); b.Reset || len(b.Changes) > 0 {
			b.Revision = at.index
			if err := fn(b); err != nil {
				return err
			}
		}
		select {
		case <-time.After(time.Duration(len(pairs)) * pacePerPair):
		case <-ctx.Done():
			return nil
		}
	}
}

// difference returns what changed from known to pairs, and what is known now. A nil known makes a reset.
func (s *Store) difference(known map[string]version, pairs api.KVPairs) (store.Batch, map[string]version) {
	b := store.Batch{Reset: known == nil}
	now := make(map[string]version, len(pairs))
	for _, p := range pairs {
		v := version{p.ModifyIndex, p.Flags}
		now[p.Key] = v
		if old, ok := known[p.Key]; !ok || old != v {
			b.Changes = append(b.Changes, store.Change{Entry: s.entry(p)})
		}
	}
	for key, old := range known {
		if _, ok := now[key]; !ok {
			gone := store.Entry{Key: strings.TrimPrefix(key, s.kv), Revision: old.index}
			b.Changes = append(b.Changes, store.Change{Entry: gone, Deleted: true})
		}
	}
	return b, now
}
