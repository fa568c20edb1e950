package chaos

import (
	"context"
	"strings"

	"rerack.dev/rerack/orchestrator/store"
)

// cutStore lets every call to the store pass a cut. What is durable is told to the checker.
type cutStore struct {
	store.Store
	s     *schedule
	sound bool // nothing but the order is drawn
}

func (c *cutStore) class(k class) class {
	if c.sound {
		return internal
	}
	return k
}

// Get implements store.Store.
func (c *cutStore) Get(ctx context.Context, key string) (e store.Entry, err error) {
	err = c.s.do(ctx, c.class(look), "get "+key, func(ctx context.Context) error {
		e, err = c.Store.Get(ctx, key)
		return err
	})
	return e, err
}

// List implements store.Store.
func (c *cutStore) List(ctx context.Context, prefix string) (es []store.Entry, rev uint64, err error) {
	err = c.s.do(ctx, c.class(look), "list "+prefix, func(ctx context.Context) error {
		es, rev, err = c.Store.List(ctx, prefix)
		return err
	})
	return es, rev, err
}

// Txn implements store.Store.
func (c *cutStore) Txn(ctx context.Context, ops ...store.Op) error {
	keys := make([]string, len(ops))
	for i, op := range ops {
		keys[i] = op.Key
	}
	return c.s.do(ctx, c.class(write), "put "+strings.Join(keys, " "), func(ctx context.Context) error { return c.Store.Txn(ctx, ops...) })
}
