package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// act is one thing asked of a lab over its control socket.
type act struct {
	Domain  string   `json:"domain,omitempty"`
	Running []string `json:"running,omitempty"`
	Kind    string   `json:"kind,omitempty"`
	Name    string   `json:"name,omitempty"`
	Fault   string   `json:"fault,omitempty"`
	Arg     string   `json:"arg,omitempty"`
	On      bool     `json:"on,omitempty"`
}

// problem is an error on its way over the socket.
type problem struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

const maxAct = 1 << 20

// maxControlPath is what fits into a socket's address: sun_path of unix(7), less its end.
const maxControlPath = 107

// ServeControl answers the lab's verbs on a unix socket until ctx ends or the lab is closed. The
// socket's mode is 0600: who may open it may burn racks.
func (l *Lab) ServeControl(ctx context.Context, path string) error {
	l.control.Add(1)
	defer l.control.Done()
	if len(path) > maxControlPath {
		return &fault.Error{Kind: fault.Invalid, Where: path, What: "the path of the control socket is too long",
			Evidence: fmt.Sprintf("%d bytes, at most %d", len(path), maxControlPath), Next: "choose a shorter --dir"}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(err, "clear control socket", path)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return fault.Wrap(err, "listen", path)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fault.Wrap(err, "protect control socket", path), ln.Close())
	}
	srv := &http.Server{Handler: l.controlHandler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second}
	for _, c := range []context.Context{ctx, l.ctx} {
		stop := context.AfterFunc(c, func() { _ = srv.Close() })
		defer stop()
	}
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fault.Wrap(err, "serve control", path)
	}
	return nil
}

func (l *Lab) controlHandler() http.Handler {
	mux := http.NewServeMux()
	for verb, do := range map[string]func(act) error{
		"burn":               func(a act) error { return l.Burn(a.Domain) },
		"restore-power":      func(a act) error { return l.RestorePower(a.Domain) },
		"cut-management":     func(a act) error { return l.CutManagement(a.Domain) },
		"restore-management": func(a act) error { return l.RestoreManagement(a.Domain) },
		"half-burn":          func(a act) error { return l.HalfBurn(a.Domain, a.Running...) },
		"fault":              func(a act) error { return l.Fault(a.Kind, a.Name, a.Fault, a.Arg) },
		"clear-fault":        func(a act) error { return l.ClearFault(a.Kind, a.Name, a.Fault) },
		"power":              func(a act) error { return l.Power(a.Name, a.On) },
		"attest":             func(a act) error { return l.Attest(a.Name) },
	} {
		mux.HandleFunc("POST /"+verb, func(w http.ResponseWriter, r *http.Request) {
			var a act
			d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAct))
			d.DisallowUnknownFields()
			if err := d.Decode(&a); err != nil {
				reply(w, nil, &fault.Error{Kind: fault.Invalid, What: "read the request", Err: err})
				return
			}
			reply(w, struct{}{}, do(a))
		})
	}
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { reply(w, l.Status(), nil) })
	mux.HandleFunc("GET /counters", func(w http.ResponseWriter, _ *http.Request) { reply(w, l.Counters(), nil) })
	mux.HandleFunc("GET /check-invariants", func(w http.ResponseWriter, _ *http.Request) { reply(w, l.CheckInvariants(), nil) })
	return mux
}

func reply(w http.ResponseWriter, v any, err error) {
	code := http.StatusOK
	if err != nil {
		v, code = problem{Kind: fault.KindOf(err).String(), Detail: err.Error()}, http.StatusUnprocessableEntity
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone if this fails
}
