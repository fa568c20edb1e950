package consul_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/consul"
	"rerack.dev/rerack/orchestrator/store/consul/consultest"
)

func options(owner string) store.LeaseOptions {
	return store.LeaseOptions{TTL: store.MinTTL, Delay: time.Second, Owner: owner}
}

func acquire(t *testing.T, s store.Store, owner string) store.Lease {
	t.Helper()
	l, err := s.Acquire(bounded(t), "gateway", options(owner))
	if err != nil {
		t.Fatalf("Acquire = %v", err)
	}
	return l
}

func waitLost(t *testing.T, l store.Lease, within time.Duration) {
	t.Helper()
	select {
	case <-l.Lost():
	case <-time.After(within):
		t.Fatalf("the lease was not lost within %s", within)
	}
}

// TestDestroyedSession is what an operator does to take a lease away.
func TestDestroyedSession(t *testing.T) {
	server := consultest.Start(t)
	admin := client(t, server.Address, "")
	s := open(t, consul.Config{Address: server.Address})
	l := acquire(t, s, "worker one")
	sessions, _, err := admin.Session().List(nil)
	if err != nil || len(sessions) != 1 {
		t.Fatalf("%d sessions, %v, want the one of the lease", len(sessions), err)
	}
	if _, err := admin.Session().Destroy(sessions[0].ID, nil); err != nil {
		t.Fatal(err)
	}
	waitLost(t, l, 3*time.Second) // by the watch of the locks, long before the next renewal
	_, err = s.Acquire(bounded(t), "gateway", options("worker two"))
	wantKind(t, "Acquire in the lock-delay", err, fault.Conflict)
	if err == nil || !strings.Contains(err.Error(), "lock-delay") || !strings.Contains(err.Error(), "worker one") {
		t.Errorf("Acquire = %v, want the lock-delay after worker one", err)
	}
	ctx := bounded(t)
	for {
		again, err := s.Acquire(ctx, "gateway", options("worker two"))
		if err == nil {
			if err := l.Release(ctx); err != nil {
				t.Errorf("Release of the lost lease = %v, want nil", err)
			}
			select {
			case <-again.Lost():
				t.Error("the Release of a lost lease took it from its new holder")
			default:
			}
			return
		}
		wantKind(t, "Acquire", err, fault.Conflict)
		if ctx.Err() != nil {
			t.Fatal("the lock-delay never ended")
		}
	}
}

// TestPartitionedHolderKnowsFirst cuts a holder off. It must give up before Consul lets another in.
func TestPartitionedHolderKnowsFirst(t *testing.T) {
	t.Parallel()
	server := consultest.Start(t)
	p := newProxy(t, server.Address)
	other := open(t, consul.Config{Address: server.Address})
	l := acquire(t, open(t, consul.Config{Address: p.address}), "worker one")
	cut := time.Now()
	p.set(func(p *proxy) { p.cut = true })
	waitLost(t, l, store.MinTTL+2*time.Second)
	t.Logf("the holder knew %s after the cut", time.Since(cut).Round(time.Millisecond))
	_, err := other.Acquire(bounded(t), "gateway", options("worker two"))
	wantKind(t, "Acquire when the holder has just given up", err, fault.Conflict)
	p.set(func(p *proxy) { p.cut = false })
	p.dropConnections()
}

// TestRenewedLeaseOutlivesItsTTL holds a lease for longer than Consul keeps a session that nobody renews.
func TestRenewedLeaseOutlivesItsTTL(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes 25 s")
	}
	server := consultest.Start(t)
	l := acquire(t, open(t, consul.Config{Address: server.Address}), "worker one")
	select {
	case <-l.Lost():
		t.Error("the lease was lost although Consul was there all the time")
	case <-time.After(2*store.MinTTL + 5*time.Second):
	}
}

func TestCloseHandsOver(t *testing.T) {
	server := consultest.Start(t)
	first, second := open(t, consul.Config{Address: server.Address}), open(t, consul.Config{Address: server.Address})
	acquire(t, first, "worker one")
	_, err := second.Acquire(bounded(t), "gateway", options("worker two"))
	wantKind(t, "Acquire of a lease that another process holds", err, fault.Conflict)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	acquire(t, second, "worker two") // with no lock-delay
	sessions, _, err := client(t, server.Address, "").Session().List(nil)
	if err != nil || len(sessions) != 1 {
		t.Errorf("%d sessions, %v, want none left of those that came to nothing", len(sessions), err)
	}
}

// TestForeignLock has a lock that no Rerack took.
func TestForeignLock(t *testing.T) {
	server := consultest.Start(t)
	admin := client(t, server.Address, "")
	session, _, err := admin.Session().CreateNoChecks(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ok, _, err := admin.KV().Acquire(&api.KVPair{Key: "rerack/lock/gateway", Value: []byte("no JSON"), Session: session}, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	s := open(t, consul.Config{Address: server.Address})
	_, err = s.Acquire(bounded(t), "gateway", options("worker one"))
	wantKind(t, "Acquire of a foreign lock", err, fault.Conflict)
}
