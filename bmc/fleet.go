// Package bmc turns machines on and off through their management controllers, and never guesses.
//
// A Fleet holds one box per BMC address: one queue, one held session, one circuit breaker. A Client is
// one machine's view of its box, with the identity the machine must have. The core dials nothing: the
// protocols come in as Openers (packages redfish, ipmi, amt, bmclib).
package bmc

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Opener reaches BMCs over one protocol.
type Opener interface {
	// Probe reports whether the box speaks the protocol. It MUST NOT send credentials. A box that
	// speaks it but cannot be trusted (wrong certificate) is a fault that is neither Unreachable nor
	// Timeout nor Unsupported.
	Probe(ctx context.Context, ep Endpoint) error
	// Open logs in. Credentials that are refused are a fault.Unauthorized.
	Open(ctx context.Context, ep Endpoint, cred Credential) (driver.BMC, error)
}

// Clock is the time a Fleet lives in.
type Clock interface {
	Now() time.Time
	// Sleep returns early with ctx's error.
	Sleep(ctx context.Context, d time.Duration) error
}

// Config of a Fleet. Openers and Credentials are required; the rest has defaults.
type Config struct {
	Openers     map[Protocol]Opener
	Credentials func(ctx context.Context, ref string) (Credential, error)
	Clock       Clock        // default: the machine's
	Logger      *slog.Logger // default: discard

	CallTimeout      time.Duration // one call with its login; default 15 s
	PollTimeout      time.Duration // one read in Poll with its login; default 5 s
	BreakerThreshold int           // silent calls in a row until the breaker opens; default 3
	BreakerOpen      time.Duration // first time it stays open, doubled up to 8 times; default 15 s
	ProtocolTTL      time.Duration // how long a probed protocol is remembered; default 1 h
	// AllowUnidentified lets machines without ExpectUUID and ExpectSerial be switched. Hazards H10 and
	// H11 (address reused, board replaced) are then not guarded against.
	AllowUnidentified bool
}

// Validate fills in the defaults and names the first key that is wrong.
func (c *Config) Validate() error {
	if len(c.Openers) == 0 {
		return fault.New(fault.Invalid, "bmc config: openers: at least one protocol is needed")
	}
	if c.Credentials == nil {
		return fault.New(fault.Invalid, "bmc config: credentials: a resolver is needed")
	}
	for _, d := range []struct {
		key string
		v   *time.Duration
		def time.Duration
	}{{"callTimeout", &c.CallTimeout, 15 * time.Second}, {"pollTimeout", &c.PollTimeout, 5 * time.Second},
		{"breakerOpen", &c.BreakerOpen, 15 * time.Second}, {"protocolTTL", &c.ProtocolTTL, time.Hour}} {
		switch {
		case *d.v < 0:
			return fault.Newf(fault.Invalid, "bmc config: %s: %s is negative", d.key, *d.v)
		case *d.v == 0:
			*d.v = d.def
		}
	}
	if c.BreakerThreshold < 0 {
		return fault.Newf(fault.Invalid, "bmc config: breakerThreshold: %d is negative", c.BreakerThreshold)
	}
	if c.BreakerThreshold == 0 {
		c.BreakerThreshold = 3
	}
	if c.Clock == nil {
		c.Clock = wallClock{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

type wallClock struct{}

func (wallClock) Now() time.Time { return time.Now() }

func (wallClock) Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Fleet is all BMCs of a site. It is safe for concurrent use.
type Fleet struct {
	cfg Config

	mu      sync.Mutex
	boxes   map[string]*box // by host:port as given; the protocol's default port is not filled in
	clients map[Endpoint]*Client
}

// NewFleet returns a Fleet that has dialled nothing yet.
func NewFleet(cfg Config) (*Fleet, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Fleet{cfg: cfg, boxes: map[string]*box{}, clients: map[Endpoint]*Client{}}, nil
}

// Client returns the client of one machine's BMC. Equal endpoints get the same Client; endpoints with the
// same address share the queue, the session and the breaker of the box. An invalid endpoint shows at the
// first call.
func (f *Fleet) Client(ep Endpoint) *Client {
	if ep.Protocol == "" || ep.Protocol == Auto {
		ep.Protocol = ep.speaks()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.clients[ep]; c != nil {
		return c
	}
	key, err := ep.HostPort("")
	if err != nil {
		key = ep.Address
	}
	b := f.boxes[key]
	if b == nil {
		b = newBox(f.cfg)
		f.boxes[key] = b
	}
	c := &Client{ep: ep, box: b, cfg: f.cfg}
	f.clients[ep] = c
	return c
}

// Close logs out of every BMC, at most 64 at a time. Boxes that do not answer in ctx's time are left to
// expire the session themselves; their errors are joined.
func (f *Fleet) Close(ctx context.Context) error {
	f.mu.Lock()
	boxes := make([]*box, 0, len(f.boxes))
	for _, b := range f.boxes {
		boxes = append(boxes, b)
	}
	clear(f.boxes)
	clear(f.clients)
	f.mu.Unlock()

	var (
		g    errgroup.Group
		mu   sync.Mutex
		errs []error
	)
	g.SetLimit(64)
	for _, b := range boxes {
		g.Go(func() error {
			if err := b.close(ctx); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = g.Wait()
	return errors.Join(errs...)
}
