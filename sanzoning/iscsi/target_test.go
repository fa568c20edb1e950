package iscsi_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

const (
	host   = "iqn.2026-01.dev.rerack:host-a"
	volume = "iqn.2026-01.dev.rerack:vol-1"
	from   = "127.9.0.1"
)

var secret = iscsi.Account{User: "rerack", Secret: "a-secret-of-16-b"}

// disk is a device that remembers who wrote.
type disk struct {
	mu     sync.Mutex
	data   []byte
	by     []iscsi.Identity
	gate   chan struct{} // when not nil, each write waits for it
	inside chan struct{}
}

func (d *disk) Blocks() uint64 { return uint64(len(d.data)) / iscsi.BlockSize }
func (d *disk) Serial() string { return "disk-1" }

func (d *disk) ReadAt(_ iscsi.Identity, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return nil
}

func (d *disk) WriteAt(by iscsi.Identity, p []byte, off int64) error {
	if d.gate != nil {
		d.inside <- struct{}{}
		<-d.gate
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.by = append(d.by, by)
	copy(d.data[off:], p)
	return nil
}

func (d *disk) writers() []iscsi.Identity {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.by)
}

// gate admits one address.
type gate struct {
	grant   iscsi.Grant
	allowed netip.Addr
	mu      sync.Mutex
	live    int
}

func (g *gate) Admit(by iscsi.Identity, target string) (iscsi.Grant, error) {
	if target != volume || by.Address != g.allowed {
		return iscsi.Grant{}, fault.New(fault.NotFound, "masked")
	}
	return g.grant, nil
}
func (g *gate) Visible(by iscsi.Identity) []string {
	if by.Address != g.allowed {
		return nil
	}
	return []string{volume}
}
func (g *gate) Opened(iscsi.Nexus) { g.mu.Lock(); g.live++; g.mu.Unlock() }
func (g *gate) Ended(iscsi.Nexus)  { g.mu.Lock(); g.live--; g.mu.Unlock() }

// portal starts a target with one disk.
func portal(t *testing.T, d *disk, a iscsi.Account, allowed string) (*iscsi.Target, *gate, string) {
	t.Helper()
	if d.data == nil {
		d.data = make([]byte, 4<<20)
	}
	return serveUnits(t, d, a, allowed)
}

func serveDevice(t *testing.T, d iscsi.Device, a iscsi.Account, allowed string) string {
	t.Helper()
	_, _, at := serveUnits(t, d, a, allowed)
	return at
}

// serveUnits starts a target with d as its LUN 1.
func serveUnits(t *testing.T, d iscsi.Device, a iscsi.Account, allowed string) (*iscsi.Target, *gate, string) {
	t.Helper()
	g := &gate{grant: iscsi.Grant{Account: a, Units: map[uint16]iscsi.Device{1: d}}, allowed: netip.MustParseAddr(allowed)}
	target, err := iscsi.NewTarget(iscsi.TargetConfig{Gate: g})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- target.Serve(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		_ = target.Close()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.live != 0 {
			t.Errorf("%d sessions opened and never ended", g.live)
		}
	})
	return target, g, l.Addr().String()
}

func login(t *testing.T, portal string, p iscsi.Params) (*iscsi.Session, error) {
	t.Helper()
	p.Initiator = host
	return iscsi.Login(t.Context(), maskingtest.Dial(t, portal, from), p)
}

// exercise writes and reads through a session in all the sizes that negotiate differently.
func exercise(t *testing.T, s *iscsi.Session) {
	t.Helper()
	ctx := t.Context()
	blocks, size, err := s.Capacity(ctx, 1)
	if err != nil || size != 512 || blocks != 4<<20/512 {
		t.Fatalf("capacity %d x %d, %v", blocks, size, err)
	}
	for i, n := range []int{1, 3, 16, 129, 700} {
		data := bytes.Repeat([]byte{byte(i + 1)}, n*size)
		data[0], data[len(data)-1] = 0xaa, 0xbb
		if err := s.WriteBlock(ctx, 1, uint32(i*1000), data); err != nil {
			t.Fatalf("write of %d blocks: %v", n, err)
		}
		for _, at := range []int{0, n - 1} {
			got, err := s.ReadBlock(ctx, 1, uint32(i*1000+at))
			if err != nil || !bytes.Equal(got, data[at*size:(at+1)*size]) {
				t.Fatalf("block %d of %d reads back differently, %v", at, n, err)
			}
		}
	}
	if err := s.WriteBlock(ctx, 1, uint32(blocks), make([]byte, size)); !fault.Is(err, fault.Invalid) {
		t.Fatalf("a write behind the end: %v", err)
	}
	if err := s.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadBlock(ctx, 77, 0); !fault.Is(err, fault.NotFound) {
		t.Fatalf("a LUN that is not there: %v", err)
	}
}

func TestOwnTarget(t *testing.T) {
	for name, c := range map[string]struct {
		account   iscsi.Account
		solicited bool
	}{"plain": {}, "CHAP": {account: secret}, "all data asked for": {solicited: true}} {
		t.Run(name, func(t *testing.T) {
			d := &disk{}
			target, _, addr := portal(t, d, c.account, from)
			s, err := login(t, addr, iscsi.Params{Target: volume, Account: c.account, NoImmediateData: c.solicited})
			if err != nil {
				t.Fatal(err)
			}
			exercise(t, s)
			if live := target.Sessions(); len(live) != 1 || live[0].By.Name != host || live[0].By.Address.String() != from {
				t.Fatalf("sessions %+v", live)
			}
			if err := s.Logout(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, by := range d.writers() {
				if by.Name != host || by.Address.String() != from {
					t.Fatalf("a write of %+v", by)
				}
			}
		})
	}
}

func TestLoginRefused(t *testing.T) {
	_, _, addr := portal(t, &disk{}, secret, from)
	for name, c := range map[string]struct {
		p    iscsi.Params
		kind fault.Kind
	}{
		"wrong secret": {iscsi.Params{Target: volume, Account: iscsi.Account{User: "rerack", Secret: "wrong"}}, fault.Unauthorized},
		"wrong user":   {iscsi.Params{Target: volume, Account: iscsi.Account{User: "x", Secret: secret.Secret}}, fault.Unauthorized},
		"no account":   {iscsi.Params{Target: volume}, fault.Unauthorized},
		"masked":       {iscsi.Params{Target: volume + "2", Account: secret}, fault.NotFound},
		"no name":      {iscsi.Params{Target: "Volume 1"}, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := login(t, addr, c.p); !fault.Is(err, c.kind) {
				t.Fatalf("got %v, want kind %v", err, c.kind)
			}
		})
	}
}

func TestDiscovery(t *testing.T) {
	_, _, addr := portal(t, &disk{}, secret, from)
	s, err := login(t, addr, iscsi.Params{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	names, err := s.Targets(t.Context())
	if err != nil || len(names) != 1 || names[0] != volume {
		t.Fatalf("targets %v, %v", names, err)
	}
	if _, err := s.ReadBlock(t.Context(), 1, 0); err == nil {
		t.Fatal("a discovery session read a block")
	}
}

// TestEndDrains: a session that is ended stays listed until its last write is on the disk.
func TestEndDrains(t *testing.T) {
	d := &disk{gate: make(chan struct{}), inside: make(chan struct{})}
	target, _, addr := portal(t, d, iscsi.Account{}, from)
	s, err := login(t, addr, iscsi.Params{Target: volume})
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- s.WriteBlock(context.Background(), 1, 0, make([]byte, 512)) }()
	<-d.inside
	if !target.End(target.Sessions()[0].TSIH) {
		t.Fatal("no session to end")
	}
	if err := <-wrote; err == nil {
		t.Fatal("the write was acknowledged over a closed connection")
	}
	if len(target.Sessions()) != 1 {
		t.Fatal("the session is gone while its write runs")
	}
	close(d.gate)
	for len(target.Sessions()) != 0 {
		time.Sleep(time.Millisecond)
	}
	if err := s.WriteBlock(t.Context(), 1, 0, make([]byte, 512)); !fault.Is(err, fault.Unreachable) {
		t.Fatalf("a write after the end: %v", err)
	}
}

func TestHangingTargetTimesOut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = iscsi.Login(ctx, maskingtest.Dial(t, l.Addr().String(), from), iscsi.Params{Initiator: host, Target: volume})
	if !fault.Is(err, fault.Timeout) {
		t.Fatalf("got %v", err)
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	_, err := iscsi.Login(t.Context(), maskingtest.Dial(t, func() string { _, _, a := portal(t, &disk{}, secret, from); return a }(), from),
		iscsi.Params{Initiator: host, Target: volume, Account: iscsi.Account{User: "u", Secret: "canary-secret"}})
	if err == nil || strings.Contains(err.Error(), "canary") || errors.Unwrap(err) == nil {
		t.Fatalf("error %v", err)
	}
}

// TestRealTgtd: our initiator and Linux tgt.
func TestRealTgtd(t *testing.T) {
	d := maskingtest.StartTgtd(t)
	d.AddVolume(1, volume, 4<<20, secret)
	if _, err := login(t, d.Portal, iscsi.Params{Target: volume, Account: secret}); !fault.Is(err, fault.NotFound) {
		t.Fatalf("masked: %v", err)
	}
	d.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: 1, Params: "initiator-address=" + from})
	if _, err := login(t, d.Portal, iscsi.Params{Target: volume, Account: iscsi.Account{User: "rerack", Secret: "wrong"}}); !fault.Is(err, fault.Unauthorized) {
		t.Fatalf("wrong secret: %v", err)
	}
	for _, solicited := range []bool{false, true} {
		s, err := login(t, d.Portal, iscsi.Params{Target: volume, Account: secret, NoImmediateData: solicited})
		if err != nil {
			t.Fatal(err)
		}
		exercise(t, s)
		if err := s.Logout(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	disc, err := login(t, d.Portal, iscsi.Params{})
	if err != nil {
		t.Fatal(err)
	}
	if names, err := disc.Targets(t.Context()); err != nil || len(names) != 1 || names[0] != volume {
		t.Fatalf("targets %v, %v", names, err)
	}
	if err := disc.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestLibiscsi: our target and libiscsi's tools.
func TestLibiscsi(t *testing.T) {
	d := &disk{}
	_, _, addr := portal(t, d, secret, "127.0.0.1")
	url := "iscsi://rerack%" + secret.Secret + "@" + addr + "/" + volume + "/1"
	for _, c := range []struct {
		program string
		args    []string
		want    string
	}{
		{"iscsi-ls", []string{"-s", "iscsi://rerack%" + secret.Secret + "@" + addr}, "Type:DIRECT_ACCESS"},
		{"iscsi-inq", []string{url}, "RERACK"},
		{"iscsi-inq", []string{"-e", "1", "-c", "128", url}, "disk-1"},
		{"iscsi-readcapacity16", []string{url}, "Total size:4194304"},
	} {
		t.Run(c.program+strings.Join(c.args[:len(c.args)-1], ""), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, maskingtest.Peer(t, c.program), c.args...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), c.want) {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
	for _, suite := range []string{"SCSI.Read10", "SCSI.Read16", "SCSI.Write10", "SCSI.Write16", "SCSI.ReadCapacity10", "SCSI.ReadCapacity16",
		"SCSI.TestUnitReady"} {
		t.Run(suite, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, maskingtest.Peer(t, "iscsi-test-cu"), "-d", "-t", suite, url).CombinedOutput()
			sum := regexp.MustCompile(`tests +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)`).FindStringSubmatch(string(out))
			if err != nil || sum == nil || sum[3] == "0" || sum[4] != "0" {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
	if len(d.writers()) == 0 {
		t.Fatal("nothing was written")
	}
}
