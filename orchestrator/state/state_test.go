package state_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/policies"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB) store.Store {
	t.Helper()
	s, err := embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

func put(t testing.TB, s store.Store, key string, v any) {
	t.Helper()
	b, err := state.Encode(v)
	must(t, err)
	must(t, s.Txn(t.Context(), store.Put(key, b)))
}

func load[T any](t testing.TB, s store.Store, key string) T {
	t.Helper()
	v, _, err := state.Load[T](t.Context(), s, key)
	must(t, err)
	return v
}

const racers = 100

// race runs f in many goroutines at once and counts those without an error; the others must fail with
// one of kinds.
func race(t *testing.T, f func(i int) error, kinds ...fault.Kind) int {
	t.Helper()
	var wg sync.WaitGroup
	var won atomic.Int32
	start := make(chan struct{})
	for i := range racers {
		wg.Go(func() {
			<-start
			err := f(i)
			if err == nil {
				won.Add(1)
				return
			}
			for _, k := range kinds {
				if fault.Is(err, k) {
					return
				}
			}
			t.Error(err)
		})
	}
	close(start)
	wg.Wait()
	return int(won.Load())
}

func TestUpdateLosesNothing(t *testing.T) {
	s := open(t)
	if n := race(t, func(int) error {
		_, err := state.Update(t.Context(), s, "counter", func(n *int) error { *n++; return nil })
		return err
	}); n != racers {
		t.Fatalf("%d of %d writers finished", n, racers)
	}
	if n := load[int](t, s, "counter"); n != racers {
		t.Errorf("%d of %d updates are left", n, racers)
	}
}

func TestUpdateWritesOnlyChanges(t *testing.T) {
	s := open(t)
	put(t, s, "k", 7)
	before, err := s.Get(t.Context(), "k")
	must(t, err)
	_, err = state.Update(t.Context(), s, "k", func(*int) error { return nil })
	must(t, err)
	refused := fault.New(fault.Unsafe, "no")
	if _, err := state.Update(t.Context(), s, "k", func(n *int) error { *n = 9; return refused }); err != refused {
		t.Errorf("the change's own error came back as %v", err)
	}
	after, err := s.Get(t.Context(), "k")
	must(t, err)
	if after.Revision != before.Revision {
		t.Error("an unchanged record was written")
	}
	must(t, s.Txn(t.Context(), store.Put("bad", []byte("{"))))
	if _, err := state.Update(t.Context(), s, "bad", func(*int) error { return nil }); !fault.Is(err, fault.Internal) {
		t.Errorf("a damaged record: %v", err)
	}
	if e, err := s.Get(t.Context(), "bad"); err != nil || string(e.Value) != "{" {
		t.Errorf("a damaged record was written over: %v", err)
	}
}

// cutStore commits and then loses the answer, once.
type cutStore struct {
	store.Store
	cut atomic.Bool
}

func (c *cutStore) Txn(ctx context.Context, ops ...store.Op) error {
	err := c.Store.Txn(ctx, ops...)
	if err == nil && c.cut.CompareAndSwap(true, false) {
		return fault.New(fault.Timeout, "the answer is lost")
	}
	return err
}

func TestEpochsAreGivenOnce(t *testing.T) {
	s := open(t)
	if e, err := state.Epoch(t.Context(), s); err != nil || e != 1 {
		t.Fatalf("before the first: %d, %v", e, err)
	}
	given := make([]uint64, racers)
	const runs = 10 // each asked for by ten at once
	if n := race(t, func(i int) (err error) {
		given[i], err = state.NextEpoch(t.Context(), s, fmt.Sprintf("run-%d", i%runs))
		return err
	}); n != racers {
		t.Fatalf("%d of %d got one", n, racers)
	}
	seen := map[uint64]bool{}
	for i, e := range given {
		if e != given[i%runs] {
			t.Errorf("run %d has epochs %d and %d", i%runs, e, given[i%runs])
		}
		seen[e] = true
	}
	for e := uint64(2); e < 2+runs; e++ {
		if !seen[e] {
			t.Errorf("epoch %d was given to nobody: %v", e, seen)
		}
	}
	if e, err := state.Epoch(t.Context(), s); err != nil || e != 1+runs {
		t.Errorf("the newest is %d, %v", e, err)
	}

	c := &cutStore{Store: s}
	c.cut.Store(true)
	if _, err := state.NextEpoch(t.Context(), c, "lost"); !fault.Is(err, fault.Timeout) {
		t.Fatalf("got %v", err)
	}
	a, err := state.NextEpoch(t.Context(), c, "lost")
	must(t, err)
	b, err := state.NextEpoch(t.Context(), c, "later")
	must(t, err)
	if a != 2+runs || b != a+1 {
		t.Errorf("after a lost answer: %d, then %d", a, b)
	}
}

func TestTheNewestEpochTakesTheLease(t *testing.T) {
	s := open(t)
	old := policies.Where{Machine: "m1"}
	put(t, s, state.LeasesAt+"w", state.Lease{Workload: "w", Epoch: 1, Holder: old, Healthy: true})
	// Whoever has the newest epoch must get it; the others may have had it on the way.
	won := make([]bool, racers)
	race(t, func(i int) error {
		former, err := state.TakeLease(t.Context(), s, "w", fmt.Sprintf("run-%d", i), uint64(i+2), now)
		won[i] = err == nil
		if err == nil && former != old {
			t.Errorf("run %d was told that %v had it", i, former)
		}
		return err
	}, fault.Stale)
	l := load[state.Lease](t, s, state.LeasesAt+"w")
	if !won[racers-1] || l.Epoch != racers+1 || l.Run != fmt.Sprintf("run-%d", racers-1) || l.Former != old || l.Holder != (policies.Where{}) || l.Healthy {
		t.Errorf("lease %+v", l)
	}
}

func TestOneRunTakesALeaseOfOneEpoch(t *testing.T) {
	s := open(t)
	if n := race(t, func(i int) error {
		_, err := state.TakeLease(t.Context(), s, "w", fmt.Sprintf("run-%d", i), 5, now)
		return err
	}, fault.Stale); n != 1 {
		t.Errorf("%d runs have the lease", n)
	}
}

func TestALeaseFromHandToHand(t *testing.T) {
	s := open(t)
	a, b := policies.Where{Machine: "a"}, policies.Where{Machine: "b", VM: true}
	ctx := t.Context()
	take := func(run string, epoch uint64) policies.Where {
		t.Helper()
		former, err := state.TakeLease(ctx, s, "w", run, epoch, now)
		must(t, err)
		return former
	}
	refuse := func(err error, k fault.Kind) {
		t.Helper()
		if !fault.Is(err, k) {
			t.Errorf("got %v, want %s", err, k)
		}
	}
	take("r2", 2)
	must(t, state.GrantLease(ctx, s, "w", "r2", 2, a, now))
	must(t, state.GrantLease(ctx, s, "w", "r2", 2, a, now))
	refuse(state.GrantLease(ctx, s, "w", "r2", 2, b, now), fault.Unsafe)
	if f := take("r3", 3); f != a {
		t.Errorf("r3 was told of %v", f)
	}
	if f := take("r3", 3); f != a { // the answer was lost: the repetition says the same
		t.Errorf("r3 was told of %v when it asked again", f)
	}
	for _, err := range []error{state.GrantLease(ctx, s, "w", "r2", 2, a, now), state.WithdrawLease(ctx, s, "w", "r2", 2, now), state.CutOff(ctx, s, "w", "r2", 2)} {
		refuse(err, fault.Stale)
	}
	refuse(state.GrantLease(ctx, s, "w", "r3", 3, b, now), fault.Unsafe) // a is not cut off
	must(t, state.CutOff(ctx, s, "w", "r3", 3))
	must(t, state.GrantLease(ctx, s, "w", "r3", 3, b, now))
	must(t, state.WithdrawLease(ctx, s, "w", "r3", 3, now))
	must(t, state.WithdrawLease(ctx, s, "w", "r3", 3, now))
	refuse(state.GrantLease(ctx, s, "w", "r3", 3, a, now), fault.Unsafe)
	if f := take("r4", 4); f != b { // two runs later it is still b that is not cut off
		t.Errorf("r4 was told of %v", f)
	}
	if _, err := state.TakeLease(ctx, s, "w", "r3", 3, now); !fault.Is(err, fault.Stale) {
		t.Errorf("an older run took it: %v", err)
	}
}

func TestOneRunClaimsAMachine(t *testing.T) {
	s := open(t)
	if n := race(t, func(i int) error {
		return state.ClaimMachine(t.Context(), s, "m", state.Claim{Run: fmt.Sprintf("run-%d", i), Epoch: uint64(i + 2), For: "w", Since: now})
	}, fault.Conflict); n != 1 {
		t.Errorf("%d runs have claimed the machine", n)
	}
	c := load[state.Machine](t, s, state.MachinesAt+"m").Claim
	if err := state.ClaimMachine(t.Context(), s, "m", *c); err != nil {
		t.Errorf("the same claim again: %v", err)
	}
	again := *c
	again.Since = now.Add(time.Hour)
	must(t, state.ClaimMachine(t.Context(), s, "m", again))
	if got := load[state.Machine](t, s, state.MachinesAt+"m").Claim; !got.Since.Equal(now) {
		t.Error("a repeated claim is dated anew")
	}
	again.For = "other"
	must(t, state.ClaimMachine(t.Context(), s, "m", again))
	for name, m := range map[string]state.Machine{
		"fenced":  {Machine: "x", Fence: &state.FenceState{Run: "r"}},
		"suspect": {Machine: "x", Suspect: &state.Suspect{Run: "r", Reason: "no boot"}},
	} {
		put(t, s, state.MachinesAt+"x", m)
		if err := state.ClaimMachine(t.Context(), s, "x", *c); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A fence and a claim at once: whatever the order, a fenced machine is never claimed anew.
func TestAFenceBeatsAClaim(t *testing.T) {
	for i := range 20 {
		s := open(t)
		key := fmt.Sprintf("m%d", i)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := state.Update(t.Context(), s, state.MachinesAt+key, func(m *state.Machine) error {
				m.Machine, m.Claim, m.Fence = key, nil, &state.FenceState{Run: "r2", Epoch: 2}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := state.ClaimMachine(t.Context(), s, key, state.Claim{Run: "r1", Epoch: 1, For: "w"}); err != nil && !fault.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
		wg.Wait()
		if m := load[state.Machine](t, s, state.MachinesAt+key); m.Fence == nil || m.Claim != nil {
			t.Fatalf("machine %+v", m)
		}
	}
}

func TestRunStates(t *testing.T) {
	for s, ended := range map[state.RunState]bool{"": false, state.RunRunning: false, state.RunWaiting: false, state.RunDone: true,
		state.RunPartial: true, state.RunSuspect: true, state.RunFailed: true, state.RunCancelled: true} {
		if s.Ended() != ended {
			t.Errorf("%q ended: %t", s, s.Ended())
		}
	}
}

func TestListNamesTheDamagedRecord(t *testing.T) {
	s := open(t)
	put(t, s, state.RunsAt+"a", state.Run{ID: "a"})
	runs, err := state.List[state.Run](t.Context(), s, state.RunsAt)
	if err != nil || len(runs) != 1 || runs[0].ID != "a" {
		t.Fatalf("%v %v", runs, err)
	}
	must(t, s.Txn(t.Context(), store.Put(state.RunsAt+"b", []byte("x"))))
	if _, err := state.List[state.Run](t.Context(), s, state.RunsAt); err == nil || !fault.Is(err, fault.Internal) {
		t.Errorf("got %v", err)
	}
}
