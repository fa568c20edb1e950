package consul

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// partingTimeout bounds what is done for a lease when nobody waits for it any more.
const partingTimeout = 3 * time.Second

// holder is the value of a lock; it stays when the lock is free, as the name of the last one.
type holder struct {
	Owner string    `json:"owner"`
	Since time.Time `json:"since"`
}

// lease is a lock that a session of its own holds.
type lease struct {
	s       *Store
	name    string
	session string
	ttl     time.Duration
	lost    chan struct{}

	mu   sync.Mutex
	over bool // lost is closed
	free bool // Consul knows
}

// Acquire takes the lock called name. The session that holds it hangs on no health check: the renewals
// alone keep it, and Consul ends it TTL to 2*TTL after the last one.
func (s *Store) Acquire(ctx context.Context, name string, o store.LeaseOptions) (store.Lease, error) {
	if err := store.CheckKey(name); err != nil {
		return nil, err
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	// Looking first spares those who wait for a held lock a session with every look.
	pair, err := s.pair(ctx, s.locks+name)
	if err != nil {
		return nil, err
	}
	if pair != nil && pair.Session != "" {
		return nil, s.held(name, pair)
	}
	ctx, done, err := s.begin(ctx, callTimeout)
	if err != nil {
		return nil, err
	}
	defer done()
	q := (&api.WriteOptions{}).WithContext(ctx)
	begun := time.Now()
	session, _, err := s.client.Session().CreateNoChecks(&api.SessionEntry{
		Name:      "rerack " + name,
		TTL:       o.TTL.String(),
		LockDelay: max(o.Delay, time.Millisecond), // 0 would be left out and become Consul's 15 s
		Behavior:  api.SessionBehaviorRelease,
	}, q)
	if err != nil {
		return nil, s.fault("create session for lease "+name, err, true)
	}
	l := &lease{s: s, name: name, session: session, ttl: o.TTL, lost: make(chan struct{})}
	value, err := json.Marshal(holder{o.Owner, begun.UTC()})
	if err != nil {
		return nil, &fault.Error{Kind: fault.Internal, What: "encode holder of lease " + name, Err: err}
	}
	ok, _, err := s.client.KV().Acquire(&api.KVPair{Key: s.locks + name, Value: value, Session: session}, q)
	switch {
	case err != nil:
		s.abandon(l)
		return nil, s.fault("acquire lease "+name, err, true)
	case !ok:
		s.abandon(l)
		if pair, err = s.pair(ctx, s.locks+name); err != nil {
			return nil, err
		}
		return nil, s.held(name, pair)
	case !s.leases.add(l, begun.Add(o.TTL)):
		s.abandon(l)
		return nil, s.closedError()
	}
	return l, nil
}

// held is the refusal of a lock whose pair is given.
func (s *Store) held(name string, pair *api.KVPair) error {
	f := &fault.Error{Kind: fault.Conflict, What: "lease " + name, Where: s.where, Evidence: "it was taken by another just now"}
	if pair == nil {
		return f
	}
	h := holder{Owner: "an unknown holder"}
	// A lock that another tool took has another value; its holder stays unknown.
	if err := json.Unmarshal(pair.Value, &h); err == nil && pair.Session != "" {
		f.Evidence = fmt.Sprintf("it is held by %s since %s", h.Owner, h.Since.Format(time.RFC3339))
	} else if pair.Session != "" {
		f.Evidence = "it is held by " + h.Owner
	} else {
		f.Evidence = fmt.Sprintf("the lock-delay after %s, which did not release it, is running", h.Owner)
	}
	return f
}

// abandon gives up a session that came to nothing, even when the caller's context has ended: if it took the
// lock after all, nobody would have it until the session expires.
func (s *Store) abandon(l *lease) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.alive), partingTimeout)
	defer cancel()
	if err := l.give(ctx); err != nil {
		s.log.Warn("session is left to expire", "lease", l.name, "session", l.session, "error", err)
	}
}

// Lost is closed when the lease is released, when Consul has ended the session, and when no renewal has
// succeeded for TTL, before which Consul does not end it.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release gives the lease free without lock-delay. Lost is closed before Consul is told, so that there are
// never two who think that they hold it. After an error it may be called again; without that the lease is
// free when the session expires.
func (l *lease) Release(ctx context.Context) error {
	l.lose()
	l.mu.Lock()
	free := l.free
	l.mu.Unlock()
	if free {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return l.give(ctx)
}

// give tells Consul. The lock goes before the session: destroying a session that holds one would start
// the lock-delay.
func (l *lease) give(ctx context.Context) error {
	q := (&api.WriteOptions{}).WithContext(ctx)
	key := l.s.locks + l.name
	pair, _, err := l.s.client.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err == nil && pair != nil && pair.Session == l.session {
		_, _, err = l.s.client.KV().Release(&api.KVPair{Key: key, Value: pair.Value, Session: l.session}, q)
	}
	if err == nil {
		_, err = l.s.client.Session().Destroy(l.session, q)
	}
	if err != nil {
		return l.s.fault("release lease "+l.name, err, true)
	}
	l.mu.Lock()
	l.free = true
	l.mu.Unlock()
	return nil
}

// lose closes Lost, once, and reports whether it was this call that did.
func (l *lease) lose() bool {
	l.s.leases.remove(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return false
	}
	l.over = true
	close(l.lost)
	return true
}
