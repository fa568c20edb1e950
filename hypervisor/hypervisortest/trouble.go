package hypervisortest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// each runs f n times at once, every time with a driver of its own.
func (b *bench) each(t *testing.T, n int, f func(i int, drv driver.Host) error) []error {
	t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		drv := b.Open(t)
		t.Cleanup(func() { _ = drv.Close() })
		wg.Go(func() { errs[i] = f(i, drv) })
	}
	wg.Wait()
	return errs
}

// testContention lets runs with different epochs fight over one VM. Whatever order they come in, the
// newest has it in the end.
func testContention(t *testing.T, b *bench) {
	const runs = 8
	spec := func(i int) driver.Spec {
		s := Spec("db1", 1, uint64(i+1))
		s.MemoryMiB = int64(100 + i)
		return s
	}
	ctx := b.ctx(t)
	for i, err := range b.each(t, runs, func(i int, drv driver.Host) error {
		s := spec(i)
		if err := drv.Stop(ctx, s.Name, s.Epoch); err != nil {
			return err
		}
		if err := drv.Define(ctx, s); err != nil {
			return err
		}
		return drv.Start(ctx, s.Name, s.Epoch)
	}) {
		// An older run may have started the VM between the newer one's stop and its definition.
		if err != nil && !fault.Is(err, fault.Stale) && !fault.Is(err, fault.Conflict) {
			t.Errorf("run of epoch %d: %v", i+1, err)
		}
	}
	last := spec(runs - 1)
	must(t, b.drv.Stop(ctx, last.Name, last.Epoch))
	must(t, b.drv.Define(ctx, last))
	must(t, b.drv.Start(ctx, last.Name, last.Epoch))
	b.expect(t, last, runs, driver.StateRunning)
	if vms := b.vms(t); len(vms) != 1 {
		t.Fatalf("%+v", vms)
	}
}

func testStartOnce(t *testing.T, b *bench) {
	s := Spec("db1", 1, 5)
	ctx := b.ctx(t)
	for i, err := range b.each(t, 8, func(_ int, drv driver.Host) error {
		if err := drv.Define(ctx, s); err != nil {
			return err
		}
		return drv.Start(ctx, s.Name, s.Epoch)
	}) {
		if err != nil {
			t.Errorf("caller %d: %v", i, err)
		}
	}
	b.expect(t, s, 5, driver.StateRunning)
	if n := b.Starts(); n != 1 {
		t.Fatalf("started %d times", n)
	}
}

func testRoomOnce(t *testing.T, b *bench) {
	whole := b.room(t)
	ctx := b.ctx(t)
	fits := 0
	for i, err := range b.each(t, 8, func(i int, drv driver.Host) error {
		s := Spec(fmt.Sprint("vm", i), byte(i), 5)
		s.CPUs, s.MemoryMiB = whole.CPUs/4, 1
		return drv.Define(ctx, s)
	}) {
		switch {
		case err == nil:
			fits++
		case !fault.Is(err, fault.Conflict):
			t.Errorf("VM %d: %v", i, err)
		}
	}
	if vms := b.vms(t); fits != whole.CPUs/(whole.CPUs/4) || len(vms) != fits {
		t.Fatalf("%d fit, %d are there, of %d CPUs", fits, len(vms), whole.CPUs)
	}
}

// testFailEach makes each call of a VM's life fail in each way, and repeats the act. That must bring it
// to its end, once.
func testFailEach(t *testing.T, b *bench) {
	if b.Fail == nil {
		t.Skip("the rig cannot break calls")
	}
	tried, epoch := 0, uint64(0)
	for _, how := range []Failure{Refused, Dropped, Lost} {
		for at := 1; ; at++ {
			broken := false
			epoch++
			s := Spec("db1", 1, epoch)
			starts := b.Starts()
			for _, act := range []struct {
				name string
				do   func(context.Context) error
				on   bool
			}{{"define", b.define(s), false}, {"start", b.start(s.Name, epoch), true}, {"stop", b.stop(s.Name, epoch), false},
				{"undefine", b.undefine(s.Name, epoch), false}} {
				what := fmt.Sprintf("%s, call %d %s", act.name, at, how)
				b.Fail(at, how)
				err := act.do(b.ctx(t))
				if hit := b.Heal(); hit {
					broken, tried = true, tried+1
				} else if err != nil {
					t.Fatalf("%s: nothing was broken, and yet: %v", what, err)
				}
				if err != nil && !fault.KindOf(err).Retryable() {
					t.Fatalf("%s: %v is of kind %s", what, err, fault.KindOf(err))
				}
				b.repeat(t, what, act.do)
				if on := slices.Contains(b.Running(), s.Name); on != act.on {
					t.Fatalf("%s: afterwards it is on: %t", what, on)
				}
			}
			if n := b.Starts() - starts; n != 1 {
				t.Fatalf("call %d %s: it was started %d times", at, how, n)
			}
			if vms := b.vms(t); len(vms) != 0 {
				t.Fatalf("call %d %s: left %+v", at, how, vms)
			}
			if !broken {
				break
			}
		}
	}
	if tried < 3*4 {
		t.Fatalf("only %d calls were broken", tried)
	}
}

// repeat calls until it succeeds, as callers do: connections that died with the broken call may still be
// noticed one by one.
func (b *bench) repeat(t *testing.T, what string, do func(context.Context) error) {
	t.Helper()
	for tries := 1; ; tries++ {
		err := do(b.ctx(t))
		if err == nil {
			return
		}
		if !fault.KindOf(err).Retryable() || tries == 5 {
			t.Fatalf("%s: repeated %d times: %v", what, tries, err)
		}
	}
}
