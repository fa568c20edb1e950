package iscsi_test

import (
	"bytes"
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/sanzoning/iscsi"
	"rerack.dev/rerack/sanzoning/tgtsim"
)

// watched is what a tap has seen.
type watched struct {
	mu     sync.Mutex
	logins []string
	wrote  []uint16
	blind  string
}

func (w *watched) watcher() iscsi.Watcher {
	return iscsi.Watcher{
		Login: func(initiator, target string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.logins = append(w.logins, initiator+" "+target)
		},
		Wrote: func(lun uint16) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.wrote = append(w.wrote, lun)
		},
		Blind: func(why string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.blind = why
		},
	}
}

func TestTapSeesLoginsAndWrites(t *testing.T) {
	const target, initiator = "iqn.2026-01.org.example:db1", "iqn.2026-01.org.example:host-db1"
	account := iscsi.Account{User: "db1", Secret: "0123456789abcdef"}
	sim, err := tgtsim.New(tgtsim.Config{Socket: t.TempDir() + "/s.0", Portal: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	if err := sim.AddVolume(tgtsim.Volume{Target: target, Account: account, Rules: []string{"127.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	open := func(w *watched, p iscsi.Params) (*iscsi.Session, error) {
		c, err := net.Dial("tcp", sim.Portal())
		if err != nil {
			t.Fatal(err)
		}
		return iscsi.Login(ctx, iscsi.Tap(c, w.watcher()), p)
	}
	var w watched
	s, err := open(&w, iscsi.Params{Initiator: initiator, Target: target, Account: account})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.logins, []string{initiator + " " + target}) {
		t.Errorf("logins %q", w.logins)
	}
	block := bytes.Repeat([]byte{7}, 512)
	for i := range 3 {
		if err := s.WriteBlock(ctx, 1, uint32(i), block); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.WriteBlock(ctx, 1, 1<<31, block); err == nil {
		t.Error("a write beyond the end is accepted")
	}
	_ = s.Close()
	if !slices.Equal(w.wrote, []uint16{1, 1, 1}) || w.blind != "" {
		t.Errorf("wrote %v, blind %q", w.wrote, w.blind)
	}

	var refused watched
	account.Secret = "another-secret-16"
	if _, err := open(&refused, iscsi.Params{Initiator: initiator, Target: target, Account: account}); err == nil {
		t.Fatal("another secret is accepted")
	}
	if len(refused.logins) > 0 {
		t.Errorf("a refused login is seen as %q", refused.logins)
	}
}
