package transport_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/bmc/transport"
	"rerack.dev/rerack/internal/fault"
)

func pinned(t *testing.T, h http.HandlerFunc) (transport.Config, *httptest.Server) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // refused certificates make noise on purpose
	srv.StartTLS()
	t.Cleanup(srv.Close)
	sum := sha256.Sum256(srv.Certificate().Raw)
	return transport.Config{Address: srv.Listener.Addr().String(), Fingerprint: hex.EncodeToString(sum[:])}, srv
}

// send makes one request and returns the kind of what went wrong.
func send(t *testing.T, cfg transport.Config, method, path string) error {
	t.Helper()
	c, err := transport.Client(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+cfg.Address+path, strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return transport.Fault("ask", err)
	}
	return resp.Body.Close()
}

func TestRedirects(t *testing.T) {
	other, _ := pinned(t, func(http.ResponseWriter, *http.Request) { t.Error("the other host was asked") })
	cfg, _ := pinned(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/here":
		case "/away":
			http.Redirect(w, r, "https://"+other.Address+"/", http.StatusTemporaryRedirect)
		case "/plain":
			http.Redirect(w, r, "http://"+r.Host+"/here", http.StatusTemporaryRedirect)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusTemporaryRedirect)
		default:
			http.Redirect(w, r, "/here", http.StatusTemporaryRedirect)
		}
	})
	for _, c := range []struct {
		method, path string
		kind         fault.Kind
		words        string
	}{
		{http.MethodGet, "/once", 0, ""},
		{http.MethodPost, "/once", fault.Unsafe, "of a POST"},
		{http.MethodGet, "/away", fault.Unsafe, "another origin"},
		{http.MethodGet, "/plain", fault.Unsafe, "another origin"},
		{http.MethodGet, "/round", fault.Internal, "third in a row"},
	} {
		err := send(t, cfg, c.method, c.path)
		if c.words == "" && err != nil || c.words != "" && (!fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.words)) {
			t.Errorf("%s %s: %v", c.method, c.path, err)
		}
	}
}

// Silence is told from an answer that broke off: only after the former is it certain that nothing happened.
func TestFault(t *testing.T) {
	closed, srv := pinned(t, nil)
	srv.Close()
	cut, _ := pinned(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	foreign := cut
	foreign.Fingerprint = strings.Repeat("00", 32)
	unsigned := cut
	unsigned.Fingerprint = ""
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for name, c := range map[string]struct {
		cfg  transport.Config
		kind fault.Kind
	}{
		"nobody there":       {closed, fault.Unreachable},
		"cut off":            {cut, fault.Timeout},
		"another pin":        {foreign, fault.Unsafe},
		"signed by nobody":   {unsigned, fault.Unsafe},
		"does not speak TLS": {transport.Config{Address: plain.Listener.Addr().String()}, fault.Unsupported},
	} {
		if err := send(t, c.cfg, http.MethodPost, "/"); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v is %s, want %s", name, err, fault.KindOf(err), c.kind)
		}
	}
}

// A box that takes the connection and says nothing costs no more than the caller's patience.
func TestSilenceEndsWithTheContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := transport.Client(transport.Config{Address: ln.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+ln.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err == nil {
		t.Fatal("answered", resp.Body.Close())
	}
	if err := transport.Fault("ask", err); !fault.Is(err, fault.Timeout) {
		t.Errorf("%v is %s, want timeout", err, fault.KindOf(err))
	}
}

func TestConfigNamesTheKey(t *testing.T) {
	for key, cfg := range map[string]transport.Config{
		"address":     {Address: "bmc7"},
		"clockSkew":   {Address: "bmc7:443", ClockSkew: -1},
		"fingerprint": {Address: "bmc7:443", Fingerprint: "abc"},
		"ca":          {Address: "bmc7:443", CA: "not PEM"},
	} {
		if _, err := transport.Client(cfg); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
