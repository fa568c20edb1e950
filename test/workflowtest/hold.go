package workflowtest

import (
	"context"
	"strings"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
)

// Store is the store as activities are to use it: a held target whose record lets it go boots at once,
// as it does when a boot server follows the records.
func (d *DataCentre) Store() store.Store { return d.Follow(d.store) }

// Follow is Store on another way to the same records.
func (d *DataCentre) Follow(s store.Store) store.Store { return followed{s, d} }

type followed struct {
	store.Store
	d *DataCentre
}

// Txn implements store.Store.
func (f followed) Txn(ctx context.Context, ops ...store.Op) error {
	if err := f.Store.Txn(ctx, ops...); err != nil {
		return err
	}
	for _, op := range ops {
		if name, ok := strings.CutPrefix(op.Key, state.BootsAt); ok && (op.Kind == store.OpPut || op.Kind == store.OpPutIf) {
			f.d.letGo(ctx, name)
		}
	}
	return nil
}

// hold keeps what a target does once it is let go.
func (d *DataCentre) hold(name string, then func(context.Context)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting[name] = then
}

func (d *DataCentre) letGo(ctx context.Context, name string) {
	if rec, ok := d.bootRecord(ctx, name); !ok || rec.Held {
		return
	}
	d.mu.Lock()
	then := d.waiting[name]
	delete(d.waiting, name)
	d.mu.Unlock()
	if then != nil {
		d.beside(ctx, then)
	}
}
