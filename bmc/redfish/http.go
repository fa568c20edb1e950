package redfish

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// conn is HTTP to one BMC, with the limits that a hostile one runs into (hazard H14).
type conn struct {
	base    *url.URL
	http    *http.Client
	maxBody int64

	maxRequests, requests int
	token, session        string
}

func newConn(cfg Config) (*conn, error) {
	tr, err := cfg.transport()
	if err != nil {
		return nil, err
	}
	return &conn{
		base:    &url.URL{Scheme: "https", Host: cfg.Address},
		maxBody: cfg.MaxBody, maxRequests: cfg.MaxRequests,
		http: &http.Client{Transport: tr, CheckRedirect: sameOriginOnly},
	}, nil
}

// sameOriginOnly keeps the token on the host it was given by, and lets only reads be redirected.
func sameOriginOnly(req *http.Request, via []*http.Request) error {
	first := via[0]
	switch {
	case req.URL.Scheme != "https" || req.URL.Host != first.URL.Host:
		return &fault.Error{Kind: fault.Unsafe, What: "redirect refused", Evidence: "to another origin, " + req.URL.Redacted()}
	case first.Method != http.MethodGet:
		return &fault.Error{Kind: fault.Unsafe, What: "redirect refused", Evidence: "of a " + first.Method}
	case len(via) >= 3:
		return &fault.Error{Kind: fault.Internal, What: "redirect refused", Evidence: "the third in a row"}
	}
	return nil
}

// resolve turns an @odata.id into a URL of the same BMC.
func (c *conn) resolve(link string) (string, error) {
	u, err := url.Parse(link)
	if err != nil {
		return "", fault.Newf(fault.Internal, "link %q is not a URL", link)
	}
	if (u.Host != "" && u.Host != c.base.Host) || (u.Scheme != "" && u.Scheme != "https") || u.User != nil || u.Opaque != "" {
		return "", &fault.Error{Kind: fault.Unsafe, What: "link refused", Evidence: fmt.Sprintf("%q leads to another host", link)}
	}
	if !strings.HasPrefix(u.Path, "/redfish/") {
		return "", fault.Newf(fault.Internal, "link %q is outside /redfish", link)
	}
	return c.base.ResolveReference(&url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}).String(), nil
}

// answer is the part of a response that callers look at.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a answer) decode(v any) error {
	if err := json.Unmarshal(a.body, v); err != nil {
		return &fault.Error{Kind: fault.Internal, What: "answer is not the JSON expected", Evidence: excerpt(a.body), Err: err}
	}
	return nil
}

// do sends one request and reads the whole answer. Only transport failures are errors here.
func (c *conn) do(ctx context.Context, method, link string, body any, header http.Header) (answer, error) {
	if c.requests++; c.requests > c.maxRequests {
		return answer{}, &fault.Error{Kind: fault.Internal, What: "too many requests in one call", Evidence: fmt.Sprintf("%d, the last for %s", c.maxRequests, link),
			Next: "the BMC's links may form a loop"}
	}
	target, err := c.resolve(link)
	if err != nil {
		return answer{}, err
	}
	var payload io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return answer{}, fault.Newf(fault.Internal, "encode %s %s: %w", method, link, err)
		}
		payload = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, payload)
	if err != nil {
		return answer{}, fault.Newf(fault.Internal, "%s %s: %w", method, link, err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("OData-Version", "4.0")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("X-Auth-Token", c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, transportFault(method, link, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, c.maxBody+1))
	if err != nil {
		return answer{}, transportFault(method, link, err)
	}
	if int64(len(raw)) > c.maxBody {
		return answer{}, &fault.Error{Kind: fault.Internal, What: method + " " + link, Evidence: fmt.Sprintf("answer is longer than %d bytes", c.maxBody)}
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: raw}, nil
}

// get fetches one resource into v and returns its ETag.
func (c *conn) get(ctx context.Context, link string, v any) (etag string, err error) {
	a, err := c.do(ctx, http.MethodGet, link, nil, nil)
	if err != nil {
		return "", err
	}
	if a.status != http.StatusOK {
		return "", statusFault(http.MethodGet, link, a)
	}
	return a.header.Get("ETag"), a.decode(v)
}

// HTTPClient returns an HTTPS client for one BMC with the trust and the redirect rule of this package, for
// vendor protocols beside Redfish.
func HTTPClient(cfg Config) (*http.Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c, err := newConn(cfg)
	if err != nil {
		return nil, err
	}
	return c.http, nil
}

// TransportFault gives an error of such a client its kind.
func TransportFault(what string, err error) error { return transportFault("", what, err) }

// transportFault tells no answer at all from an answer that broke off: after the latter the effect of the
// request is unknown (hazards H01, H13).
func transportFault(method, link string, err error) error {
	out := &fault.Error{Kind: fault.Timeout, What: strings.TrimSpace(method + " " + link), Err: err}
	var (
		fe   *fault.Error
		op   *net.OpError
		cert *tls.CertificateVerificationError
		auth x509.UnknownAuthorityError
		name x509.HostnameError
		bad  x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &fe):
		out.Kind = fe.Kind
	case errors.As(err, &cert), errors.As(err, &auth), errors.As(err, &name), errors.As(err, &bad):
		out.Kind, out.Next = fault.Unsafe, "pin the certificate's fingerprint or name the CA that signed it"
	case errors.As(err, new(tls.RecordHeaderError)):
		out.Kind, out.Evidence = fault.Unsupported, "what answers there does not speak TLS"
	case errors.As(err, &op) && op.Op == "dial":
		out.Kind = fault.Unreachable
	}
	return out
}

// statusFault turns an HTTP status into a fault. DSP0266 section 7.5 gives the meaning of each.
func statusFault(method, link string, a answer) *fault.Error {
	out := &fault.Error{Kind: fault.Internal, What: method + " " + link, Evidence: fmt.Sprintf("HTTP %d%s", a.status, message(a.body))}
	switch a.status {
	case http.StatusUnauthorized:
		// The login was accepted once, so it is the session that is gone, not the right.
		out.Kind, out.Err = fault.Busy, driver.ErrSessionLost
	case http.StatusForbidden:
		out.Kind, out.Next = fault.Unauthorized, "give the BMC user the Operator role at least"
	case http.StatusNotFound:
		out.Kind = fault.NotFound
	case http.StatusBadRequest:
		out.Kind = fault.Invalid
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		out.Kind = fault.Unsupported
	case http.StatusConflict, http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusBadGateway:
		out.Kind = fault.Busy
	case http.StatusPreconditionFailed:
		out.Kind = fault.Conflict
	}
	return out
}

// message finds the vendor's words in a Redfish error body (DSP0266 section 8.6).
func message(body []byte) string {
	var e struct {
		Error struct {
			Message  string
			Extended []struct{ MessageID, Message string } `json:"@Message.ExtendedInfo"`
		}
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	for _, x := range e.Error.Extended {
		if x.Message != "" {
			return ": " + clip(x.Message)
		}
	}
	if e.Error.Message != "" {
		return ": " + clip(e.Error.Message)
	}
	return ""
}

func excerpt(b []byte) string { return fmt.Sprintf("%q", clip(string(b))) }

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
