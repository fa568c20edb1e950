package pxetest_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/httpboot"
	"rerack.dev/rerack/pxe/pxetest"
)

func TestRangesAndRefusals(t *testing.T) {
	s := pxetest.Start(t, nil, nil)
	s.Set(s.Intent(1, s.KernelBoot()))
	base := strings.TrimSuffix(boot(t, s.Client(1, pxe.ArchBIOS)).PhoneHome, pxe.PathPhoneHome)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"kernel", nil)
	req.Header.Set("Range", "bytes=10-19")
	resp, err := s.HTTP.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := strings.Repeat("vmlinuz", 4)[10:20]; resp.StatusCode != http.StatusPartialContent || string(b) != want {
		t.Errorf("range: %s %q, want %q", resp.Status, b, want)
	}
	root := base[:strings.Index(base, "/boot/")]
	other := "/boot/" + strings.Repeat("A", 43) + "/"
	for _, tt := range []struct {
		method, url string
		want        int
	}{
		{"GET", root + "/", 404}, {"GET", root + "/boot/", 404}, {"GET", root + other + "script.ipxe", 404},
		{"GET", base + "initrd/1", 404}, {"GET", base + "initrd/-1", 404}, {"GET", base + "initrd/99999999999999999999", 404},
		{"GET", base + "loader/other.efi", 404}, {"GET", base + "loader/..%2f..%2fetc%2fpasswd", 404}, {"GET", base + "image/boot.efi", 404},
		{"POST", base + "kernel", 405}, {"DELETE", base + "script.ipxe", 405}, {"GET", base + "phone-home", 405},
		{"POST", base + "phone-home", 400}, {"POST", base + "join", 404}, {"GET", root + "/boot/..%2f..%2fetc/script.ipxe", 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, tt.url, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := s.HTTP.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.want {
			t.Errorf("%s %s: %d, want %d", tt.method, strings.TrimPrefix(tt.url, root), resp.StatusCode, tt.want)
		}
	}
}

func TestSourceCheck(t *testing.T) {
	s := pxetest.Start(t, nil, func(c *bootserver.Config) { c.CheckSource = true })
	s.Set(s.Intent(1, s.KernelBoot())) // 10.1.0.1, and we come from 127.0.0.1
	if out := boot(t, s.Client(1, pxe.ArchBIOS)); out.End != bootclient.EndLocal || out.Loader == "" {
		t.Fatalf("outcome %+v", out)
	}
	if _, err := s.Ledger.Wait(within(t), "m1", pxe.KindAlarm); err != nil {
		t.Error(err)
	}
}

type joiner struct{ fail error }

func (j joiner) Join(_ context.Context, r pxe.Join) ([]byte, []byte, error) {
	return []byte("cert of " + r.Machine + " for " + string(r.CSR)), []byte("ca"), j.fail
}

func TestJoin(t *testing.T) {
	s := pxetest.Start(t, nil, func(c *bootserver.Config) { c.Joiner = joiner{} })
	s.Set(s.Intent(1, s.KernelBoot()))
	out := boot(t, s.Client(1, pxe.ArchBIOS))
	nonce := bootclient.NewNonce()
	ask := httpboot.JoinRequest{Nonce: nonce, CSR: "csr"}
	if _, err := bootclient.Join(within(t), s.HTTP, out.PhoneHome, ask); !fault.Is(err, fault.Conflict) {
		t.Errorf("join before phone-home: %v", err)
	}
	rep := httpboot.Report{Nonce: nonce, AgentURL: "https://10.1.0.1:8443"}
	if err := bootclient.Report(within(t), s.HTTP, out.PhoneHome, rep); err != nil {
		t.Fatal(err)
	}
	if m, _ := s.Ledger.Wait(within(t), "m1", pxe.KindPhoneHome); m.AgentURL != rep.AgentURL {
		t.Errorf("milestone %+v", m)
	}
	if r, err := bootclient.Join(within(t), s.HTTP, out.PhoneHome, ask); err != nil || r.Certificate != "cert of m1 for csr" || r.CA != "ca" {
		t.Errorf("join: %+v %v", r, err)
	}
	ask.Nonce = bootclient.NewNonce()
	if _, err := bootclient.Join(within(t), s.HTTP, out.PhoneHome, ask); !fault.Is(err, fault.Conflict) {
		t.Errorf("join with another nonce: %v", err)
	}
	for _, u := range []string{"https://192.0.2.1:8443", "http://10.1.0.1", "https://169.254.169.254/", "https://localhost", "https://10.1.0.1@evil", "file:///etc/passwd"} {
		if err := bootclient.Report(within(t), s.HTTP, out.PhoneHome, httpboot.Report{Nonce: nonce, Milestone: "healthy", AgentURL: u}); !fault.Is(err, fault.Invalid) {
			t.Errorf("agent URL %s: %v", u, err)
		}
	}
}
