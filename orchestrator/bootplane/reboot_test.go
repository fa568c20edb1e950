package bootplane_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/pxe/pxetest"
)

// booted is a machine whose workload has phoned home and is healthy.
func booted(t *testing.T, s store.Store, w *world) state.Boot {
	t.Helper()
	b := record(1, 4)
	putBoot(t, s, b)
	put(t, s, state.LeasesAt+"w1", lease(b))
	must(t, w.Reached(t.Context(), milestone(b, pxe.KindPhoneHome)))
	return load[state.Boot](t, s, state.BootsAt+"m1")
}

func milestone(b state.Boot, k pxe.Kind) pxe.Milestone {
	boot := b.Workflow
	if b.Reboots > 0 {
		boot = fmt.Sprintf("%s/again-%d", b.Workflow, b.Reboots)
	}
	return pxe.Milestone{Machine: b.Name, Run: boot, Epoch: b.Epoch, Kind: k, At: time.Now(), Nonce: fmt.Sprintf("nonce-%d", b.Reboots)}
}

func TestAMachineThatResetsItselfBootsAgain(t *testing.T) {
	s := openStore(t)
	w := newPlane(t, s)
	b := booted(t, s, w)
	w.clock.advance(time.Hour)
	must(t, w.Reached(t.Context(), milestone(b, pxe.KindReboot)))
	again := load[state.Boot](t, s, state.BootsAt+"m1")
	if again.Reboots != 1 || again.Nonce != "" || !again.Expires.After(w.clock.Now()) || again.Epoch != b.Epoch || again.Run != b.Run {
		t.Fatalf("record %+v", again)
	}
	// The boot before is over, also for who holds its token.
	for _, k := range []pxe.Kind{pxe.KindReboot, pxe.KindPhoneHome, pxe.KindHealthy, pxe.KindFailed} {
		if err := w.Reached(t.Context(), milestone(b, k)); !fault.Is(err, fault.Stale) {
			t.Errorf("%s of the boot before: %v", k, err)
		}
	}
	// While it boots nothing is given again.
	must(t, w.Reached(t.Context(), milestone(again, pxe.KindReboot)))
	if now := load[state.Boot](t, s, state.BootsAt+"m1"); now.Reboots != 1 {
		t.Error("a boot under way was replaced")
	}
	must(t, w.Reached(t.Context(), milestone(again, pxe.KindPhoneHome)))
	must(t, w.Reached(t.Context(), milestone(again, pxe.KindHealthy)))
}

func TestAResetMachineBootsAgainOnlyAsTheHolder(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, s store.Store, b *state.Boot)
		want   error
	}{
		{"nobody holds the lease", func(t *testing.T, s store.Store, b *state.Boot) {
			l := lease(*b)
			l.Holder, l.Former = policies.Where{}, here
			put(t, s, state.LeasesAt+"w1", l)
		}, nil},
		{"another machine holds it", func(t *testing.T, s store.Store, b *state.Boot) {
			l := lease(*b)
			l.Holder.Machine = "m2"
			put(t, s, state.LeasesAt+"w1", l)
		}, nil},
		{"a VM on the machine holds it", func(t *testing.T, s store.Store, b *state.Boot) {
			l := lease(*b)
			l.Holder.VM = true
			put(t, s, state.LeasesAt+"w1", l)
		}, nil},
		{"a newer epoch", func(t *testing.T, s store.Store, b *state.Boot) {
			l := lease(*b)
			l.Epoch++
			put(t, s, state.LeasesAt+"w1", l)
		}, nil},
		{"another run", func(t *testing.T, s store.Store, b *state.Boot) {
			l := lease(*b)
			l.Run = "rack-b-1"
			put(t, s, state.LeasesAt+"w1", l)
		}, nil},
		{"no lease", func(t *testing.T, s store.Store, _ *state.Boot) {
			must(t, s.Txn(t.Context(), store.Delete(state.LeasesAt+"w1")))
		}, nil},
		{"not healthy yet", func(t *testing.T, s store.Store, b *state.Boot) {
			l := lease(*b)
			l.Healthy = false
			put(t, s, state.LeasesAt+"w1", l)
		}, fault.New(fault.Busy, "")},
		{"being fenced", func(t *testing.T, s store.Store, _ *state.Boot) {
			put(t, s, state.MachinesAt+"m1", state.Machine{Machine: "m1", Fence: &state.FenceState{Run: "rack-a-2"}})
		}, fault.New(fault.Unsafe, "")},
		{"claimed by another run", func(t *testing.T, s store.Store, _ *state.Boot) {
			put(t, s, state.MachinesAt+"m1", state.Machine{Machine: "m1", Claim: &state.Claim{Run: "rack-b-1"}})
		}, fault.New(fault.Unsafe, "")},
		{"a host", func(t *testing.T, s store.Store, b *state.Boot) {
			b.Workload = ""
			putBoot(t, s, *b)
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			w := newPlane(t, s)
			b := booted(t, s, w)
			tt.change(t, s, &b)
			err := w.Reached(t.Context(), milestone(b, pxe.KindReboot))
			if (err == nil) != (tt.want == nil) || tt.want != nil && !fault.Is(err, fault.KindOf(tt.want)) {
				t.Errorf("got %v", err)
			}
			if now := load[state.Boot](t, s, state.BootsAt+"m1"); now.Reboots != 0 || now.Nonce != b.Nonce {
				t.Errorf("it was booted again: %+v", now)
			}
		})
	}
	t.Run("its own run's claim", func(t *testing.T) {
		s := openStore(t)
		w := newPlane(t, s)
		b := booted(t, s, w)
		put(t, s, state.MachinesAt+"m1", state.Machine{Machine: "m1", Claim: &state.Claim{Run: b.Run}})
		must(t, w.Reached(t.Context(), milestone(b, pxe.KindReboot)))
		if now := load[state.Boot](t, s, state.BootsAt+"m1"); now.Reboots != 1 {
			t.Error("not booted again")
		}
	})
}

// raceStore takes the lease over between the check and the write.
type raceStore struct {
	store.Store
	before func()
}

func (r *raceStore) Txn(ctx context.Context, ops ...store.Op) error {
	if len(ops) > 1 && r.before != nil {
		r.before()
	}
	return r.Store.Txn(ctx, ops...)
}

func TestATakeoverBeatsAReboot(t *testing.T) {
	for name, overtake := range map[string]func(t *testing.T, s store.Store, b state.Boot){
		"lease": func(t *testing.T, s store.Store, b state.Boot) {
			_, err := state.TakeLease(t.Context(), s, b.Workload, "rack-a-2", 9, time.Now())
			must(t, err)
		},
		"fence": func(t *testing.T, s store.Store, b state.Boot) {
			put(t, s, state.MachinesAt+b.Machine, state.Machine{Machine: b.Machine, Fence: &state.FenceState{Run: "rack-a-2"}})
		},
		"record": func(t *testing.T, s store.Store, b state.Boot) {
			must(t, s.Txn(t.Context(), store.Delete(state.BootsAt+b.Name)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &raceStore{Store: openStore(t)}
			w := newPlane(t, r)
			b := booted(t, r, w)
			r.before = func() { overtake(t, r.Store, b) }
			if err := w.Reached(t.Context(), milestone(b, pxe.KindReboot)); !fault.Is(err, fault.Conflict) {
				t.Errorf("got %v", err)
			}
			if now := load[state.Boot](t, r.Store, state.BootsAt+"m1"); now.Reboots != 0 {
				t.Error("it was booted again")
			}
		})
	}
}

func TestABootLoopEnds(t *testing.T) {
	s := openStore(t)
	w := newPlane(t, s)
	b := booted(t, s, w)
	loop := func(every time.Duration, times int) {
		for range times {
			b = load[state.Boot](t, s, state.BootsAt+"m1")
			if b.Nonce == "" {
				m := milestone(b, pxe.KindPhoneHome)
				m.At = w.clock.Now()
				must(t, w.Reached(t.Context(), m))
				b = load[state.Boot](t, s, state.BootsAt+"m1")
			}
			w.clock.advance(every)
			must(t, w.Reached(t.Context(), milestone(b, pxe.KindReboot)))
		}
		b = load[state.Boot](t, s, state.BootsAt+"m1")
	}
	loop(24*time.Hour, 20) // once a day is no loop
	if b.Reboots != 20 || b.Quick != 0 {
		t.Fatalf("%d reboots, %d quick", b.Reboots, b.Quick)
	}
	loop(time.Minute, 10)
	if b.Reboots != 25 || b.Nonce == "" {
		t.Errorf("%d reboots, nonce %q: a loop goes on", b.Reboots, b.Nonce)
	}
}

// A diskless machine on the real boot servers: it boots, is reset, boots again with another token, and
// is met with silence once its workload was taken over.
func TestADisklessMachineComesBackByItself(t *testing.T) {
	s := openStore(t)
	w := newPlane(t, s)
	w.Now = time.Now
	site := pxetest.Start(t, nil, func(c *bootserver.Config) {
		w.Table, c.Sink = c.Table, w
	})
	w.follow(t)
	b := record(1, 4)
	b.Kernel, b.Initrds = string(site.Kernel), []string{string(site.Initrd)}
	putBoot(t, s, b)
	eventually(t, "the record is served", func() bool { return w.epochOf(1) == 4 })

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	boot := func(tries int) bootclient.Outcome {
		c := site.Client(1, pxe.ArchBIOS)
		c.DHCPTries, c.DHCPTimeout = tries, 100*time.Millisecond
		out, err := bootclient.Run(ctx, c)
		must(t, err)
		return out
	}
	home := func(url string) {
		t.Helper()
		nonce := bootclient.NewNonce()
		must(t, bootclient.Report(ctx, site.HTTP, url, httpboot.Report{Nonce: nonce}))
		must(t, bootclient.Report(ctx, site.HTTP, url, httpboot.Report{Nonce: nonce, Milestone: "healthy"}))
	}
	first := boot(4)
	if first.End != bootclient.EndKernel {
		t.Fatalf("first boot: %+v", first)
	}
	home(first.PhoneHome)
	put(t, s, state.LeasesAt+"w1", lease(b))

	var second bootclient.Outcome
	eventually(t, "it boots again", func() bool { second = boot(3); return second.End == bootclient.EndKernel })
	if second.PhoneHome == first.PhoneHome {
		t.Error("the token was given twice")
	}
	if err := bootclient.Report(ctx, site.HTTP, first.PhoneHome, httpboot.Report{Nonce: bootclient.NewNonce()}); err == nil {
		t.Error("the first token still works")
	}
	home(second.PhoneHome)

	_, err := state.TakeLease(ctx, s, "w1", "rack-a-2", 5, time.Now())
	must(t, err)
	if out := boot(3); out.End != bootclient.EndLocal {
		t.Errorf("a machine that lost its workload booted it: %+v", out)
	}
}
