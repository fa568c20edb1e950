// Package agent is the protocol between the control plane and the agent on a Host: a driver.Host over
// mutual TLS, JSON over HTTP. Server runs on the Host, Client is the driver.
package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// ServerConfig of an agent.
type ServerConfig struct {
	Listener    net.Listener
	Certificate tls.Certificate // from the join
	CA          *x509.CertPool
	Client      string // common name in the certificate of the only caller
	Host        driver.Host
	Logger      *slog.Logger
}

// Validate names the first missing key.
func (c ServerConfig) Validate() error {
	for _, k := range []struct {
		key string
		ok  bool
	}{{"Listener", c.Listener != nil}, {"Certificate", len(c.Certificate.Certificate) > 0}, {"CA", c.CA != nil},
		{"Client", c.Client != ""}, {"Host", c.Host != nil}} {
		if !k.ok {
			return fault.Newf(fault.Invalid, "agent: %s is empty", k.key)
		}
	}
	return nil
}

// Serve answers until ctx ends. Calls that are under way then are cancelled, and are over when it returns.
func Serve(ctx context.Context, c ServerConfig) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	calls := &gate{next: handler(c.Host)}
	defer calls.close()
	s := &http.Server{
		Handler:           calls,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		MaxHeaderBytes:    16 << 10,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.Certificate},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: c.CA, VerifyConnection: func(cs tls.ConnectionState) error {
				leaf := cs.PeerCertificates[0]
				// The same authority signs for agents too, whose common name is their machine's: one that is
				// called like the caller is still an agent, which its URI says.
				if leaf.Subject.CommonName != c.Client || len(leaf.URIs) > 0 {
					return fault.Newf(fault.Unauthorized, "agent: caller %q is not %q", leaf.Subject, c.Client)
				}
				return nil
			}},
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.ServeTLS(c.Listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return &fault.Error{Kind: fault.Internal, What: "agent listener", Err: err}
	}
	return nil
}

// gate lets calls through until it is closed, which waits for those inside.
type gate struct {
	next   http.Handler
	inside sync.RWMutex // held for reading by every call
	closed bool
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.inside.RLock()
	defer g.inside.RUnlock()
	if g.closed {
		panic(http.ErrAbortHandler) // the server is closed, and the connection with it
	}
	g.next.ServeHTTP(w, r)
}

func (g *gate) close() {
	g.inside.Lock()
	defer g.inside.Unlock()
	g.closed = true
}

func handler(h driver.Host) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/capacity", func(w http.ResponseWriter, r *http.Request) {
		c, err := h.Capacity(r.Context())
		answer(w, c, err)
	})
	mux.HandleFunc("GET /v1/vms", func(w http.ResponseWriter, r *http.Request) {
		vms, err := h.VMs(r.Context())
		if vms == nil {
			vms = []driver.VM{} // null is no list
		}
		for i := range vms {
			vms[i].Spec = vms[i].Spec.Public()
		}
		answer(w, vms, err)
	})
	mux.HandleFunc("PUT /v1/vms/{name}", func(w http.ResponseWriter, r *http.Request) {
		spec, err := decodeSpec(http.MaxBytesReader(w, r.Body, maxBody))
		if err == nil && spec.Name != r.PathValue("name") {
			err = fault.New(fault.Invalid, "agent: the name in the path is not the one in the body")
		}
		if err == nil {
			err = h.Define(r.Context(), spec)
		}
		answer(w, struct{}{}, err)
	})
	act := func(f func(context.Context, string, uint64) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			epoch, err := strconv.ParseUint(strings.TrimPrefix(r.URL.RawQuery, "epoch="), 10, 64)
			if err != nil {
				answer(w, nil, fault.New(fault.Invalid, "agent: the query is not one epoch"))
				return
			}
			answer(w, struct{}{}, f(r.Context(), r.PathValue("name"), epoch))
		}
	}
	mux.HandleFunc("POST /v1/vms/{name}/start", act(h.Start))
	mux.HandleFunc("POST /v1/vms/{name}/stop", act(h.Stop))
	mux.HandleFunc("DELETE /v1/vms/{name}", act(h.Undefine))
	mux.HandleFunc("POST /v1/drain", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, h.Drain(r.Context()))
	})
	return mux
}

func answer(w http.ResponseWriter, v any, err error) {
	code := http.StatusOK
	if err != nil {
		k := fault.KindOf(err)
		v, code = problem{Kind: k.String(), Detail: err.Error()}, status(k)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the peer is gone if this fails
}

func status(k fault.Kind) int {
	switch k {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict, fault.Stale, fault.Unsafe:
		return http.StatusConflict
	case fault.Unauthorized:
		return http.StatusForbidden
	case fault.Unsupported:
		return http.StatusNotImplemented
	case fault.Busy:
		return http.StatusServiceUnavailable
	case fault.Internal, fault.Unreachable, fault.Timeout, fault.Unverified:
	}
	return http.StatusInternalServerError
}
