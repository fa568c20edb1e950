package pxetest_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/secret"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
)

// The login of a boot volume reaches the machine that boots from it, while it boots and at no other time.
func TestCHAP(t *testing.T) {
	const canary = "canary-of-the-target"
	var logged locked
	base := ""
	login := ipxe.Login{User: "db1", Secret: secret.New(canary)}
	s := pxetest.Start(t, nil, func(c *bootserver.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
		base = c.BaseURL
		c.CHAP = func(_ context.Context, name string) (ipxe.Login, error) {
			if name != "san/db1" {
				return ipxe.Login{}, &fault.Error{Kind: fault.NotFound, What: "no such secret", Where: name}
			}
			return login, nil
		}
	})
	target := ipxe.Target{Portal: netip.MustParseAddrPort("127.0.0.1:3270"), Name: "iqn.2026-01.org.example:vol-db1", LUN: 1, Initiator: "iqn.2026-01.org.example:w-db1"}
	script := func(e *pxe.Entry) (int, string) {
		resp, err := s.HTTP.Get((&pxe.Decider{BaseURL: base}).URL(e, pxe.PathScript))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		return resp.StatusCode, b.String()
	}
	entry := func(in pxe.Intent) *pxe.Entry {
		s.Set(in)
		e, ok := s.Table.Lookup(in.NICs[0].MAC)
		if !ok {
			t.Fatal("no entry")
		}
		return e
	}

	held := s.Intent(1, &pxe.Boot{ISCSI: &target, CHAP: "san/db1"})
	held.Held = true
	if code, b := script(entry(held)); code != http.StatusOK || strings.Contains(b, canary) {
		t.Errorf("a held machine gets %d %q", code, b)
	}
	free := s.Intent(1, &pxe.Boot{ISCSI: &target, CHAP: "san/db1"})
	e := entry(free)
	out := boot(t, s.Client(1, pxe.ArchBIOS))
	if out.End != bootclient.EndSAN || out.Login != login {
		t.Fatalf("outcome %+v", out)
	}
	if err := bootclient.Report(within(t), s.HTTP, out.PhoneHome, httpboot.Report{Nonce: bootclient.NewNonce()}); err != nil {
		t.Fatal(err)
	}
	if code, b := script(e); code != http.StatusGone || strings.Contains(b, canary) {
		t.Errorf("after its phone-home the script is answered with %d %q", code, b)
	}
	if code, b := script(entry(s.Intent(2, &pxe.Boot{ISCSI: &target, CHAP: "san/nobody"}))); code != http.StatusInternalServerError || strings.Contains(b, "sanboot") {
		t.Errorf("without its secret a machine gets %d %q", code, b)
	}
	login.Secret = secret.New("two words $and more")
	if code, b := script(entry(s.Intent(3, &pxe.Boot{ISCSI: &target, CHAP: "san/db1"}))); code != http.StatusInternalServerError || strings.Contains(b, "words") {
		t.Errorf("a secret that a script cannot carry makes %d %q", code, b)
	}
	if strings.Contains(logged.String(), canary) || strings.Contains(logged.String(), "two words") {
		t.Errorf("the log tells a secret:\n%s", logged.String())
	}
}
