package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Control drives a lab in another process.
type Control struct {
	path   string
	client *http.Client
}

// controlTimeout bounds one verb: a lab of thousands of machines takes a while to burn.
const controlTimeout = 30 * time.Second

// maxReply bounds what is read of an answer.
const maxReply = 64 << 20

// Dial returns a client for the control socket at path. It connects with the first call.
func Dial(path string) *Control {
	var d net.Dialer
	return &Control{path: path, client: &http.Client{Timeout: controlTimeout, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
	}}}
}

// Close lets go of the connection.
func (c *Control) Close() error { c.client.CloseIdleConnections(); return nil }

// Burn is Lab.Burn.
func (c *Control) Burn(ctx context.Context, domain string) error {
	return c.do(ctx, "burn", act{Domain: domain})
}

// RestorePower is Lab.RestorePower.
func (c *Control) RestorePower(ctx context.Context, domain string) error {
	return c.do(ctx, "restore-power", act{Domain: domain})
}

// CutManagement is Lab.CutManagement.
func (c *Control) CutManagement(ctx context.Context, domain string) error {
	return c.do(ctx, "cut-management", act{Domain: domain})
}

// RestoreManagement is Lab.RestoreManagement.
func (c *Control) RestoreManagement(ctx context.Context, domain string) error {
	return c.do(ctx, "restore-management", act{Domain: domain})
}

// HalfBurn is Lab.HalfBurn.
func (c *Control) HalfBurn(ctx context.Context, domain string, running ...string) error {
	return c.do(ctx, "half-burn", act{Domain: domain, Running: running})
}

// Fault is Lab.Fault.
func (c *Control) Fault(ctx context.Context, kind, name, faultName, arg string) error {
	return c.do(ctx, "fault", act{Kind: kind, Name: name, Fault: faultName, Arg: arg})
}

// ClearFault is Lab.ClearFault.
func (c *Control) ClearFault(ctx context.Context, kind, name, faultName string) error {
	return c.do(ctx, "clear-fault", act{Kind: kind, Name: name, Fault: faultName})
}

// Power is Lab.Power.
func (c *Control) Power(ctx context.Context, machine string, on bool) error {
	return c.do(ctx, "power", act{Name: machine, On: on})
}

// Attest is Lab.Attest.
func (c *Control) Attest(ctx context.Context, machine string) error {
	return c.do(ctx, "attest", act{Name: machine})
}

// Status is Lab.Status.
func (c *Control) Status(ctx context.Context) (s Status, err error) {
	return s, c.get(ctx, "status", &s)
}

// Counters is Lab.Counters.
func (c *Control) Counters(ctx context.Context) (n Counters, err error) {
	return n, c.get(ctx, "counters", &n)
}

// CheckInvariants is Lab.CheckInvariants.
func (c *Control) CheckInvariants(ctx context.Context) (r Report, err error) {
	return r, c.get(ctx, "check-invariants", &r)
}

func (c *Control) do(ctx context.Context, verb string, a act) error {
	b, err := json.Marshal(a)
	if err != nil {
		return fault.Wrap(err, verb, "lab")
	}
	return c.call(ctx, http.MethodPost, verb, bytes.NewReader(b), &struct{}{})
}

func (c *Control) get(ctx context.Context, what string, into any) error {
	return c.call(ctx, http.MethodGet, what, nil, into)
}

func (c *Control) call(ctx context.Context, method, verb string, body io.Reader, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://lab/"+verb, body)
	if err != nil {
		return fault.Wrap(err, verb, "lab "+c.path)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return &fault.Error{Kind: fault.Unreachable, Where: "lab " + c.path, What: verb, Err: err, Next: "start one: rerack lab"}
	}
	defer resp.Body.Close()
	d := json.NewDecoder(io.LimitReader(resp.Body, maxReply))
	if resp.StatusCode != http.StatusOK {
		var p problem
		if err := d.Decode(&p); err != nil {
			return fault.Newf(fault.Internal, "lab answered %s to %s", resp.Status, verb)
		}
		return &fault.Error{Kind: fault.ParseKind(p.Kind), What: p.Detail}
	}
	return fault.Wrap(d.Decode(into), "read the answer to "+verb, "lab "+c.path)
}
