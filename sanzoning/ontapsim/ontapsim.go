// Package ontapsim simulates the SAN part of a NetApp ONTAP array behind its REST API over HTTPS: LUNs,
// igroups, LUN maps and FC logins, with the field names of the vendor's API reference. Its state
// survives Restart; faults can be set while it runs.
package ontapsim

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Backend is the world behind the array. Calls come without locks held.
type Backend interface {
	// Masked tells who may reach a LUN from now on; WWPNs are lower case, sorted.
	Masked(volume string, wwpns []string)
	// Logins lists the WWPNs that are logged in to the array's target ports.
	Logins() []string
}

// LUN is one LUN of the array.
type LUN struct {
	Name string // path, /vol/v1/lun7
	SVM  string
}

// Config of a simulator; all but Logger are required.
type Config struct {
	Listener           net.Listener
	Certificate        tls.Certificate
	Username, Password string
	Backend            Backend
	LUNs               []LUN
	Logger             *slog.Logger
}

// Group is one igroup, for planting initial and foreign state.
type Group struct {
	Name       string
	Comment    string
	Initiators []string
	LUNs       []string // mapped
}

// Faults change how the array behaves until they are set back.
type Faults struct {
	Delay     time.Duration // before every answer
	Hang      bool          // accept requests and never answer
	Refuse    bool          // answer 503 to everything
	DropReply bool          // do what is asked, then close without an answer (writes only)
	FailWrite int           // refuse the n-th write from now with 500; 0: none
	Dead      bool          // close every connection at once
}

// Counters of requests served.
type Counters struct {
	Reads, Writes int
}

type group struct {
	uuid, svm, comment string
	initiators         []string
}

// Sim is a running simulator.
type Sim struct {
	cfg Config
	srv *http.Server

	mu       sync.Mutex
	groups   map[string]*group
	maps     map[string][]string // LUN -> igroups
	next     int
	faults   Faults
	counters Counters
	done     chan struct{}
}

// Start serves until Close.
func Start(c Config) (*Sim, error) {
	if c.Listener == nil || c.Backend == nil || c.Username == "" {
		return nil, fault.New(fault.Invalid, "ontapsim: Listener, Backend and Username are needed")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Sim{cfg: c, groups: map[string]*group{}, maps: map[string][]string{}, done: make(chan struct{})}
	s.srv = &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:  slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{c.Certificate}}}
	go func() {
		defer close(s.done)
		if err := s.srv.ServeTLS(c.Listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			c.Logger.Error("ontapsim stopped", "error", err)
		}
	}()
	return s, nil
}

// Close stops serving and waits for it.
func (s *Sim) Close() error {
	err := s.srv.Close()
	<-s.done
	return err
}

// Plant puts an igroup in place as an administrator would have.
func (s *Sim) Plant(g Group) {
	s.mu.Lock()
	s.next++
	s.groups[g.Name] = &group{uuid: uuid(s.next), svm: s.svm(), comment: g.Comment, initiators: slices.Clone(g.Initiators)}
	for _, l := range g.LUNs {
		s.maps[l] = append(s.maps[l], g.Name)
	}
	s.mu.Unlock()
	s.tell(g.LUNs...)
}

func (s *Sim) svm() string {
	if len(s.cfg.LUNs) > 0 {
		return s.cfg.LUNs[0].SVM
	}
	return "svm1"
}

// SetFaults replaces the faults.
func (s *Sim) SetFaults(f Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = f
}

// Faults returns the present ones.
func (s *Sim) Faults() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults
}

// Counters returns what was served so far.
func (s *Sim) Counters() Counters {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters
}

// Groups returns all igroups, by name: what a person would see.
func (s *Sim) Groups() []Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Group
	for name, g := range s.groups {
		v := Group{Name: name, Comment: g.comment, Initiators: slices.Clone(g.initiators)}
		for l, names := range s.maps {
			if slices.Contains(names, name) {
				v.LUNs = append(v.LUNs, l)
			}
		}
		sort.Strings(v.LUNs)
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// WriteAllowed reports whether a port may reach a LUN now.
func (s *Sim) WriteAllowed(volume, wwpn string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.members(volume), strings.ToLower(wwpn))
}

// members is everybody in every igroup mapped to a LUN. The lock is held.
func (s *Sim) members(volume string) []string {
	var out []string
	for _, name := range s.maps[volume] {
		if g := s.groups[name]; g != nil {
			for _, i := range g.initiators {
				out = append(out, strings.ToLower(i))
			}
		}
	}
	sort.Strings(out)
	return slices.Compact(out)
}

// tell passes the present members of LUNs to the world.
func (s *Sim) tell(volumes ...string) {
	for _, v := range volumes {
		s.mu.Lock()
		m := s.members(v)
		s.mu.Unlock()
		s.cfg.Backend.Masked(v, m)
	}
}

func uuid(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }

// handler puts authentication and faults before the resources.
func (s *Sim) handler() http.Handler {
	routes := s.routes()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		f := s.faults
		write := r.Method != http.MethodGet
		fail := false
		if write {
			s.counters.Writes++
			if s.faults.FailWrite > 0 {
				s.faults.FailWrite--
				fail = s.faults.FailWrite == 0
			}
		} else {
			s.counters.Reads++
		}
		s.mu.Unlock()
		if f.Hang {
			<-r.Context().Done()
			return
		}
		if f.Dead {
			panic(http.ErrAbortHandler)
		}
		if !pause(r.Context(), f.Delay) {
			return
		}
		user, pass, _ := r.BasicAuth()
		if subtle.ConstantTimeCompare([]byte(user+"\x00"+pass), []byte(s.cfg.Username+"\x00"+s.cfg.Password)) != 1 {
			answer(w, http.StatusUnauthorized, apiError("6691623", "User is not authorized."))
			return
		}
		switch {
		case f.Refuse:
			answer(w, http.StatusServiceUnavailable, apiError("65536", "Service is not ready."))
		case fail:
			answer(w, http.StatusInternalServerError, apiError("1", "Internal error."))
		case write && f.DropReply:
			routes.ServeHTTP(&sink{h: http.Header{}}, r)
			panic(http.ErrAbortHandler)
		default:
			routes.ServeHTTP(w, r)
		}
	})
}

// sink is an answer that nobody gets.
type sink struct{ h http.Header }

func (s *sink) Header() http.Header         { return s.h }
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }
func (s *sink) WriteHeader(int)             {}

func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func apiError(code, message string) any {
	return map[string]any{"error": map[string]string{"code": code, "message": message}}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/hal+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone if this fails
}

func decode(r *http.Request, into any) error {
	return json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(into)
}
