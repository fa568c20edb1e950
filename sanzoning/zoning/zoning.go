// Package zoning decides who sees whom on a Fibre Channel fabric: the part that is the same for every
// vendor.
//
// Fabric takes a driver and adds what must hold for all of them: changes are checked before they reach the
// device, one change at a time is in flight per fabric, every call has a deadline, and what the driver
// says it read back is held against what was asked for.
package zoning

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// Config says what is known of a fabric beyond its driver.
type Config struct {
	Name string // for messages
	// ReadTimeout bounds Zones and Logins; 15 s when 0.
	ReadTimeout time.Duration
	// ApplyTimeout bounds a change once it is its turn; 60 s when 0: a fabric commits slowly.
	ApplyTimeout time.Duration
	// Logger gets changes and refusals; discarded when nil.
	Logger *slog.Logger
}

// Validate names the first wrong key.
func (c Config) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, What: "fabric config " + key, Evidence: why}
	}
	switch {
	case c.Name == "":
		return bad("name", "missing")
	case c.ReadTimeout < 0:
		return bad("readTimeout", "negative")
	case c.ApplyTimeout < 0:
		return bad("applyTimeout", "negative")
	}
	return nil
}

// Fabric is one FC fabric. It is safe for concurrent use, and a driver.Fabric itself.
type Fabric struct {
	drv    driver.Fabric
	cfg    Config
	writer chan struct{} // one token: its holder may change the fabric
}

var _ driver.Fabric = (*Fabric)(nil)

// New puts a fabric on top of its driver, which it closes with Close.
func New(drv driver.Fabric, cfg Config) (*Fabric, error) {
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
	f := &Fabric{drv: drv, cfg: cfg, writer: make(chan struct{}, 1)}
	f.writer <- struct{}{}
	return f, nil
}

// Close frees the driver's session.
func (f *Fabric) Close() error { return f.drv.Close() }

// Zones reads the zones of ours that are in force.
func (f *Fabric) Zones(ctx context.Context) ([]driver.Zone, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.ReadTimeout)
	defer cancel()
	zones, err := f.drv.Zones(ctx)
	return zones, f.wrap(err, "read zones")
}

// Logins lists the port names that are logged in. On error nothing is known, least of all that a port is
// gone.
func (f *Fabric) Logins(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, f.cfg.ReadTimeout)
	defer cancel()
	logins, err := f.drv.Logins(ctx)
	return logins, f.wrap(err, "read logins")
}

// Apply converges the zones of c: all of them, or none. Its errors are fault.Invalid for a change that
// makes no sense, fault.Stale, fault.Conflict and fault.Unsafe, of which nothing was changed, fault.Busy
// while somebody else changes the fabric, and fault.Unverified, fault.Timeout and fault.Unreachable,
// after which the same call may and should be repeated.
func (f *Fabric) Apply(ctx context.Context, c driver.ZoneChange) (driver.ZoneResult, error) {
	if err := check(c); err != nil {
		return driver.ZoneResult{}, f.wrap(err, "set zones")
	}
	select {
	case <-f.writer:
	case <-ctx.Done():
		return driver.ZoneResult{}, f.wrap(&fault.Error{Kind: fault.Busy, What: "wait for the turn",
			Evidence: "another change of this fabric is still under way", Err: ctx.Err()}, "set zones")
	}
	defer func() { f.writer <- struct{}{} }()

	ctx, cancel := context.WithTimeout(ctx, f.cfg.ApplyTimeout)
	defer cancel()
	res, err := f.drv.Apply(ctx, c)
	if err == nil {
		err = verify(c, res)
	}
	if err != nil {
		f.cfg.Logger.WarnContext(ctx, "zones not set", "fabric", f.cfg.Name, "owner", c.Owner, "error", err)
		return driver.ZoneResult{}, f.wrap(err, "set zones")
	}
	f.cfg.Logger.InfoContext(ctx, "zones set", "fabric", f.cfg.Name, "owner", c.Owner, "changed", res.Changed)
	return res, nil
}

func (f *Fabric) wrap(err error, what string) error {
	return fault.Wrap(err, what, "fabric "+f.cfg.Name)
}

var (
	wwpn     = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){7}$`)
	zoneName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$`)
)

// check refuses what no fabric should be asked.
func check(c driver.ZoneChange) error {
	if len(c.Zones) == 0 {
		return fault.New(fault.Invalid, "an empty change selects nothing")
	}
	seen := map[string]bool{}
	for _, z := range c.Zones {
		if err := checkZone(z); err != nil {
			return err
		}
		if seen[z.Name] {
			return fault.Newf(fault.Invalid, "zone %s is set twice in one change", z.Name)
		}
		seen[z.Name] = true
	}
	return nil
}

func checkZone(z driver.Zone) error {
	bad := func(format string, args ...any) error {
		return &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("zone %q", z.Name), Evidence: fmt.Sprintf(format, args...)}
	}
	switch {
	case !zoneName.MatchString(z.Name):
		return bad("a name is up to 127 letters, digits and . _ -")
	case z.Epoch == 0:
		return bad("no epoch: a change that carries none could not be outlived")
	case len(z.Targets) == 0:
		return bad("no targets: nothing to be seen")
	}
	seen := map[string]bool{}
	for _, w := range slices.Concat(z.Initiators, z.Targets) {
		switch {
		case !wwpn.MatchString(w):
			return bad("%q is not a WWPN: eight bytes in lower case hex with colons", w)
		case w == "00:00:00:00:00:00:00:00" || w == "ff:ff:ff:ff:ff:ff:ff:ff":
			return bad("%s is nobody's WWPN", w)
		case seen[w]:
			return bad("%s is listed twice", w)
		}
		seen[w] = true
	}
	return nil
}

// verify holds what the driver read back against what was asked.
func verify(c driver.ZoneChange, res driver.ZoneResult) error {
	after := make(map[string]driver.Zone, len(res.After))
	for _, z := range res.After {
		after[z.Name] = z
	}
	sorted := func(s []string) []string { return slices.Sorted(slices.Values(s)) }
	for _, want := range c.Zones {
		got, ok := after[want.Name]
		var why string
		switch {
		case !ok:
			why = "it was not read back"
		case got.Epoch != want.Epoch:
			why = fmt.Sprintf("epoch %d was asked, %d reads back", want.Epoch, got.Epoch)
		case !slices.Equal(sorted(got.Initiators), sorted(want.Initiators)):
			why = fmt.Sprintf("initiators %v were asked, %v read back", want.Initiators, got.Initiators)
		case !slices.Equal(sorted(got.Targets), sorted(want.Targets)):
			why = fmt.Sprintf("targets %v were asked, %v read back", want.Targets, got.Targets)
		}
		if why != "" {
			return &fault.Error{Kind: fault.Unverified, What: "zone " + want.Name, Evidence: why}
		}
	}
	return nil
}
