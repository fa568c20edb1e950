package httpboot_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/httpboot"
)

func TestParseReport(t *testing.T) {
	ok := `"nonce":"0123456789abcdef"`
	tests := []struct {
		body string
		kind pxe.Kind
		good bool
	}{
		{`{` + ok + `}`, pxe.KindPhoneHome, true},
		{`{` + ok + `,"milestone":"phone-home","detail":"up in 6 s"}`, pxe.KindPhoneHome, true},
		{`{` + ok + `,"milestone":"healthy"}`, pxe.KindHealthy, true},
		{`{` + ok + `,"milestone":"failed","detail":"no disk"}`, pxe.KindFailed, true},
		{`{` + ok + `,"agentURL":"https://10.0.0.1:8443"}`, pxe.KindPhoneHome, true},
		{``, 0, false}, {`null`, 0, false}, {`[]`, 0, false}, {`{}`, 0, false}, {`{"nonce":"short"}`, 0, false}, {`{"nonce":7}`, 0, false},
		{`{"nonce":"0123456789abcde\n"}`, 0, false}, {`{` + ok + `}{}`, 0, false}, {`{` + ok + `} x`, 0, false},
		{`{` + ok + `,"milestone":"alarm"}`, 0, false}, {`{` + ok + `,"milestone":"dhcp"}`, 0, false},
		{`{` + ok + `,"machine":"other"}`, 0, false}, {`{` + ok + `,"epoch":9}`, 0, false},
		{`{` + ok + `,"detail":"` + strings.Repeat("x", 1025) + `"}`, 0, false},
		{`{` + ok + `,"agentURL":"file:///etc/passwd"}`, 0, false},
		{`{` + ok + `,"detail":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`, 0, false}, // CVE-2026-3608's class
	}
	for _, tt := range tests {
		_, kind, err := httpboot.ParseReport([]byte(tt.body))
		if (err == nil) != tt.good || kind != tt.kind {
			t.Errorf("%.80s: %v %v", tt.body, kind, err)
		}
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%.80s: kind %v", tt.body, fault.KindOf(err))
		}
	}
	rep, _, err := httpboot.ParseReport([]byte(`{` + ok + `,"detail":"<b>\u001b[2J\u0000é\n"}`))
	if err != nil || strings.ContainsAny(rep.Detail, "\x1b\x00\n") {
		t.Errorf("detail %q, %v", rep.Detail, err)
	}
}

func FuzzParseReport(f *testing.F) {
	for _, s := range []string{`{"nonce":"0123456789abcdef"}`, `{"nonce":"0123456789abcdef","milestone":"healthy","detail":"\u0000","agentURL":"https://10.0.0.1"}`,
		`{"nonce":"\"}{["}`, `[[[[[[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rep, kind, err := httpboot.ParseReport(b)
		if err != nil {
			return
		}
		if kind != pxe.KindPhoneHome && kind != pxe.KindHealthy && kind != pxe.KindFailed {
			t.Fatalf("kind %v", kind)
		}
		if len(rep.Nonce) < 16 || len(rep.Nonce) > 64 || len(rep.Detail) > 1024 {
			t.Fatalf("%+v", rep)
		}
		for _, s := range []string{rep.Nonce, rep.Detail, rep.AgentURL} {
			for _, c := range []byte(s) {
				if c < ' ' || c > '~' {
					t.Fatalf("byte %#x in %q", c, s)
				}
			}
		}
	})
}

func FuzzParseCaptureReport(f *testing.F) {
	digest := strings.Repeat("0a", 32)
	for _, s := range []string{`{"nonce":"0123456789abcdef","stage":"copy","size":1}`, `{"nonce":"0123456789abcdef","stage":"verify","digests":["` + digest + `"],"hash":"c2hh"}`,
		`{"nonce":"0123456789abcdef","stage":"copy","failure":{"kind":"x","text":"\u0000"}}`, `{"nonce":"x"}`, `[[[[[[`, `{"nonce":"0123456789abcdef","stage":"copy","size":-1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := httpboot.ParseCaptureReport(b)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("kind %v", fault.KindOf(err))
			}
			return
		}
		if len(r.Nonce) < 16 || r.Size < 0 || r.First < 0 || r.Failure != nil && strings.ContainsAny(r.Failure.Text, "\x00\n\x1b") {
			t.Fatalf("%+v", r)
		}
	})
}

func serve(t *testing.T, h http.Handler, o httpboot.Options) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := httpboot.Serve(ctx, l, h, o); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l.Addr().String()
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })

// TestSilentConnections is H41: who opens connections and says nothing gets no more than its share, and
// is cut off.
func TestSilentConnections(t *testing.T) {
	addr := serve(t, hello, httpboot.Options{ConnsPerSource: 3})
	var open []net.Conn
	for range 3 {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET / HT"); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	fourth, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer fourth.Close()
	_ = fourth.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := fourth.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a fourth connection of one source: %v", err)
	}
	// Another source is served meanwhile.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	other, err := d.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := io.WriteString(other, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if resp, err := http.ReadResponse(bufio.NewReader(other), nil); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("another source: %v", err)
	}
	for _, c := range open {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("a silent connection was kept: %v", err)
		}
	}
}
