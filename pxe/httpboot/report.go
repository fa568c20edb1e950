package httpboot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
)

// Limits of what a machine posts.
const (
	maxBody   = 64 << 10
	maxDetail = 1024
	maxCSR    = 16 << 10
	maxDepth  = 4
	// sinkTimeout is how long a machine waits for its report to be durable before it is told to retry.
	sinkTimeout = 15 * time.Second
)

// Report is what a booted system posts to phone-home. Nonce is drawn by the machine, once for each
// boot: the first phone-home binds the token to it, and a retry with the same nonce is answered the
// same again.
type Report struct {
	Nonce     string `json:"nonce"`               // 16-64 of A-Z a-z 0-9 _ -
	Milestone string `json:"milestone,omitempty"` // phone-home (default), healthy, failed
	Detail    string `json:"detail,omitempty"`
	AgentURL  string `json:"agentURL,omitempty"` // https, an IP address as host
}

// JoinRequest is what an agent posts to join, after its machine has phoned home.
type JoinRequest struct {
	Nonce string `json:"nonce"`
	CSR   string `json:"csr"` // PEM
}

// JoinReply holds PEM certificates: the agent's chain, and the authority it shall trust.
type JoinReply struct {
	Certificate string `json:"certificate"`
	CA          string `json:"ca"`
}

var nonceForm = regexp.MustCompile(`^[A-Za-z0-9_-]{16,64}$`)

// ParseReport reads and checks a report. It returns the kind it is about, or fault.Invalid.
func ParseReport(body []byte) (Report, pxe.Kind, error) {
	var rep Report
	if err := decode(body, &rep); err != nil {
		return Report{}, 0, err
	}
	if !nonceForm.MatchString(rep.Nonce) {
		return Report{}, 0, fault.New(fault.Invalid, "nonce: want 16-64 letters, digits, '_' or '-'")
	}
	if len(rep.Detail) > maxDetail {
		return Report{}, 0, fault.Newf(fault.Invalid, "detail: at most %d bytes", maxDetail)
	}
	rep.Detail = plain(rep.Detail)
	if rep.AgentURL != "" {
		if err := ipxe.CheckURL(rep.AgentURL); err != nil {
			return Report{}, 0, fault.Wrap(err, "agentURL", "report")
		}
	}
	switch rep.Milestone {
	case "", pxe.KindPhoneHome.String():
		return rep, pxe.KindPhoneHome, nil
	case pxe.KindHealthy.String():
		return rep, pxe.KindHealthy, nil
	case pxe.KindFailed.String():
		return rep, pxe.KindFailed, nil
	}
	return Report{}, 0, fault.New(fault.Invalid, "milestone: want phone-home, healthy or failed")
}

// decode reads exactly one JSON object of known fields. encoding/json would nest 10,000 levels deep
// before it looks at the type, so depth is counted first.
func decode(body []byte, into any) error {
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fault.New(fault.Invalid, "JSON is nested too deep")
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return &fault.Error{Kind: fault.Invalid, What: "read JSON", Err: err}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "more than one JSON value")
	}
	return nil
}

// plain keeps visible ASCII; a machine's words are shown to people and logged.
func plain(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '.'
		}
	}
	return string(b)
}

func (h *Handler) phoneHome(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "body is too large or broken", http.StatusBadRequest)
		return
	}
	rep, kind, err := ParseReport(body)
	if err == nil {
		err = h.checkAgent(e, rep.AgentURL)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	used := e.Nonce()
	switch {
	case used != "" && used != rep.Nonce:
		h.replayed(w, r, e, kind)
		return
	case used == rep.Nonce && kind == pxe.KindPhoneHome:
		w.WriteHeader(http.StatusNoContent) // durable already: the first answer was lost
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), sinkTimeout)
	defer cancel()
	m := e.Milestone(kind, source(r), rep.Detail)
	m.Nonce, m.AgentURL = rep.Nonce, rep.AgentURL
	if err := h.cfg.Sink.Reached(ctx, m); err != nil {
		h.refused(w, r, e, kind, err)
		return
	}
	if kind == pxe.KindPhoneHome {
		e.Consume(rep.Nonce)
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *Handler) refused(w http.ResponseWriter, r *http.Request, e *pxe.Entry, kind pxe.Kind, err error) {
	switch fault.KindOf(err) {
	case fault.Conflict:
		h.replayed(w, r, e, kind)
	case fault.Stale, fault.NotFound:
		http.Error(w, "this boot is over", http.StatusGone)
	case fault.Invalid:
		http.Error(w, "report refused", http.StatusBadRequest)
	default:
		h.cfg.Logger.Error("report not recorded", "machine", e.Intent.Machine, "run", e.Intent.Run, "kind", kind.String(), "err", err)
		w.Header().Set("Retry-After", "2")
		http.Error(w, "not recorded: try again", http.StatusServiceUnavailable)
	}
}

func (h *Handler) replayed(w http.ResponseWriter, r *http.Request, e *pxe.Entry, kind pxe.Kind) {
	h.alarm(e, source(r), kind.String()+" with another nonce: the token was replayed or stolen")
	http.Error(w, "boot token is used up", http.StatusGone)
}

// checkAgent keeps a machine from pointing us at somebody else: the control plane will dial this URL.
func (h *Handler) checkAgent(e *pxe.Entry, agent string) error {
	if agent == "" {
		return nil
	}
	u, err := url.Parse(agent)
	if err != nil || u.Scheme != "https" {
		return fault.New(fault.Invalid, "agentURL: want https")
	}
	a, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return fault.New(fault.Invalid, "agentURL: want an IP address as host")
	}
	if e.Owns(a.Unmap()) {
		return nil
	}
	for _, p := range h.cfg.AgentHosts {
		if p.Contains(a.Unmap()) {
			return nil
		}
	}
	return fault.New(fault.Invalid, "agentURL: not an address of this machine")
}

func (h *Handler) join(w http.ResponseWriter, r *http.Request, e *pxe.Entry) {
	if h.cfg.Joiner == nil {
		http.NotFound(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "body is too large or broken", http.StatusBadRequest)
		return
	}
	var req JoinRequest
	if err := decode(body, &req); err != nil || !nonceForm.MatchString(req.Nonce) || req.CSR == "" || len(req.CSR) > maxCSR {
		http.Error(w, "want nonce and csr", http.StatusBadRequest)
		return
	}
	switch used := e.Nonce(); {
	case used == "":
		http.Error(w, "phone home first", http.StatusConflict)
		return
	case used != req.Nonce:
		h.alarm(e, source(r), "join with another nonce: the token was replayed or stolen")
		http.Error(w, "boot token is used up", http.StatusGone)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), sinkTimeout)
	defer cancel()
	chain, ca, err := h.cfg.Joiner.Join(ctx, pxe.Join{Machine: e.Intent.Machine, Run: e.Intent.Run, Epoch: e.Intent.Epoch,
		From: source(r), CSR: []byte(req.CSR)})
	if err != nil {
		h.cfg.Logger.Error("agent not joined", "machine", e.Intent.Machine, "run", e.Intent.Run, "err", err)
		if fault.KindOf(err).Retryable() {
			http.Error(w, "try again", http.StatusServiceUnavailable)
		} else {
			http.Error(w, "join refused", http.StatusForbidden)
		}
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(JoinReply{Certificate: string(chain), CA: string(ca)}); err != nil {
		h.cfg.Logger.Debug("join answer not sent", "machine", e.Intent.Machine, "err", err)
	}
}
