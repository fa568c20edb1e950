// Package api is the REST interface under /api/v1: everything the command line can do, it does here.
// OpenAPI 3.1 is generated from these types and served at /openapi.json.
package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/monitor"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/workflows"
)

// Version of the API in its document.
const Version = "1"

// Server holds what the handlers use.
type Server struct {
	Store     store.Store
	Revisions *revision.Log
	Recovery  *recovery.Service
	Monitor   *monitor.Monitor
	Plan      func(ctx context.Context, run string, pending []string, s workflows.Scope) (policies.PlacementInput, error)
	Images    *images.Store
	// CheckCapture says why a capture cannot be.
	CheckCapture func(ctx context.Context, q state.CaptureRequest) error
	Token        string // every request but /healthz bears it
	Now          func() time.Time
	Log          *slog.Logger
}

const maxBody = 64 << 20 // a topology of many files; each file has its own limit

// Handler builds the routes.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	conf := huma.DefaultConfig("Rerack", Version)
	conf.DocsPath = "" // the page would load scripts from the internet
	conf.CreateHooks = nil
	api := humago.New(mux, conf)
	s.topologyRoutes(api)
	s.recoveryRoutes(api)
	s.machineRoutes(api)
	s.captureRoutes(api)
	s.imageRoutes(api)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	outer := http.NewServeMux()
	outer.Handle("/", http.MaxBytesHandler(mux, maxBody))
	outer.HandleFunc("PUT /api/v1/images/{name}", s.importImage(make(chan struct{}, uploads))) // the store has its own limit
	return s.authenticate(outer)
}

// authenticate compares hashes, so that the time it takes says nothing about the token.
func (s *Server) authenticate(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(s.Token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, bears := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(token))
		if r.URL.Path != "/healthz" && (!bears || subtle.ConstantTimeCompare(got[:], want[:]) != 1) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("WWW-Authenticate", "Bearer")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"status":401,"title":"unauthorized","detail":"this is not the server's token (next: send its admin.token as bearer token; for the command line, name it with --token-file or RERACK_TOKEN_FILE)"}`))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// problem turns an error into an answer: the one mapping from fault kinds to HTTP.
func problem(err error) error {
	if err == nil {
		return nil
	}
	var bad topology.Errors
	if errors.As(err, &bad) {
		p := &huma.ErrorModel{Status: http.StatusUnprocessableEntity, Title: "the topology is not valid", Detail: err.Error()}
		for _, e := range bad {
			p.Errors = append(p.Errors, &huma.ErrorDetail{Message: e.Error(), Location: e.Path})
		}
		return p
	}
	k := fault.KindOf(err)
	return &huma.ErrorModel{Status: status(k), Title: k.String(), Detail: err.Error()}
}

func status(k fault.Kind) int {
	switch k {
	case fault.Invalid:
		return http.StatusUnprocessableEntity
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict, fault.Stale, fault.Unsafe:
		return http.StatusConflict
	case fault.Unauthorized:
		return http.StatusForbidden
	case fault.Unsupported:
		return http.StatusNotImplemented
	case fault.Busy, fault.Unreachable:
		return http.StatusServiceUnavailable
	case fault.Timeout:
		return http.StatusGatewayTimeout
	case fault.Internal, fault.Unverified:
	}
	return http.StatusInternalServerError
}

// body wraps an answer for huma.
type body[T any] struct{ Body T }

func reply[T any](v T, err error) (*body[T], error) {
	if err != nil {
		return nil, problem(err)
	}
	return &body[T]{v}, nil
}

func route(method, path, id, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: "/api/v1" + path, Summary: summary, MaxBodyBytes: maxBody}
}

// Actor is who a request says it comes from; the token decides what it may do.
type Actor struct {
	By string `header:"X-Rerack-Actor" doc:"Who asks, for the record" maxLength:"128"`
}

func (a Actor) name() string {
	if a.By == "" {
		return "api"
	}
	return a.By
}

// MachineView is a machine as people want to see it: declared, observed, decided.
type MachineView struct {
	Name    string           `json:"name"`
	Rack    string           `json:"rack"`
	Type    string           `json:"hardwareType"`
	Use     topology.PoolUse `json:"use"`
	Power   string           `json:"power" enum:"on,off,changing,unknown"`
	PowerAt time.Time        `json:"powerAt,omitzero"`
	Detail  string           `json:"powerDetail,omitempty"`
	Runs    []string         `json:"runs,omitempty" doc:"Workloads that hold their lease on it"`
	Host    bool             `json:"host,omitempty"`
	Fenced  string           `json:"fencedBy,omitempty"`
	Fences  []policies.Fence `json:"fences,omitempty"`
	Zombie  bool             `json:"zombie,omitempty" doc:"Powered on although it is fenced"`
	Suspect string           `json:"suspect,omitempty"`
	Claimed string           `json:"claimedBy,omitempty"`
}

// WorkloadView is a workload with where it runs.
type WorkloadView struct {
	Name         string    `json:"name"`
	Priority     int       `json:"priority"`
	RunsOn       string    `json:"runsOn"`
	Repurposable bool      `json:"repurposable,omitempty"`
	State        string    `json:"state" enum:"running,starting,down"`
	Machine      string    `json:"machine,omitempty"`
	VM           bool      `json:"vm,omitempty"`
	Epoch        uint64    `json:"epoch"`
	Since        time.Time `json:"since,omitzero"`
	Run          string    `json:"run,omitempty"`
}

// RunView is a run with its results.
type RunView struct {
	state.Run
	Results []state.Result  `json:"results"`
	Report  recovery.Report `json:"report"`
}
