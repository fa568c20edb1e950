package agent

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
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
)

// ClientConfig says which agent is meant: it must prove that it is this machine in this boot.
type ClientConfig struct {
	URL         string // https://host:port
	Certificate tls.Certificate
	CA          *x509.CertPool
	Machine     string
	Epoch       uint64
	Timeout     time.Duration // of one call; default 15 s
	// Dial is the way to the agent; default is a direct one.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client is a driver.Host on the other side of the agent protocol.
type Client struct {
	base    string
	timeout time.Duration
	http    *http.Client
}

var _ driver.Host = (*Client)(nil)

// Validate names the first wrong key.
func (c ClientConfig) Validate() error {
	bad := func(key, evidence, next string) error {
		return &fault.Error{Kind: fault.Invalid, Where: "host " + c.Machine, What: "agent " + key, Evidence: evidence, Next: next}
	}
	// The machine itself says where its agent listens: nothing of that but an address is taken.
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return bad("URL", fmt.Sprintf("%.200q", c.URL), "it must be https://host:port")
	case len(c.Certificate.Certificate) == 0:
		return bad("Certificate", "missing", "")
	case c.CA == nil:
		return bad("CA", "missing", "without one the system's authorities would be trusted")
	case c.Machine == "":
		return bad("Machine", "missing", "")
	case c.Epoch == 0:
		return bad("Epoch", "missing", "")
	case c.Timeout < 0:
		return bad("Timeout", "negative", "")
	}
	return nil
}

// Dial prepares a client; the first call connects.
func Dial(c ClientConfig) (*Client, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	want := pki.AgentName(c.Machine, c.Epoch).String()
	t := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.Certificate},
		// The certificate names a machine and not an address, so the chain and the name are checked here.
		InsecureSkipVerify: true, //nolint:gosec // verified in full by VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			refuse := &fault.Error{Kind: fault.Unauthorized, What: "whoever answers is not " + want,
				Next: "if the machine was booted again since, boot it as a host by a new run"}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.CA, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				refuse.Err = err
				return refuse
			}
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
				refuse.Evidence = fmt.Sprintf("it is %v", leaf.URIs)
				return refuse
			}
			return nil
		}}
	return &Client{base: strings.TrimRight(c.URL, "/"), timeout: c.Timeout, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{TLSClientConfig: t, MaxConnsPerHost: 2, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 16 << 10,
			DialContext: c.Dial}}}, nil
}

// Capacity implements driver.Host.
func (c *Client) Capacity(ctx context.Context) (driver.Capacity, error) {
	var out driver.Capacity
	if err := c.call(ctx, http.MethodGet, "/v1/capacity", nil, &out); err != nil {
		return driver.Capacity{}, err
	}
	return out, nil
}

// VMs implements driver.Host.
func (c *Client) VMs(ctx context.Context) ([]driver.VM, error) {
	var out []driver.VM
	if err := c.call(ctx, http.MethodGet, "/v1/vms", nil, &out); err != nil {
		return nil, err
	}
	return out, nil
}

// Define implements driver.Host.
func (c *Client) Define(ctx context.Context, s driver.Spec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	return c.call(ctx, http.MethodPut, vmPath(s.Name, ""), s, nil)
}

// Start implements driver.Host.
func (c *Client) Start(ctx context.Context, name string, epoch uint64) error {
	return c.act(ctx, http.MethodPost, name, "/start", epoch)
}

// Stop implements driver.Host.
func (c *Client) Stop(ctx context.Context, name string, epoch uint64) error {
	return c.act(ctx, http.MethodPost, name, "/stop", epoch)
}

// Undefine implements driver.Host.
func (c *Client) Undefine(ctx context.Context, name string, epoch uint64) error {
	return c.act(ctx, http.MethodDelete, name, "", epoch)
}

// Drain implements driver.Host.
func (c *Client) Drain(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/drain", nil, nil)
}

// Close implements driver.Host.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// act asks for something about one VM. Its name is part of a path, which no other text may become.
func (c *Client) act(ctx context.Context, method, name, verb string, epoch uint64) error {
	if err := driver.CheckName(name); err != nil {
		return err
	}
	return c.call(ctx, method, fmt.Sprintf("%s?epoch=%d", vmPath(name, verb), epoch), nil, nil)
}

func vmPath(name, verb string) string { return "/v1/vms/" + name + verb }

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	err := c.ask(ctx, method, path, in, out)
	return fault.Wrap(err, method+" "+path, "agent "+c.base)
}

func (c *Client) ask(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unanswered(ctx, err)
	}
	defer resp.Body.Close()
	r := &reader{r: resp.Body}
	err = decodeAnswer(resp.StatusCode, r, out)
	if r.err != nil {
		return c.unanswered(ctx, r.err)
	}
	if err != nil && ctx.Err() != nil { // an agent that sees the caller go ends its answer where it was
		return c.unanswered(ctx, ctx.Err())
	}
	return err
}

// reader remembers why the connection failed: what arrived until then is no answer of the agent's.
type reader struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// unanswered says what it means that no answer came. Whether the call had its effect is unknown.
func (c *Client) unanswered(ctx context.Context, err error) error {
	var known *fault.Error
	var remote *net.OpError
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, context.DeadlineExceeded) || errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &fault.Error{Kind: fault.Timeout, Evidence: "no answer in time", Err: err}
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert: the agent refuses our certificate
		return &fault.Error{Kind: fault.Unauthorized, Evidence: "the agent refuses us", Err: err}
	}
	return &fault.Error{Kind: fault.Unreachable, Err: err}
}
