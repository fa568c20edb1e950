// Package consul is the store in a Consul cluster, for a Rerack of several processes that may die one by
// one: the key-value store with check-and-set for the state, sessions for the leases.
//
// Below its prefix the keys are at kv/ and the locks at lock/. Everything else in Consul is left alone.
package consul

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// callTimeout bounds one request that does not block on purpose. Electing a leader takes Consul some
// seconds.
const callTimeout = 15 * time.Second

// Store is a connection to Consul. It implements store.Store.
type Store struct {
	where  string // for errors: "Consul 127.0.0.1:8500/rerack"
	kv     string // prefix of the keys
	locks  string // prefix of the locks
	log    *slog.Logger
	client *api.Client
	http   *http.Transport
	leases leases

	alive context.Context // ends with Close
	end   context.CancelFunc
	once  sync.Once
}

var _ store.Store = (*Store)(nil)

// Open connects to Consul and makes sure that it has a leader and lets the token read.
func Open(ctx context.Context, c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := c.tls()
	if err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		where: "Consul " + c.Address + "/" + c.prefix(),
		kv:    c.prefix() + "/kv/",
		locks: c.prefix() + "/lock/",
		log:   c.Logger,
		http: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig:     tlsConfig,
			TLSHandshakeTimeout: 5 * time.Second,
			ForceAttemptHTTP2:   true,
			MaxIdleConnsPerHost: 32,
			IdleConnTimeout:     time.Minute,
		},
	}
	s.alive, s.end = context.WithCancel(context.Background())
	s.leases.held = map[*lease]bool{}
	s.client, err = api.NewClient(&api.Config{
		Address: c.Address, Scheme: c.scheme(), Datacenter: c.Datacenter,
		HttpClient: &http.Client{Transport: &transport{base: s.http, token: token, where: s.where}},
	})
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "configure the Consul client", Where: s.where, Err: err}
	}
	if _, err := s.Get(ctx, "open"); err != nil && !fault.Is(err, fault.NotFound) {
		s.Close()
		return nil, err
	}
	return s, nil
}

// begin bounds a call by timeout and by the life of the store. done must be called at its end.
func (s *Store) begin(ctx context.Context, timeout time.Duration) (_ context.Context, done func(), err error) {
	if s.alive.Err() != nil {
		return nil, nil, s.closedError()
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, &fault.Error{Kind: fault.Timeout, Where: s.where, Evidence: "given up before it began", Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	stop := context.AfterFunc(s.alive, cancel)
	return ctx, func() { stop(); cancel() }, nil
}

func (s *Store) closedError() error {
	return &fault.Error{Kind: fault.Unreachable, What: "the store is closed", Where: s.where}
}

// Get reads the entry at key from the leader.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Entry{}, err
	}
	pair, err := s.pair(ctx, s.kv+key)
	if err != nil {
		return store.Entry{}, err
	}
	if pair == nil {
		return store.Entry{}, &fault.Error{Kind: fault.NotFound, What: "no entry " + key}
	}
	return s.entry(pair), nil
}

// List reads the entries under prefix from the leader. The revision is that of the prefix.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, uint64, error) {
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, 0, err
	}
	pairs, index, err := s.pairs(ctx, s.kv+prefix, 0)
	if err != nil {
		return nil, 0, err
	}
	out := make([]store.Entry, len(pairs))
	for i, p := range pairs {
		out[i] = s.entry(p)
	}
	slices.SortFunc(out, func(a, b store.Entry) int { return cmp.Compare(a.Key, b.Key) })
	return out, index, nil
}

func (s *Store) entry(p *api.KVPair) store.Entry {
	return store.Entry{Key: strings.TrimPrefix(p.Key, s.kv), Value: p.Value, Revision: p.ModifyIndex}
}

// pair reads one pair, nil if there is none.
func (s *Store) pair(ctx context.Context, key string) (*api.KVPair, error) {
	ctx, done, err := s.begin(ctx, callTimeout)
	if err != nil {
		return nil, err
	}
	defer done()
	pair, _, err := s.client.KV().Get(key, (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return nil, s.fault("read", err, false)
	}
	return pair, nil
}

// maxWait is how long Consul holds back an answer when nothing changes. It adds up to a sixteenth of it.
// It also bounds how long a watch may miss that a snapshot was restored: a query that comes right after
// that waits for an index that is long past.
const maxWait = 20 * time.Second

// pairs lists the pairs under prefix with the index of the prefix. With an index it waits for a later one,
// up to maxWait.
func (s *Store) pairs(ctx context.Context, prefix string, after uint64) (api.KVPairs, uint64, error) {
	q := &api.QueryOptions{RequireConsistent: true}
	timeout := callTimeout
	if after > 0 {
		q.WaitIndex, q.WaitTime = after, maxWait
		timeout += maxWait + maxWait/16
	}
	ctx, done, err := s.begin(ctx, timeout)
	if err != nil {
		return nil, 0, err
	}
	defer done()
	pairs, meta, err := s.client.KV().List(prefix, q.WithContext(ctx))
	if err != nil {
		return nil, 0, s.fault("list", err, false)
	}
	return pairs, meta.LastIndex, nil
}

// Close releases the leases, so that others need not wait for them, and ends the watches.
func (s *Store) Close() error {
	s.once.Do(func() {
		s.leases.releaseAll()
		s.end()
		s.leases.keepers.Wait()
		s.http.CloseIdleConnections()
	})
	return nil
}
