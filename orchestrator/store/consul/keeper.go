package consul

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// retryPause is the rest after a renewal or a look at the locks that failed.
const retryPause = time.Second

// leases are those that this store holds. Each is renewed by a goroutine of its own; one more watches the
// locks of all, because an agent takes only some 200 connections from one address.
type leases struct {
	keepers sync.WaitGroup

	mu     sync.Mutex
	held   map[*lease]bool
	guard  context.CancelFunc // ends the watch of the locks; nil while none is held
	closed bool
}

// add begins to keep l, which Consul does not end before expires. It refuses when the store is closed.
func (ls *leases) add(l *lease, expires time.Time) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.closed {
		return false
	}
	ls.held[l] = true
	ls.keepers.Go(func() { l.renew(expires) })
	if ls.guard == nil {
		ctx, cancel := context.WithCancel(l.s.alive)
		ls.guard = cancel
		ls.keepers.Go(func() { l.s.watchLocks(ctx) })
	}
	return true
}

func (ls *leases) remove(l *lease) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.held, l)
	if len(ls.held) == 0 && ls.guard != nil {
		ls.guard()
		ls.guard = nil
	}
}

func (ls *leases) list() []*lease {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return slices.Collect(maps.Keys(ls.held))
}

// releaseAll ends all leases at once and takes no more.
func (ls *leases) releaseAll() {
	ls.mu.Lock()
	ls.closed = true
	ls.mu.Unlock()
	var wg sync.WaitGroup
	for _, l := range ls.list() {
		wg.Go(func() {
			l.lose()
			l.s.abandon(l)
		})
	}
	wg.Wait()
}

// renew keeps the session alive until the lease is over.
func (l *lease) renew(expires time.Time) {
	pause := l.ttl / 3
	for {
		select {
		case <-l.lost:
			return
		case <-time.After(min(pause, time.Until(expires))):
		}
		begun := time.Now()
		ctx, cancel := context.WithDeadline(l.s.alive, expires)
		stop := context.AfterFunc(l.s.alive, cancel)
		entry, _, err := l.s.client.Session().Renew(l.session, (&api.WriteOptions{}).WithContext(ctx))
		stop()
		cancel()
		switch {
		case err == nil && entry == nil:
			l.end("Consul has ended the session")
		case err == nil:
			expires, pause = begun.Add(l.ttl), l.ttl/3
		case !time.Now().Before(expires):
			l.end("it could not be renewed in time: " + err.Error())
		default:
			l.s.log.Warn("lease was not renewed", "lease", l.name, "left", time.Until(expires), "error", err)
			pause = retryPause
		}
	}
}

// end loses a lease against the will of its holder.
func (l *lease) end(why string) {
	if l.lose() {
		l.s.log.Warn("lease is lost", "lease", l.name, "session", l.session, "why", why)
	}
}

// watchLocks loses the leases whose lock another session holds, or none: a person has destroyed the session
// or deleted the key.
func (s *Store) watchLocks(ctx context.Context) {
	var at cursor
	for ctx.Err() == nil {
		held := s.leases.list() // before asking: what is taken meanwhile may not be in the answer
		pairs, index, err := s.pairs(ctx, s.locks, at.after())
		if err != nil {
			select { // the renewals decide how long a lease outlives a silent Consul
			case <-time.After(retryPause):
			case <-ctx.Done():
			}
			continue
		}
		at.advance(index)
		sessions := make(map[string]string, len(pairs))
		for _, p := range pairs {
			sessions[p.Key] = p.Session
		}
		for _, l := range held {
			if sessions[s.locks+l.name] != l.session {
				l.end("the lock is no longer with its session")
			}
		}
	}
}
