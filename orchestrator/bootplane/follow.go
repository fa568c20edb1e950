package bootplane

import (
	"context"
	"math"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/pxe"
)

// followAgain is the pause before the store is watched again after it did not answer.
const followAgain = time.Second

// Follow keeps the table at the boot records until ctx ends. While the store does not answer the table
// stays as it is: what was being booted goes on.
func (p *Plane) Follow(ctx context.Context) error {
	for {
		err := p.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if k := fault.KindOf(err); err != nil && k != fault.Unreachable && k != fault.Timeout {
			return err
		}
		p.Log.Warn("boot records are not followed at present", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(followAgain):
		}
	}
}

func (p *Plane) follow(ctx context.Context) error {
	entries, rev, err := p.Store.List(ctx, state.BootsAt)
	if err != nil {
		return err
	}
	f := follower{Plane: p}
	f.replace(entries)
	return p.Store.Watch(ctx, state.BootsAt, rev, func(b store.Batch) error {
		if b.Reset {
			var all []store.Entry
			for _, c := range b.Changes {
				if !c.Deleted {
					all = append(all, c.Entry)
				}
			}
			f.replace(all)
			return nil
		}
		f.change(b.Changes)
		return nil
	})
}

// follower is one stretch of following without a gap.
type follower struct {
	*Plane
	// waiting are intents refused because another machine still has one of their addresses, by name.
	waiting map[string]pxe.Intent
}

// replace makes the table hold what the store holds and nothing else.
func (f *follower) replace(entries []store.Entry) {
	f.waiting = map[string]pxe.Intent{}
	var ins []pxe.Intent
	for _, e := range entries {
		if in, ok := f.read(e); ok {
			ins = append(ins, in)
		}
	}
	if err := f.Table.Replace(ins); err != nil {
		f.Log.Error("boot records cannot all be served", "error", err)
	}
}

// change takes what is gone out of the table first: an address may go from one record to another within
// a batch, in whatever order they come.
func (f *follower) change(changes []store.Change) {
	for _, c := range changes {
		if c.Deleted {
			f.drop(name(c.Key))
		}
	}
	for _, c := range changes {
		if c.Deleted {
			continue
		}
		in, ok := f.read(c.Entry)
		if !ok {
			f.drop(name(c.Key)) // what it said before is not what it says now
			continue
		}
		f.set(in)
	}
	for _, in := range f.waiting {
		f.set(in)
	}
}

func (f *follower) set(in pxe.Intent) {
	delete(f.waiting, in.Machine)
	switch err := f.Table.Set(in); {
	case err == nil || fault.Is(err, fault.Stale):
	case fault.Is(err, fault.Conflict):
		f.waiting[in.Machine] = in
		f.Log.Warn("boot record waits for an address that another has", "machine", in.Machine, "boot", in.Run, "error", err)
	default:
		f.drop(in.Machine)
		f.Log.Error("boot record cannot be served; its machine boots nothing", "machine", in.Machine, "boot", in.Run, "error", err)
	}
}

func (f *follower) drop(name string) {
	delete(f.waiting, name)
	// The store is the truth: what is deleted there is over, whatever its epoch, so this never refuses.
	_ = f.Table.Remove(name, math.MaxUint64)
}

// read returns the intent of a record, if it is one.
func (f *follower) read(e store.Entry) (pxe.Intent, bool) {
	b, err := state.Decode[state.Boot](e)
	if err == nil && b.Name != name(e.Key) {
		err = fault.Newf(fault.Internal, "it is of %q", b.Name)
	}
	var in pxe.Intent
	if err == nil {
		in, err = intent(b)
	}
	if err == nil {
		err = in.Validate()
	}
	if err != nil {
		f.Log.Error("boot record is damaged; its machine boots nothing", "key", e.Key, "error", err)
	}
	return in, err == nil
}

func name(key string) string { return strings.TrimPrefix(key, state.BootsAt) }
