// Package masking is what callers use to decide who reaches which volume of a storage array, whatever
// its vendor: it checks the request, lets one change at a time reach the array, bounds it in time,
// compares what the driver read back with what was asked, and says which array an error is about.
package masking

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// Config configures a Client.
type Config struct {
	Array string // name of the array, for errors and logs
	// ReadTimeout bounds Masks, Sessions and Strays. Zero means 15 s.
	ReadTimeout time.Duration
	// ApplyTimeout bounds Apply, the wait for its turn included. Zero means 60 s.
	ApplyTimeout time.Duration
	Logger       *slog.Logger // nil discards
}

// Validate names the key that is wrong.
func (c Config) Validate() error {
	if c.Array == "" {
		return fault.New(fault.Invalid, "Config.Array is missing")
	}
	if c.ReadTimeout < 0 || c.ApplyTimeout < 0 {
		return fault.New(fault.Invalid, "Config.ReadTimeout and Config.ApplyTimeout must not be negative")
	}
	return nil
}

// Client is one array. It is safe for concurrent use.
type Client struct {
	cfg  Config
	drv  driver.Array
	turn chan struct{}
}

var _ driver.Array = (*Client)(nil)

// New wraps a driver, which has to be safe for concurrent use and is the Client's to close.
func New(drv driver.Array, cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = 15 * time.Second
	}
	if cfg.ApplyTimeout == 0 {
		cfg.ApplyTimeout = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{cfg: cfg, drv: drv, turn: make(chan struct{}, 1)}, nil
}

func (c *Client) where() string { return "array " + c.cfg.Array }

// Masks reads the masks of all volumes of the array.
func (c *Client) Masks(ctx context.Context) ([]driver.Mask, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ReadTimeout)
	defer cancel()
	out, err := c.drv.Masks(ctx)
	return out, fault.Wrap(err, "read masks", c.where())
}

// Sessions lists who is logged in now.
func (c *Client) Sessions(ctx context.Context) ([]driver.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ReadTimeout)
	defer cancel()
	out, err := c.drv.Sessions(ctx)
	return out, fault.Wrap(err, "read sessions", c.where())
}

// Strays lists the sessions of initiators that their volume's mask does not name: somebody who got in
// beside a fence. Applying the volume's mask again ends them. Volumes that carry no epoch are not ours
// to judge.
func (c *Client) Strays(ctx context.Context) ([]driver.Session, error) {
	masks, err := c.Masks(ctx)
	if err != nil {
		return nil, err
	}
	sessions, err := c.Sessions(ctx)
	if err != nil {
		return nil, err
	}
	var out []driver.Session
	for _, s := range sessions {
		at := slices.IndexFunc(masks, func(m driver.Mask) bool { return m.Volume == s.Volume })
		if at >= 0 && masks[at].Epoch > 0 && !slices.Contains(masks[at].Initiators, s.Initiator) {
			out = append(out, s)
		}
	}
	return out, nil
}

// Apply converges the masks and returns them as read back.
//
// Errors, beside those of the transport: Invalid (the request), NotFound (a volume), Stale (a newer
// epoch is on the device), Unsafe (somebody else's rules stand in the way), Conflict (somebody else
// changes the volume), Unverified (it reads back differently, or a session without access lives on: the
// volume counts as not fenced). After any error the effect is unknown until the same call succeeds.
func (c *Client) Apply(ctx context.Context, change driver.MaskChange) (driver.MaskResult, error) {
	change, err := Check(change)
	if err != nil {
		return driver.MaskResult{}, fault.Wrap(err, "set masks", c.where())
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ApplyTimeout)
	defer cancel()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return driver.MaskResult{}, fault.Wrap(ctx.Err(), "wait for another change", c.where())
	}
	began := time.Now()
	res, err := c.drv.Apply(ctx, change)
	if err == nil {
		err = readBack(change, res)
	}
	if err != nil {
		c.cfg.Logger.WarnContext(ctx, "masks not set", "array", c.cfg.Array, "owner", change.Owner, "err", err)
		return driver.MaskResult{}, fault.Wrap(err, "set masks", c.where())
	}
	c.cfg.Logger.InfoContext(ctx, "masks set", "array", c.cfg.Array, "owner", change.Owner, "changed", res.Changed, "took", time.Since(began))
	return res, nil
}

// Close closes the driver.
func (c *Client) Close() error { return fault.Wrap(c.drv.Close(), "close", c.where()) }

// readBack compares what a driver says it read with what was asked.
func readBack(change driver.MaskChange, res driver.MaskResult) error {
	for _, want := range change.Masks {
		at := slices.IndexFunc(res.After, func(m driver.Mask) bool { return m.Volume == want.Volume })
		if at < 0 {
			return &fault.Error{Kind: fault.Unverified, Where: "volume " + want.Volume, What: "was not read back"}
		}
		got := res.After[at]
		initiators := slices.Sorted(slices.Values(got.Initiators))
		if got.Epoch != want.Epoch || !slices.Equal(initiators, want.Initiators) {
			return &fault.Error{Kind: fault.Unverified, Where: "volume " + want.Volume,
				Evidence: fmt.Sprintf("reads back %v at epoch %d, not %v at epoch %d", initiators, got.Epoch, want.Initiators, want.Epoch)}
		}
	}
	return nil
}

const (
	maxMasks      = 10_000
	maxInitiators = 1_000 // of one volume
)

// Check says what is wrong with a change, and returns it with all lists sorted.
func Check(c driver.MaskChange) (driver.MaskChange, error) {
	invalid := func(where, format string, args ...any) error {
		return &fault.Error{Kind: fault.Invalid, Where: where, What: fmt.Sprintf(format, args...)}
	}
	switch {
	case len(c.Masks) == 0:
		return c, invalid("", "an empty change: nothing selects nothing (rule F9)")
	case len(c.Masks) > maxMasks:
		return c, invalid("", "%d masks, more than %d", len(c.Masks), maxMasks)
	case c.Owner == "" || len(c.Owner) > 100 || strings.ContainsFunc(c.Owner, notPlain):
		return c, invalid("", "owner %.100q is empty, longer than 100 bytes or has spaces or control characters", c.Owner)
	}
	masks := slices.Clone(c.Masks)
	seen := map[string]bool{}
	for i, m := range masks {
		where := fmt.Sprintf("volume %.250q", m.Volume)
		switch {
		case m.Volume == "" || len(m.Volume) > 250 || strings.ContainsFunc(m.Volume, notPlain):
			return c, invalid(where, "a volume's name is 1 to 250 bytes without spaces or control characters")
		case seen[m.Volume]:
			return c, invalid(where, "named twice")
		case m.Epoch == 0:
			return c, invalid(where, "epoch 0 stands for none")
		case len(m.Initiators) > maxInitiators:
			return c, invalid(where, "%d initiators, more than %d", len(m.Initiators), maxInitiators)
		}
		seen[m.Volume] = true
		// A copy that is never nil: nobody is a list of its own, not a missing one.
		masks[i].Initiators = append([]string{}, m.Initiators...)
		slices.Sort(masks[i].Initiators)
		kinds := map[string]bool{}
		for n, s := range masks[i].Initiators {
			kind, err := initiatorKind(s)
			if err != nil {
				return c, fault.Wrap(err, "", where)
			}
			if kinds[kind] = true; len(kinds) > 1 {
				return c, invalid(where, "addresses and WWPNs in one mask")
			}
			if n > 0 && masks[i].Initiators[n-1] == s {
				return c, invalid(where, "initiator %s twice", s)
			}
		}
	}
	c.Masks = masks
	return c, nil
}

func notPlain(r rune) bool { return r <= ' ' || r == 0x7f || r > 0x7f }

// initiatorKind tells addresses from WWPNs, and refuses what is neither, in its one usual spelling. A WWPN
// can be read as an IPv6 address, in a range that is not assigned (RFC 4291 section 2.4), so it goes first.
func initiatorKind(s string) (string, error) {
	if CheckWWPN(s) == nil {
		return "wwpn", nil
	}
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return "", fault.Newf(fault.Invalid, "initiator %.60q is neither an IP address nor a WWPN like 20:00:00:25:b5:00:00:01", s)
	case a.String() != s || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast():
		return "", fault.Newf(fault.Invalid, "initiator %q is no single host's address in its usual spelling", s)
	}
	return "address", nil
}

// CheckWWPN accepts eight pairs of lower-case hex digits with colons, not all zero.
func CheckWWPN(s string) error {
	ok := len(s) == 23 && strings.Trim(s, "0:") != ""
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		if i%3 == 2 {
			ok = c == ':'
		} else {
			ok = c >= '0' && c <= '9' || c >= 'a' && c <= 'f'
		}
	}
	if !ok {
		return fault.Newf(fault.Invalid, "%.60q is no WWPN like 20:00:00:25:b5:00:00:01", s)
	}
	return nil
}
