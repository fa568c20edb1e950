package probe_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/probe"
	"rerack.dev/rerack/orchestrator/topology"
)

// serve starts an HTTP server that answers by path, and counts the requests it gets.
func serve(t *testing.T) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		switch r.URL.Path {
		case "/ok":
		case "/sick":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/elsewhere":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/endless":
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		case "/cut":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String()), &asked
}

// closed is a port where nothing listens.
func closed(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestProbe(t *testing.T) {
	at, asked := serve(t)
	up, down := int(at.Port()), closed(t)
	for name, tt := range map[string]struct {
		health topology.Health
		ok     bool
		kind   fault.Kind
	}{
		"nothing to check":      {health: topology.Health{}, ok: true},
		"port open":             {health: topology.Health{TCPPort: up}, ok: true},
		"port closed":           {health: topology.Health{TCPPort: down}, kind: fault.Unreachable},
		"serves":                {health: topology.Health{HTTPPort: up, Path: "/ok"}, ok: true},
		"both":                  {health: topology.Health{TCPPort: up, HTTPPort: up, Path: "/ok"}, ok: true},
		"port closed, serves":   {health: topology.Health{TCPPort: down, HTTPPort: up, Path: "/ok"}, kind: fault.Unreachable},
		"sick":                  {health: topology.Health{HTTPPort: up, Path: "/sick"}, kind: fault.Unverified},
		"sent elsewhere":        {health: topology.Health{HTTPPort: up, Path: "/elsewhere"}, kind: fault.Unverified},
		"another page":          {health: topology.Health{HTTPPort: up, Path: "/none"}, kind: fault.Unverified},
		"an answer of any size": {health: topology.Health{HTTPPort: up, Path: "/endless"}, ok: true},
		"cut off":               {health: topology.Health{HTTPPort: up, Path: "/cut"}, kind: fault.Unreachable},
		"HTTP port closed":      {health: topology.Health{HTTPPort: down, Path: "/ok"}, kind: fault.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			err := probe.Prober{}.Probe(t.Context(), topology.Site{}, "127.0.0.1", tt.health)
			if tt.ok != (err == nil) || err != nil && !fault.Is(err, tt.kind) {
				t.Errorf("%v, want kind %s", err, tt.kind)
			}
		})
	}
	if asked.Load() == 0 {
		t.Error("nothing was asked")
	}
}

// A site's proxy is the only way in: what it cannot reach is not reached, and nothing is dialled around it.
func TestProbeThroughProxy(t *testing.T) {
	at, asked := serve(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	var through atomic.Int64
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			through.Add(1)
			socks(conn, at)
		}
	}()
	site := topology.Site{}
	site.Spec.ProbeProxy = "socks5://" + l.Addr().String()
	h := topology.Health{HTTPPort: 80, Path: "/ok"}
	if err := (probe.Prober{}).Probe(t.Context(), site, "192.0.2.7", h); err != nil || asked.Load() != 1 || through.Load() != 1 {
		t.Errorf("%v; %d requests, %d through the proxy", err, asked.Load(), through.Load())
	}
	site.Spec.ProbeProxy = "socks5://" + netip.AddrPortFrom(at.Addr(), uint16(closed(t))).String()
	if err := (probe.Prober{}).Probe(t.Context(), site, "127.0.0.1", topology.Health{TCPPort: int(at.Port())}); !fault.Is(err, fault.Unreachable) {
		t.Errorf("with a proxy that is away: %v", err)
	}
	for _, bad := range []string{"http://127.0.0.1:1", "::", "127.0.0.1:1080"} {
		site.Spec.ProbeProxy = bad
		if err := (probe.Prober{}).Probe(t.Context(), site, "127.0.0.1", h); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "socks5://") {
			t.Errorf("proxy %q: %v", bad, err)
		}
	}
	if asked.Load() != 1 {
		t.Error("the server was asked around the proxy")
	}
}

// socks serves one connection without authentication (RFC 1928) and leads it to at, whatever was asked for.
func socks(in net.Conn, at netip.AddrPort) {
	defer in.Close()
	greeting := make([]byte, 2)
	if _, err := io.ReadFull(in, greeting); err != nil {
		return
	}
	if _, err := io.ReadFull(in, make([]byte, greeting[1])); err != nil {
		return
	}
	if _, err := in.Write([]byte{5, 0}); err != nil {
		return
	}
	if _, err := io.ReadFull(in, make([]byte, 4+4+2)); err != nil { // CONNECT to an IPv4 address
		return
	}
	out, err := net.Dial("tcp", at.String())
	if err != nil {
		return
	}
	defer out.Close()
	if _, err := in.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
		return
	}
	go func() { _, _ = io.Copy(out, in) }()
	_, _ = io.Copy(in, out)
}

// An endpoint that accepts and never answers costs no more than the caller's time.
func TestProbeOfOneThatHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Read(make([]byte, 1)) // the request has come
		cancel()
		_, _ = io.Copy(io.Discard, conn)
	}()
	err = probe.Prober{}.Probe(ctx, topology.Site{}, "127.0.0.1", topology.Health{HTTPPort: l.Addr().(*net.TCPAddr).Port, Path: "/"})
	if !fault.Is(err, fault.Unreachable) {
		t.Error(err)
	}
}
