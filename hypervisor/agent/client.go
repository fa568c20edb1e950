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
}

// Client is a driver.Host on the other side of the agent protocol.
type Client struct {
	base    string
	machine string
	timeout time.Duration
	http    *http.Client
}

var _ driver.Host = (*Client)(nil)

// Dial prepares a client; the first call connects.
func Dial(c ClientConfig) (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, &fault.Error{Kind: fault.Invalid, Where: "host " + c.Machine, What: "agent address", Evidence: c.URL, Next: "it must be https://host:port"}
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	want := pki.AgentName(c.Machine, c.Epoch).String()
	t := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.Certificate},
		// The certificate names a machine and not an address, so the chain and the name are checked here.
		InsecureSkipVerify: true, //nolint:gosec // verified in full by VerifyConnection
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: c.CA, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
				return err
			}
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
				return fmt.Errorf("the agent is not %s", want)
			}
			return nil
		}}
	return &Client{base: strings.TrimSuffix(c.URL, "/"), machine: c.Machine, timeout: c.Timeout, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{TLSClientConfig: t, MaxConnsPerHost: 2, IdleConnTimeout: time.Minute,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}}}, nil
}

// Capacity implements driver.Host.
func (c *Client) Capacity(ctx context.Context) (out driver.Capacity, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/capacity", nil, &out)
}

// VMs implements driver.Host.
func (c *Client) VMs(ctx context.Context) (out []driver.VM, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/vms", nil, &out)
}

// Define implements driver.Host.
func (c *Client) Define(ctx context.Context, s driver.Spec) error {
	return c.call(ctx, http.MethodPut, vmPath(s.Name, ""), s, nil)
}

// Start implements driver.Host.
func (c *Client) Start(ctx context.Context, name string, epoch uint64) error {
	return c.call(ctx, http.MethodPost, withEpoch(vmPath(name, "/start"), epoch), nil, nil)
}

// Stop implements driver.Host.
func (c *Client) Stop(ctx context.Context, name string, epoch uint64) error {
	return c.call(ctx, http.MethodPost, withEpoch(vmPath(name, "/stop"), epoch), nil, nil)
}

// Undefine implements driver.Host.
func (c *Client) Undefine(ctx context.Context, name string, epoch uint64) error {
	return c.call(ctx, http.MethodDelete, withEpoch(vmPath(name, ""), epoch), nil, nil)
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

func vmPath(name, act string) string { return "/v1/vms/" + url.PathEscape(name) + act }

func withEpoch(path string, epoch uint64) string { return fmt.Sprintf("%s?epoch=%d", path, epoch) }

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	fail := func(k fault.Kind, evidence string, err error) error {
		return &fault.Error{Kind: k, Where: "host " + c.machine + ", agent " + c.base, What: method + " " + path, Evidence: evidence, Err: err}
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fail(fault.Internal, "", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return fail(fault.Internal, "", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fail(fault.Timeout, "no answer in "+c.timeout.String(), err)
		}
		return fail(fault.Unreachable, "", err)
	}
	defer resp.Body.Close()
	d := json.NewDecoder(io.LimitReader(resp.Body, maxBody))
	if resp.StatusCode != http.StatusOK {
		var p problem
		if err := d.Decode(&p); err != nil {
			return fail(fault.Internal, resp.Status, nil)
		}
		return fail(fault.ParseKind(p.Kind), p.Detail, nil)
	}
	if out == nil {
		return nil
	}
	if err := d.Decode(out); err != nil {
		return fail(fault.Internal, "the answer is not the JSON expected", err)
	}
	return nil
}
