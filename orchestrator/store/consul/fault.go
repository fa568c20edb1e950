package consul

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// transport adds the token to every request and turns what is no answer into a fault, so that there is
// one place that knows what Consul's statuses mean. The client passes it on as the cause of its error.
type transport struct {
	base  http.RoundTripper
	token string
	where string
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Del("X-Consul-Token") // the client takes one from the environment
	if t.token != "" {
		req.Header.Set("X-Consul-Token", t.token)
	}
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		return nil, networkFault(t.where, err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusConflict: // a conflict is the answer of a transaction whose check failed
		return resp, nil
	case http.StatusNotFound:
		// Consul sends its index even when there is no key; another web server does not.
		if !strings.HasPrefix(req.URL.Path, "/v1/kv/") || resp.Header.Get("X-Consul-Index") != "" {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	return nil, statusFault(t.where, resp.StatusCode, strings.TrimSpace(string(body)), req.Method != http.MethodGet)
}

// networkFault is about a request without any answer.
func networkFault(where string, err error) *fault.Error {
	f := &fault.Error{Kind: fault.Timeout, Where: where, Err: err}
	var op *net.OpError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate):
		f.Kind, f.Next = fault.Unreachable, "see that CAFile and ServerName are those of Consul's certificate"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	case errors.As(err, &op) && op.Op == "dial":
		f.Kind, f.Next = fault.Unreachable, "see that Consul runs there and that the network lets this machine through"
	}
	return f
}

// statusFault is about an answer that is an error. The status of a write that the leader may have begun
// leaves its effect open.
func statusFault(where string, status int, body string, write bool) *fault.Error {
	f := &fault.Error{Where: where, Evidence: fmt.Sprintf("HTTP %d: %s", status, body)}
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		f.Kind, f.Next = fault.Unauthorized, "give the token key:write and session:write on the store's prefix"
	case status == http.StatusNotFound:
		f.Kind, f.Next = fault.Unsupported, "see that the address is that of Consul's HTTP API"
	case status == http.StatusTooManyRequests:
		f.Kind = fault.Busy
	case status >= 400 && status < 500:
		f.Kind = fault.Invalid
	case strings.Contains(body, "No cluster leader"):
		f.Kind, f.Next = fault.Unreachable, "see that a majority of the Consul servers runs"
	case write:
		f.Kind, f.Next = fault.Timeout, "read the keys to see whether it took effect"
	default:
		f.Kind = fault.Unreachable
	}
	return f
}

// fault makes an error of the client ours: with what was tried, and with Timeout for a write and
// Unreachable for a read when the answer broke off.
func (s *Store) fault(what string, err error, write bool) error {
	if s.alive.Err() != nil {
		return s.closedError()
	}
	var f *fault.Error
	if errors.As(err, &f) {
		said := *f
		said.What = what
		if !write && said.Kind == fault.Timeout && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			said.Kind = fault.Unreachable
		}
		return &said
	}
	f = &fault.Error{Kind: fault.Unreachable, What: what, Where: s.where, Evidence: "the answer is incomplete", Err: err}
	if write || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		f.Kind = fault.Timeout
	}
	return f
}
