package brocadesim

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

const (
	mediaType = "application/yang-data+xml"
	maxBody   = 8 << 20
)

// refusal is an answer that is an error.
type refusal struct {
	status  int
	message string
}

func (e *refusal) Error() string { return e.message }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// call is one request after its login was checked.
type call struct {
	token, user string
	application string
	body        []byte
}

// reply is what a handler answers; a nil body is no content.
type reply struct {
	status int
	body   any
}

func (s *Switch) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /rest/login", s.guard(s.login))
	handle := func(pattern string, fn func(call) (reply, error)) {
		mux.HandleFunc(pattern, s.guard(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, fn) }))
	}
	handle("POST /rest/logout", s.logout)
	const zone = "/rest/running/brocade-zone/"
	handle("GET "+zone+"effective-configuration", s.getEffective)
	handle("PATCH "+zone+"effective-configuration", s.patchEffective)
	handle("GET "+zone+"defined-configuration", s.getDefined)
	for _, method := range []string{http.MethodPost, http.MethodPatch, http.MethodDelete} {
		handle(method+" "+zone+"defined-configuration", func(c call) (reply, error) { return s.edit(method, c) })
	}
	handle("GET "+zone+"fabric-lock", s.getLock)
	handle("GET /rest/running/brocade-name-server/fibrechannel-name-server", s.getNameServer)
	mux.HandleFunc("/", s.guard(func(w http.ResponseWriter, _ *http.Request) {
		fail(w, refuse(http.StatusNotFound, "The requested resource does not exist"))
	}))
	return mux
}

// guard applies the faults around a handler.
func (s *Switch) guard(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.count(func(c *Counters) { c.Requests++ })
		// The body is read first, so that a client that goes away is noticed.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			fail(w, refuse(http.StatusRequestEntityTooLarge, "too large"))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		if !s.faults.stall(r.Context()) {
			panic(http.ErrAbortHandler)
		}
		if s.faults.take(func(f *Faults) *int { return &f.Refuse503 }) {
			fail(w, refuse(http.StatusServiceUnavailable, "The server is busy"))
			return
		}
		switch s.faults.next() {
		case Refused:
			fail(w, refuse(http.StatusBadRequest, "told to refuse"))
		case Dropped:
			panic(http.ErrAbortHandler)
		case LostTail:
			next(&blackHole{header: http.Header{}}, r)
			panic(http.ErrAbortHandler)
		default:
			next(w, r)
		}
	}
}

// blackHole is where the answer goes that is lost on its way.
type blackHole struct{ header http.Header }

func (b *blackHole) Header() http.Header         { return b.header }
func (b *blackHole) Write(p []byte) (int, error) { return len(p), nil }
func (b *blackHole) WriteHeader(int)             {}

func (s *Switch) login(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	if !ok || user != s.cfg.User || password != s.cfg.Password || s.faults.get().AuthFail {
		fail(w, refuse(http.StatusUnauthorized, "Authentication failed"))
		return
	}
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		fail(w, err)
		return
	}
	token := "Custom_Basic " + hex.EncodeToString(raw)
	s.mu.Lock()
	full := len(s.sessions) >= s.cfg.MaxSessions
	if !full {
		s.sessions[token] = user
		s.counters.Logins++
	}
	s.mu.Unlock()
	if full {
		fail(w, refuse(http.StatusServiceUnavailable, "Max limit for REST sessions reached"))
		return
	}
	w.Header().Set("Authorization", token)
	w.WriteHeader(http.StatusOK)
}

func (s *Switch) serve(w http.ResponseWriter, r *http.Request, fn func(call) (reply, error)) {
	token := r.Header.Get("Authorization")
	s.mu.Lock()
	user, ok := s.sessions[token]
	s.mu.Unlock()
	if !ok {
		fail(w, refuse(http.StatusUnauthorized, "Invalid session key"))
		return
	}
	if vf := r.URL.Query().Get("vf-id"); r.URL.Path != "/rest/logout" && s.cfg.VirtualFabric != 0 && vf != strconv.Itoa(s.cfg.VirtualFabric) {
		fail(w, refuse(http.StatusBadRequest, "Virtual fabric %q does not exist", vf))
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		fail(w, err)
		return
	}
	got, err := fn(call{token, user, r.UserAgent(), body})
	if err != nil {
		fail(w, err)
		return
	}
	if got.body == nil {
		w.WriteHeader(got.status)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(got.status)
	writeXML(w, struct {
		XMLName xml.Name `xml:"Response"`
		Body    any
	}{Body: got.body})
}

func (s *Switch) logout(c call) (reply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, c.token)
	return reply{status: http.StatusNoContent}, nil
}

func fail(w http.ResponseWriter, err error) {
	r, ok := err.(*refusal)
	if !ok {
		r = &refusal{http.StatusInternalServerError, err.Error()}
	}
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(r.status)
	type one struct {
		Type    string `xml:"error-type"`
		Tag     string `xml:"error-tag"`
		App     string `xml:"error-app-tag"`
		Message string `xml:"error-message"`
	}
	writeXML(w, struct {
		XMLName xml.Name `xml:"urn:ietf:params:xml:ns:yang:ietf-restconf errors"`
		Error   one      `xml:"error"`
	}{Error: one{"application", "operation-failed", "Error", r.message}})
}

func writeXML(w io.Writer, v any) {
	raw, err := xml.Marshal(v)
	if err != nil {
		panic(err) // these types always encode
	}
	_, _ = io.WriteString(w, xml.Header) // a client that has gone needs no answer
	_, _ = w.Write(raw)
}

func (s *Switch) count(fn func(*Counters)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&s.counters)
}
