package bootplane_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/pxetest"
)

// epochOf is the epoch of the boot that a machine is served; 0: none.
func (w *world) epochOf(i int) uint64 {
	e, ok := w.Table.Lookup(pxetest.MAC(i))
	if !ok || e.Intent.Machine != fmt.Sprintf("m%d", i) {
		return 0
	}
	return e.Intent.Epoch
}

func TestFollowKeepsTheTable(t *testing.T) {
	s := openStore(t)
	putBoot(t, s, record(1, 2))
	w := newPlane(t, s)
	w.follow(t)
	eventually(t, "what was there is served", func() bool { return w.epochOf(1) == 2 })
	e, _ := w.Table.Lookup(pxetest.MAC(1))
	if in := e.Intent; in.Hostname != "w1" || in.NICs[0].Gateway.String() != "10.1.255.254" || in.Boot.Kernel.Params[0].Value != "ttyS0" {
		t.Errorf("intent %+v", in)
	}
	putBoot(t, s, record(2, 3))
	eventually(t, "a new record is served", func() bool { return w.epochOf(2) == 3 })
	putBoot(t, s, record(1, 5))
	eventually(t, "a newer epoch replaces it", func() bool { return w.epochOf(1) == 5 })
	must(t, s.Txn(t.Context(), store.Delete(state.BootsAt+"m1")))
	eventually(t, "a deleted one is gone", func() bool { return w.epochOf(1) == 0 })

	// A late write of an old epoch is never served, a record of the present one is again.
	putBoot(t, s, record(1, 4))
	putBoot(t, s, record(3, 1))
	eventually(t, "the watch has come this far", func() bool { return w.epochOf(3) == 1 })
	if w.epochOf(1) != 0 {
		t.Error("a stale boot is served")
	}
}

func TestFollowServesImagesOfOneFile(t *testing.T) {
	s := openStore(t)
	w := newPlane(t, s)
	w.follow(t)
	for epoch, form := range map[uint64]struct {
		kind topology.ImageType
		want pxe.ImageForm
	}{1: {topology.ImageDisk, pxe.FormDisk}, 2: {topology.ImageISO, pxe.FormDisk}, 3: {topology.ImageEFI, pxe.FormEFI}} {
		b := record(int(epoch), epoch)
		b.Type, b.File, b.Kernel, b.Initrds = string(form.kind), b.Kernel, "", nil
		putBoot(t, s, b)
		eventually(t, "it is served", func() bool { return w.epochOf(int(epoch)) == epoch })
		e, _ := w.Table.Lookup(pxetest.MAC(int(epoch)))
		if h := e.Intent.Boot.HTTP; h == nil || h.Form != form.want || string(h.File) != b.File {
			t.Errorf("%s: %+v", form.kind, e.Intent.Boot)
		}
	}
}

func TestFollowServesNothingForADamagedRecord(t *testing.T) {
	damage := map[string]func(b *state.Boot) any{
		"not JSON":           func(*state.Boot) any { return "rubbish" },
		"another's name":     func(b *state.Boot) any { b.Name = "m7"; return b },
		"no address":         func(b *state.Boot) any { b.Address = ""; return b },
		"gateway elsewhere":  func(b *state.Boot) any { b.Gateway = "192.168.0.1"; return b },
		"no kernel":          func(b *state.Boot) any { b.Kernel = ""; return b },
		"bad portal":         func(b *state.Boot) any { b.Type, b.SAN = "san", &state.SANBoot{Portal: "x"}; return b },
		"multicast MAC":      func(b *state.Boot) any { b.MACs = []string{"01:00:5e:00:00:01"}; return b },
		"MAC of eight bytes": func(b *state.Boot) any { b.MACs = []string{"00:11:22:33:44:55:66:77"}; return b },
		"image without file": func(b *state.Boot) any { b.Type = "iso"; return b },
		"no workflow":        func(b *state.Boot) any { b.Workflow = ""; return b },
	}
	s := openStore(t)
	w := newPlane(t, s)
	w.follow(t)
	i := 0
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			i++
			b := record(1, uint64(i))
			b.Name, b.Machine = "m1", "m1"
			putBoot(t, s, b)
			eventually(t, "the sound record is served", func() bool { return w.epochOf(1) == uint64(i) })
			put(t, s, state.BootsAt+"m1", f(&b))
			eventually(t, "the damaged one is not, nor what was there before", func() bool { return w.epochOf(1) == 0 })
		})
	}
}

// gapStore is a store whose watches can be made to lose their place or to fail.
type gapStore struct {
	store.Store
	mu        sync.Mutex
	interrupt func() (store.Batch, error)
	kick      chan struct{}
}

func (g *gapStore) Watch(ctx context.Context, prefix string, from uint64, fn func(store.Batch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	var mu sync.Mutex // a watch calls fn from one place at a time
	locked := func(b store.Batch) error {
		mu.Lock()
		defer mu.Unlock()
		return fn(b)
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-g.kick:
			g.mu.Lock()
			b, err := g.interrupt()
			g.mu.Unlock()
			if err == nil {
				err = locked(b)
			}
			failed <- err
			if err != nil {
				cancel()
			}
		}
	}()
	err := g.Store.Watch(ctx, prefix, from, locked)
	select {
	case f := <-failed:
		return errors.Join(err, f)
	default:
		return err
	}
}

func TestFollowForgetsAtAReset(t *testing.T) {
	inner := openStore(t)
	for i := 1; i <= 3; i++ {
		putBoot(t, inner, record(i, 2))
	}
	g := &gapStore{Store: inner, kick: make(chan struct{})}
	g.interrupt = func() (store.Batch, error) {
		var b store.Batch
		b.Reset = true
		for _, i := range []int{2, 4} {
			v, err := state.Encode(record(i, 3))
			if err != nil {
				return b, err
			}
			b.Changes = append(b.Changes, store.Change{Entry: store.Entry{Key: fmt.Sprintf("%sm%d", state.BootsAt, i), Value: v, Revision: 99}})
		}
		return b, nil
	}
	w := newPlane(t, g)
	w.follow(t)
	eventually(t, "all three are served", func() bool { return w.Table.Len() == 3 })
	g.kick <- struct{}{}
	eventually(t, "only what the reset names is left", func() bool { return w.Table.Len() == 2 && w.epochOf(2) == 3 && w.epochOf(4) == 3 })
}

func TestFollowOutlivesASilentStore(t *testing.T) {
	inner := openStore(t)
	putBoot(t, inner, record(1, 2))
	g := &gapStore{Store: inner, kick: make(chan struct{}), interrupt: func() (store.Batch, error) {
		return store.Batch{}, fault.New(fault.Unreachable, "no quorum")
	}}
	w := newPlane(t, g)
	w.follow(t)
	eventually(t, "the record is served", func() bool { return w.epochOf(1) == 2 })
	g.kick <- struct{}{}
	putBoot(t, inner, record(2, 2))
	must(t, inner.Txn(t.Context(), store.Delete(state.BootsAt+"m1")))
	eventually(t, "what changed meanwhile is seen", func() bool { return w.epochOf(2) == 2 && w.epochOf(1) == 0 })
}

func TestFollowEndsOnALastingError(t *testing.T) {
	g := &gapStore{Store: openStore(t), kick: make(chan struct{}), interrupt: func() (store.Batch, error) {
		return store.Batch{}, fault.New(fault.Unauthorized, "token refused")
	}}
	w := newPlane(t, g)
	done := make(chan error, 1)
	go func() { done <- w.Follow(t.Context()) }()
	g.kick <- struct{}{}
	select {
	case err := <-done:
		if err == nil {
			t.Error("it ended without saying why")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
	}
}

// An address that moves between records is served in the end, in whatever order the changes come.
func TestFollowMovesAnAddress(t *testing.T) {
	s := openStore(t)
	a := record(1, 2)
	putBoot(t, s, a)
	w := newPlane(t, s)
	w.follow(t)
	eventually(t, "the first is served", func() bool { return w.epochOf(1) == 2 })
	b := record(2, 2)
	b.MACs = a.MACs
	putBoot(t, s, b)
	putBoot(t, s, record(3, 2))
	eventually(t, "the watch has come this far", func() bool { return w.epochOf(3) == 2 })
	if w.epochOf(1) != 2 {
		t.Error("an equal epoch took the address over")
	}
	must(t, s.Txn(t.Context(), store.Delete(state.BootsAt+"m1")))
	eventually(t, "the second has it when the first lets go", func() bool {
		e, ok := w.Table.Lookup(pxetest.MAC(1))
		return ok && e.Intent.Machine == "m2"
	})
}
