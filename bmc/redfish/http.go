package redfish

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/transport"
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
	hc, err := transport.Client(transport.Config{Address: cfg.Address, CA: cfg.CA, Fingerprint: cfg.Fingerprint, DialTimeout: cfg.DialTimeout, ClockSkew: cfg.ClockSkew})
	if err != nil {
		return nil, err
	}
	return &conn{
		base:    &url.URL{Scheme: "https", Host: cfg.Address},
		maxBody: cfg.MaxBody, maxRequests: cfg.MaxRequests,
		http: hc,
	}, nil
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
		return answer{}, transport.Fault(method+" "+link, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, c.maxBody+1))
	if err != nil {
		return answer{}, transport.Fault(method+" "+link, err)
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
