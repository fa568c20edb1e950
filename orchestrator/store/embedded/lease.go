package embedded

import (
	"context"
	"fmt"
	"sync"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// leases are locks among the parts of this process. Another process cannot hold one, because it cannot
// hold the file, and the kernel frees the file only with the end of the process that held it: a crashed
// holder is certainly gone, and no lock-delay is needed. TTL and Delay are checked and otherwise unused.
type leases struct {
	mu   sync.Mutex
	held map[string]*lease
	done bool // the store is closed
}

type lease struct {
	all   *leases
	name  string
	owner string
	lost  chan struct{}
}

// Acquire takes the lease called name, or returns fault.Conflict with its holder.
func (s *Store) Acquire(ctx context.Context, name string, o store.LeaseOptions) (store.Lease, error) {
	if err := store.CheckKey(name); err != nil {
		return nil, err
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, s.interrupted("acquire lease "+name, err)
	}
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	if s.leases.done {
		return nil, s.closedError()
	}
	if l := s.leases.held[name]; l != nil {
		return nil, &fault.Error{Kind: fault.Conflict, What: fmt.Sprintf("lease %s is held by %s", name, l.owner)}
	}
	l := &lease{all: &s.leases, name: name, owner: o.Owner, lost: make(chan struct{})}
	s.leases.held[name] = l
	return l, nil
}

// Lost is closed by Release and by the end of the store.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release gives the lease free; one that is lost already is left alone.
func (l *lease) Release(context.Context) error {
	l.all.mu.Lock()
	defer l.all.mu.Unlock()
	if l.all.held[l.name] == l {
		delete(l.all.held, l.name)
		close(l.lost)
	}
	return nil
}

func (ls *leases) loseAll() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.done = true
	for name, l := range ls.held {
		delete(ls.held, name)
		close(l.lost)
	}
}
