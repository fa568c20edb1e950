// Package probe checks that a workload serves, from inside its site's networks: through the SOCKS5
// proxy that the site names (RFC 1928), or directly when it names none.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/net/proxy"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// timeout of one attempt. The workflow repeats it until the workload's deadline.
const timeout = 3 * time.Second

// Prober is stateless.
type Prober struct{}

// Probe makes one attempt and returns nil when the workload serves, else fault.Unreachable for no
// answer and fault.Unverified for a wrong one.
func (Prober) Probe(ctx context.Context, site topology.Site, address string, h topology.Health) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	dial, err := Dialer(site.Spec.ProbeProxy)
	if err != nil {
		return err
	}
	if h.TCPPort != 0 {
		where := net.JoinHostPort(address, strconv.Itoa(h.TCPPort))
		conn, err := dial(ctx, "tcp", where)
		if err != nil {
			return unreachable(where, err)
		}
		if err := conn.Close(); err != nil {
			return unreachable(where, err)
		}
	}
	if h.HTTPPort == 0 {
		return nil
	}
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(address, strconv.Itoa(h.HTTPPort)), Path: h.Path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return &fault.Error{Kind: fault.Invalid, Where: u.String(), What: "health check", Err: err}
	}
	c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		return unreachable(u.String(), err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return &fault.Error{Kind: fault.Unverified, Where: u.String(), What: "health check", Evidence: "it answers " + resp.Status}
	}
	return nil
}

func unreachable(where string, err error) error {
	return &fault.Error{Kind: fault.Unreachable, Where: where, What: "health check", Err: err}
}

// DialFunc connects, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer connects through a SOCKS5 proxy, socks5://host:port, or directly when that is empty.
func Dialer(proxyURL string) (DialFunc, error) {
	if proxyURL == "" {
		return (&net.Dialer{}).DialContext, nil
	}
	u, err := url.Parse(proxyURL)
	if err != nil || u.Scheme != "socks5" {
		return nil, &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("proxy %q", proxyURL), Next: "write socks5://host:port"}
	}
	d, err := proxy.SOCKS5("tcp", u.Host, nil, &net.Dialer{})
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "proxy", Err: err}
	}
	cd, ok := d.(proxy.ContextDialer)
	if !ok {
		return nil, errors.New("the SOCKS5 dialer takes no context")
	}
	return cd.DialContext, nil
}
