package brocade

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Paths of the resources used (FOS REST API Reference Manual, and the models' module names).
const (
	pathLogin      = "/rest/login"
	pathLogout     = "/rest/logout"
	pathEffective  = "/rest/running/brocade-zone/effective-configuration"
	pathDefined    = "/rest/running/brocade-zone/defined-configuration"
	pathLock       = "/rest/running/brocade-zone/fabric-lock"
	pathNameServer = "/rest/running/brocade-name-server/fibrechannel-name-server"
)

const mediaType = "application/yang-data+xml"

// application is how we introduce ourselves.
const application = "rerack"

// session is one login. FOS has room for very few of them, so each call of ours opens one and ends it.
type session struct {
	cfg   Config
	http  *http.Client
	user  string
	token string // value of the Authorization header
}

func login(ctx context.Context, cfg Config) (*session, error) {
	user, password, err := cfg.Login(ctx)
	if err != nil {
		return nil, fault.Wrap(err, "resolve the login", cfg.URL)
	}
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.TLS != nil {
		tc = cfg.TLS.Clone()
	}
	s := &session{cfg: cfg, user: user, http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: tc, MaxIdleConns: 1, TLSHandshakeTimeout: 10 * time.Second},
		// The token stays with the host it was given by.
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return fault.New(fault.Unsafe, "the switch redirects to another address")
		},
	}}
	basic := func(r *http.Request) { r.SetBasicAuth(user, password) }
	got, err := s.patiently(ctx, http.MethodPost, pathLogin, nil, basic)
	if err != nil {
		s.http.CloseIdleConnections()
		return nil, err
	}
	if s.token = got.header.Get("Authorization"); s.token == "" {
		s.http.CloseIdleConnections()
		return nil, &fault.Error{Kind: fault.Internal, What: "log in", Where: cfg.URL, Evidence: "no token in the answer"}
	}
	return s, nil
}

// logout ends the session whatever became of ctx: a forgotten one blocks a slot for hours.
func (s *session) logout(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := s.once(ctx, http.MethodPost, pathLogout, nil, s.authorize); err != nil {
		s.cfg.Logger.WarnContext(ctx, "could not log out", "switch", s.cfg.URL, "error", err)
	}
	s.http.CloseIdleConnections()
}

func (s *session) authorize(r *http.Request) { r.Header.Set("Authorization", s.token) }

// get reads a resource. A list without entries is fault.NotFound: FOS answers 404.
func (s *session) get(ctx context.Context, path string) (*response, error) {
	got, err := s.patiently(ctx, http.MethodGet, path, nil, s.authorize)
	if err != nil {
		return nil, err
	}
	var r response
	if err := xml.Unmarshal(got.body, &r); err != nil {
		return nil, &fault.Error{Kind: fault.Internal, What: "read " + path, Where: s.cfg.URL, Evidence: "not the XML expected: " + excerpt(got.body), Err: err}
	}
	return &r, nil
}

// send changes a resource.
func (s *session) send(ctx context.Context, method, path string, body any) error {
	raw, err := xml.Marshal(body)
	if err != nil {
		return fault.Newf(fault.Internal, "encode %s: %w", path, err)
	}
	_, err = s.patiently(ctx, method, path, raw, s.authorize)
	return err
}

// answer is a response of the 2xx kind.
type answer struct {
	header http.Header
	body   []byte
}

// patiently sends a request, and once more when the switch asks to come back later.
func (s *session) patiently(ctx context.Context, method, path string, body []byte, sign func(*http.Request)) (answer, error) {
	got, err := s.once(ctx, method, path, body, sign)
	if !fault.Is(err, fault.Busy) {
		return got, err
	}
	select {
	case <-ctx.Done():
		return answer{}, err
	case <-time.After(s.cfg.BusyWait):
	}
	return s.once(ctx, method, path, body, sign)
}

func (s *session) once(ctx context.Context, method, path string, body []byte, sign func(*http.Request)) (answer, error) {
	target := s.cfg.URL + path
	if s.cfg.VirtualFabric != 0 && path != pathLogin && path != pathLogout {
		target += "?vf-id=" + strconv.Itoa(s.cfg.VirtualFabric)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return answer{}, fault.Newf(fault.Internal, "make request: %w", err)
	}
	req.Header.Set("Accept", mediaType)
	req.Header.Set("User-Agent", application)
	if body != nil {
		req.Header.Set("Content-Type", mediaType)
	}
	sign(req)
	what := method + " " + path
	resp, err := s.http.Do(req)
	if err != nil {
		return answer{}, s.netError(ctx, what, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, s.cfg.MaxBytes+1))
	switch {
	case err != nil:
		return answer{}, s.netError(ctx, what, err)
	case int64(len(raw)) > s.cfg.MaxBytes:
		return answer{}, &fault.Error{Kind: fault.Internal, What: what, Where: s.cfg.URL, Evidence: fmt.Sprintf("the answer exceeds %d bytes", s.cfg.MaxBytes)}
	case resp.StatusCode/100 == 2:
		return answer{resp.Header, raw}, nil
	}
	return answer{}, s.refusal(what, resp.StatusCode, raw)
}

// netError sorts a failure to get an answer. What was sent may or may not have taken effect.
func (s *session) netError(ctx context.Context, what string, err error) error {
	e := &fault.Error{Kind: fault.Unreachable, What: what, Where: s.cfg.URL, Err: err,
		Next: "check the network to the switch, and that HTTPS is on there (mgmtapp --show)"}
	var uerr *url.Error
	if errors.As(err, &uerr) {
		e.Err = uerr.Err // its text repeats the method and the URL
	}
	var own *fault.Error
	var unverified *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case errors.As(err, &own):
		e.Kind, e.Next = own.Kind, ""
	case errors.As(err, &unverified):
		e.Kind, e.Next = fault.Unauthorized, "check the certificate, or pin it"
	case ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout():
		e.Kind = fault.Timeout
	}
	return e
}

// refusal sorts an answer that is an error by its status alone: texts differ between releases.
func (s *session) refusal(what string, status int, raw []byte) error {
	e := &fault.Error{Kind: fault.Internal, What: what, Where: s.cfg.URL, Evidence: fmt.Sprintf("HTTP %d", status)}
	var f failure
	if xml.Unmarshal(raw, &f) == nil {
		for _, one := range f.Errors {
			e.Evidence += ": " + excerpt([]byte(one.Message))
		}
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.Kind, e.Next = fault.Unauthorized, "check the account and its role"
	case http.StatusNotFound:
		e.Kind = fault.NotFound
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		e.Kind = fault.Busy
	case http.StatusBadRequest, http.StatusConflict, http.StatusMethodNotAllowed:
		e.Kind = fault.Invalid
	}
	return e
}

func excerpt(raw []byte) string {
	const most = 200
	if len(raw) > most {
		raw = append(raw[:most:most], "…"...)
	}
	return string(raw)
}
