package tgt_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
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

const (
	vol1  = "iqn.2026-01.dev.rerack:vol-1"
	vol2  = "iqn.2026-01.dev.rerack:vol-2"
	hostA = "127.9.0.1"
	hostB = "127.9.0.2"
	hostC = "127.9.0.3"
	// One name for all: the identity moves, the address does not.
	initiator = "iqn.2026-01.dev.rerack:workload"
)

var account = iscsi.Account{User: "rerack", Secret: "a-secret-of-16-b"}

func TestContractSim(t *testing.T) {
	maskingtest.Run(t, func(t *testing.T) maskingtest.Rig { return newSimRig(t) })
}

func TestContractTgtd(t *testing.T) {
	maskingtest.Peer(t, "tgtd")
	maskingtest.Run(t, func(t *testing.T) maskingtest.Rig { return newTgtdRig(t) })
}

// host is an initiator on a machine.
type host struct {
	t       *testing.T
	s       *iscsi.Session
	arrived func() int // writes that the volume has seen; nil when it cannot be asked
}

func (h *host) Stop() { _ = h.s.Close() }

func (h *host) Write() bool {
	before := 0
	if h.arrived != nil {
		before = h.arrived()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := h.s.WriteBlock(ctx, 1, 3, make([]byte, iscsi.BlockSize))
	return err == nil || h.arrived != nil && h.arrived() != before
}

func logIn(t *testing.T, portal, from, volume string) (*iscsi.Session, bool) {
	t.Helper()
	s, err := iscsi.Login(t.Context(), maskingtest.Dial(t, portal, from), iscsi.Params{Initiator: initiator, Target: volume, Account: account})
	if err != nil && !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	return s, err == nil
}

// socketPath is short enough for a socket's name, which t.TempDir is not.
func socketPath(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, name)
}

// simRig is the world of a simulated tgtd.
type simRig struct {
	*tgtsim.Sim
	mu       sync.Mutex
	rules    map[string][]string
	sessions map[string][]string
	writes   map[string]int // by address
	watch    func()
}

func newSimRig(t *testing.T) *simRig {
	t.Helper()
	r := &simRig{rules: map[string][]string{}, sessions: map[string][]string{}, writes: map[string]int{}}
	sim, err := tgtsim.New(tgtsim.Config{Socket: socketPath(t, "ipc.0"), Backend: r})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	r.Sim = sim
	for _, v := range r.Volumes() {
		if err := sim.AddVolume(tgtsim.Volume{Target: v, Size: 1 << 20, Account: account}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *simRig) Volumes() [2]string { return [2]string{vol1, vol2} }
func (r *simRig) Hosts() [3]string   { return [3]string{hostA, hostB, hostC} }

func (r *simRig) Open(t *testing.T) driver.Array {
	t.Helper()
	return openDriver(t, tgt.Config{Socket: r.Socket()})
}

func openDriver(t *testing.T, cfg tgt.Config) *tgt.Array {
	t.Helper()
	cfg.LoginWindow = 10 * time.Millisecond
	a, err := tgt.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (r *simRig) Start(t *testing.T, from, volume string) (maskingtest.Holder, bool) {
	t.Helper()
	s, ok := logIn(t, r.Portal(), from, volume)
	return &host{t, s, func() int { r.mu.Lock(); defer r.mu.Unlock(); return r.writes[from] }}, ok
}

// Rules, Session and Wrote implement tgtsim.Backend.
func (r *simRig) Rules(volume string, rules []string) {
	r.mu.Lock()
	r.rules[volume] = rules
	r.mu.Unlock()
	r.told()
}

func (r *simRig) Session(volume string, by iscsi.Identity, open bool) {
	r.mu.Lock()
	list, addr := r.sessions[volume], by.Address.String()
	if open {
		list = append(slices.Clone(list), addr)
	} else if at := slices.Index(list, addr); at >= 0 {
		list = slices.Delete(slices.Clone(list), at, at+1)
	}
	r.sessions[volume] = list
	r.mu.Unlock()
	r.told()
}

func (r *simRig) Wrote(w tgtsim.Write) {
	r.mu.Lock()
	r.writes[w.By.Address.String()]++
	r.mu.Unlock()
}

func (r *simRig) told() {
	r.mu.Lock()
	watch := r.watch
	r.mu.Unlock()
	if watch != nil {
		watch()
	}
}

func (r *simRig) Watch(fn func()) { r.mu.Lock(); r.watch = fn; r.mu.Unlock() }

func (r *simRig) Holders(volume string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return holdersOf(r.rules[volume], r.sessions[volume])
}

// holdersOf leaves out the markers, which admit nobody.
func holdersOf(rules, sessions []string) []string {
	all := slices.Concat(rules, sessions)
	all = slices.DeleteFunc(all, func(s string) bool { return strings.HasPrefix(s, "240.") })
	slices.Sort(all)
	return slices.Compact(all)
}

func (r *simRig) Requests() int { return int(r.Counters()["request"]) }

func (r *simRig) Fail(pass int, how maskingtest.Failure) {
	r.SetFaults(func(f *tgtsim.Faults) {
		f.After = pass
		switch how {
		case maskingtest.Refused:
			f.Refuse = 1
		case maskingtest.Lost:
			f.DropReply = 1
		case maskingtest.Dropped:
			f.Drop = 1
		}
	})
}

func (r *simRig) Heal() (fired bool) {
	r.SetFaults(func(f *tgtsim.Faults) {
		fired = f.Refuse+f.Drop+f.DropReply == 0
		*f = tgtsim.Faults{}
	})
	return fired
}

func (r *simRig) Loosen(t *testing.T, volume string) {
	t.Helper()
	tid := map[string]int32{vol1: 1, vol2: 2}[volume]
	adm(t, r.Socket(), tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: tid, Params: "initiator-address=ALL"})
	adm(t, r.Socket(), tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: tid, Params: "initiator-name=" + initiator})
}

// adm is a person with tgtadm.
func adm(t *testing.T, socket string, req tgtadm.Request) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	text, err := tgtadm.Call(t.Context(), conn, req)
	if err != nil {
		t.Fatalf("%+v: %v", req, err)
	}
	return text
}

// tgtdRig is a real tgtd behind a relay that can make requests fail.
type tgtdRig struct {
	*maskingtest.Tgtd
	relay net.Listener

	mu       sync.Mutex
	requests int
	pass     int
	how      maskingtest.Failure // "" when none is due
	watch    func()
}

func newTgtdRig(t *testing.T) *tgtdRig {
	t.Helper()
	r := &tgtdRig{Tgtd: maskingtest.StartTgtd(t)}
	for i, v := range r.Volumes() {
		r.AddVolume(int32(i+1), v, 1<<20, account)
	}
	var err error
	if r.relay, err = net.Listen("unix", socketPath(t, "relay")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := r.relay.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer conn.Close(); r.pass1(conn) })
		}
	})
	t.Cleanup(func() { _ = r.relay.Close(); wg.Wait() })
	return r
}

// pass1 relays one request.
func (r *tgtdRig) pass1(conn net.Conn) {
	req, _, err := tgtadm.ReadRequest(conn)
	if err != nil {
		return
	}
	r.mu.Lock()
	r.requests++
	how := maskingtest.Failure("")
	if r.how != "" {
		if r.pass == 0 {
			how, r.how = r.how, ""
		}
		r.pass--
	}
	watch := r.watch
	r.mu.Unlock()
	switch how {
	case maskingtest.Refused:
		_ = tgtadm.WriteAnswer(conn, tgtadm.UnknownError, "")
		return
	case maskingtest.Dropped:
		return
	}
	real, err := net.Dial("unix", r.Socket)
	if err != nil {
		return
	}
	defer real.Close()
	raw, err := req.Encode()
	if err != nil {
		return
	}
	if _, err := real.Write(raw); err != nil {
		return
	}
	answer, _ := io.ReadAll(real)
	if watch != nil {
		watch()
	}
	if how != maskingtest.Lost {
		_, _ = conn.Write(answer)
	}
}

func (r *tgtdRig) Volumes() [2]string { return [2]string{vol1, vol2} }
func (r *tgtdRig) Hosts() [3]string   { return [3]string{hostA, hostB, hostC} }

func (r *tgtdRig) Open(t *testing.T) driver.Array {
	t.Helper()
	return openDriver(t, tgt.Config{Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.relay.Addr().String())
	}})
}

func (r *tgtdRig) Start(t *testing.T, from, volume string) (maskingtest.Holder, bool) {
	t.Helper()
	s, ok := logIn(t, r.Portal, from, volume)
	return &host{t, s, nil}, ok
}

// Holders reads tgtadm's text with nothing of the driver.
func (r *tgtdRig) Holders(volume string) []string {
	tid := map[string]int32{vol1: 1, vol2: 2}[volume]
	_, rest, _ := strings.Cut(r.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Show, TID: -1}), ": "+volume+"\n")
	_, rest, _ = strings.Cut(rest, "ACL information:")
	rest, _, _ = strings.Cut(rest, "\nTarget ")
	var sessions []string
	for line := range strings.Lines(r.Must(tgtadm.Request{Mode: tgtadm.Connection, Op: tgtadm.Show, TID: tid})) {
		if _, addr, ok := strings.Cut(line, "IP Address: "); ok {
			sessions = append(sessions, strings.TrimSpace(addr))
		}
	}
	return holdersOf(strings.Fields(rest), sessions)
}

func (r *tgtdRig) Watch(fn func()) { r.mu.Lock(); r.watch = fn; r.mu.Unlock() }
func (r *tgtdRig) Requests() int   { r.mu.Lock(); defer r.mu.Unlock(); return r.requests }

func (r *tgtdRig) Fail(pass int, how maskingtest.Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pass, r.how = pass, how
}

func (r *tgtdRig) Heal() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	fired := r.how == ""
	r.how = ""
	return fired
}

func (r *tgtdRig) Loosen(t *testing.T, volume string) {
	t.Helper()
	tid := map[string]int32{vol1: 1, vol2: 2}[volume]
	r.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: tid, Params: "initiator-address=ALL"})
	r.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: tid, Params: "initiator-name=" + initiator})
}
