package tgt_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/tgt"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
	"rerack.dev/rerack/sanzoning/tgtsim"
)

func set(epoch uint64, hosts ...string) driver.MaskChange {
	return driver.MaskChange{Owner: "run/1", Masks: []driver.Mask{{Volume: vol1, Initiators: hosts, Epoch: epoch}}}
}

// slowConn stops an initiator in the middle of its login.
type slowConn struct {
	net.Conn
	mu      sync.Mutex
	writes  int
	stopped chan struct{}
	goOn    chan struct{}
}

func (c *slowConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.writes++
	n := c.writes
	c.mu.Unlock()
	if n == 2 {
		close(c.stopped)
		<-c.goOn
	}
	return c.Conn.Write(b)
}

// TestLoginUnderWay: a login that began before the revocation, and ends after it, gets a session; it must
// be gone when Apply returns. Both tgtd and the simulator look at the rules only when a login begins.
func TestLoginUnderWay(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) (maskingtest.Rig, string, string){
		"simulator": func(t *testing.T) (maskingtest.Rig, string, string) {
			r := newSimRig(t)
			return r, r.Socket(), r.Portal()
		},
		"tgtd": func(t *testing.T) (maskingtest.Rig, string, string) {
			r := newTgtdRig(t)
			return r, r.Socket, r.Portal
		},
	} {
		t.Run(name, func(t *testing.T) {
			rig, socket, portal := make(t)
			unbound := new(sync.Once)
			slow := &slowConn{stopped: newChan(), goOn: newChan()}
			// The login goes on once the first rule has been withdrawn.
			a, err := tgt.New(tgt.Config{LoginWindow: time.Second, Dial: func(ctx context.Context) (net.Conn, error) {
				var d net.Dialer
				conn, err := d.DialContext(ctx, "unix", socket)
				return &afterUnbind{Conn: conn, do: func() { unbound.Do(func() { close(slow.goOn) }) }}, err
			}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Apply(t.Context(), set(1, hostA)); err != nil {
				t.Fatal(err)
			}
			slow.Conn = maskingtest.Dial(t, portal, hostA)
			late := newResult()
			go func() {
				s, err := iscsi.Login(context.Background(), slow, iscsi.Params{Initiator: initiator, Target: vol1, Account: account})
				late <- result{s, err}
			}()
			<-slow.stopped
			if _, err := a.Apply(t.Context(), set(2, hostB)); err != nil {
				t.Fatal(err)
			}
			if got := rig.Holders(vol1); !slices.Equal(got, []string{hostB}) {
				t.Fatalf("holders %v", got)
			}
			res := <-late
			if res.err != nil {
				return // put out before it heard that it was in
			}
			defer res.s.Close()
			if (&host{t, res.s, nil}).Write() {
				t.Fatal("a login that began before the fence wrote after it")
			}
		})
	}
}

type result struct {
	s   *iscsi.Session
	err error
}

func newResult() chan result { return make(chan result, 1) }
func newChan() chan struct{} { return make(chan struct{}) }

// afterUnbind calls do when an unbind has been answered.
type afterUnbind struct {
	net.Conn
	unbind bool
	do     func()
}

func (c *afterUnbind) Write(b []byte) (int, error) {
	req, _, err := tgtadm.ReadRequest(strings.NewReader(string(b)))
	c.unbind = err == nil && req.Op == tgtadm.Unbind
	return c.Conn.Write(b)
}

func (c *afterUnbind) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.unbind {
		c.do()
	}
	return n, err
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault func(*tgtsim.Faults)
		kind  fault.Kind
	}{
		"sessions that do not end": {func(f *tgtsim.Faults) { f.KeepSessions = true }, fault.Unverified},
		"hangs":                    {func(f *tgtsim.Faults) { f.Hang = true }, fault.Timeout},
		"too slow":                 {func(f *tgtsim.Faults) { f.Delay = time.Minute }, fault.Timeout},
		"dead":                     {func(f *tgtsim.Faults) { f.Dead = true }, fault.Unreachable},
		"forgets the marker":       {func(f *tgtsim.Faults) { f.Forget = 1 }, fault.Unverified},
		"forgets everything":       {func(f *tgtsim.Faults) { f.Forget = 1000 }, fault.Unverified},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSimRig(t)
			patient := openDriver(t, tgt.Config{Socket: r.Socket()})
			hasty := tgt.Config{Socket: r.Socket(), DrainTimeout: 50 * time.Millisecond}
			if c.kind == fault.Timeout {
				hasty.CallTimeout = 50 * time.Millisecond
			}
			if _, err := patient.Apply(t.Context(), set(1, hostA)); err != nil {
				t.Fatal(err)
			}
			s, ok := logIn(t, r.Portal(), hostA, vol1)
			if !ok {
				t.Fatal("not let in")
			}
			defer s.Close()
			r.SetFaults(c.fault)
			if _, err := openDriver(t, hasty).Apply(t.Context(), set(2, hostB)); !fault.Is(err, c.kind) {
				t.Fatalf("got %v, want kind %v", err, c.kind)
			}
			if got := r.Holders(vol1); slices.Contains(got, hostB) && slices.Contains(got, hostA) {
				t.Fatalf("two holders: %v", got)
			}
			r.SetFaults(func(f *tgtsim.Faults) { *f = tgtsim.Faults{} })
			if _, err := patient.Apply(t.Context(), set(2, hostB)); err != nil {
				t.Fatalf("healed: %v", err)
			}
			if got := r.Holders(vol1); !slices.Equal(got, []string{hostB}) {
				t.Fatalf("holders %v", got)
			}
		})
	}
}

// TestNameRuleDoesNotFence: a name that is bound beside the addresses lets a masked machine in, because
// tgt takes either. On a volume of ours it is withdrawn.
func TestNameRuleDoesNotFence(t *testing.T) {
	r := newSimRig(t)
	a := openDriver(t, tgt.Config{Socket: r.Socket()})
	if _, err := a.Apply(t.Context(), set(1, hostA)); err != nil {
		t.Fatal(err)
	}
	r.Loosen(t, vol1)
	s, ok := logIn(t, r.Portal(), hostC, vol1)
	if !ok {
		t.Fatal("the quirk is gone: neither the name nor ALL let a stranger in")
	}
	defer s.Close()
	masks, err := a.Masks(t.Context())
	if err != nil || !slices.Equal(masks[0].Initiators, []string{hostA, "ALL", initiator}) {
		t.Fatalf("masks %+v, %v", masks, err)
	}
	if _, err := a.Apply(t.Context(), set(2, hostB)); err != nil {
		t.Fatal(err)
	}
	if got := r.Holders(vol1); !slices.Equal(got, []string{hostB}) {
		t.Fatalf("holders %v", got)
	}
}

func TestOwnedTargetIsCleaned(t *testing.T) {
	r := newSimRig(t)
	r.Loosen(t, vol1)
	a := openDriver(t, tgt.Config{Socket: r.Socket(), Owned: []string{vol1}})
	if _, err := a.Apply(t.Context(), set(1, hostA)); err != nil {
		t.Fatal(err)
	}
	if got := r.Holders(vol1); !slices.Equal(got, []string{hostA}) {
		t.Fatalf("holders %v", got)
	}
}

func TestEpochTooLarge(t *testing.T) {
	r := newSimRig(t)
	a := openDriver(t, tgt.Config{Socket: r.Socket()})
	if _, err := a.Apply(t.Context(), set(tgt.MaxEpoch+1, hostA)); !fault.Is(err, fault.Invalid) {
		t.Fatalf("got %v", err)
	}
	if _, err := a.Apply(t.Context(), set(tgt.MaxEpoch, hostA)); err != nil {
		t.Fatal(err)
	}
}

// TestOvertaken: a newer change that comes between the check and the grant wins, and the older one takes
// its grant back.
func TestOvertaken(t *testing.T) {
	r := newSimRig(t)
	newer := openDriver(t, tgt.Config{Socket: r.Socket()})
	var once sync.Once
	older := openDriver(t, tgt.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", r.Socket())
		return &beforeGrant{conn, func() {
			once.Do(func() {
				if _, err := newer.Apply(t.Context(), set(9, hostB)); err != nil {
					t.Errorf("newer: %v", err)
				}
			})
		}}, err
	}})
	if _, err := older.Apply(t.Context(), set(8, hostA)); !fault.Is(err, fault.Stale) {
		t.Fatalf("got %v", err)
	}
	if got := r.Holders(vol1); !slices.Equal(got, []string{hostB}) {
		t.Fatalf("holders %v", got)
	}
}

type beforeGrant struct {
	net.Conn
	do func()
}

func (c *beforeGrant) Write(b []byte) (int, error) {
	if req, _, err := tgtadm.ReadRequest(strings.NewReader(string(b))); err == nil && req.Op == tgtadm.Bind && strings.HasSuffix(req.Params, hostA) {
		c.do()
	}
	return c.Conn.Write(b)
}

// TestRestart: a tgtd without a start-up file forgets masks and sessions alike, which fences.
func TestRestart(t *testing.T) {
	r := newSimRig(t)
	a := openDriver(t, tgt.Config{Socket: r.Socket()})
	if _, err := a.Apply(t.Context(), set(1, hostA)); err != nil {
		t.Fatal(err)
	}
	s, ok := logIn(t, r.Portal(), hostA, vol1)
	if !ok {
		t.Fatal("not let in")
	}
	r.Restart()
	if (&host{t, s, nil}).Write() {
		t.Fatal("a session outlived the daemon")
	}
	if masks, err := a.Masks(t.Context()); err != nil || len(masks) != 0 {
		t.Fatalf("masks %+v, %v", masks, err)
	}
	if _, err := a.Apply(t.Context(), set(2, hostA)); !fault.Is(err, fault.NotFound) {
		t.Fatalf("got %v", err)
	}
}
