// Package brocade sets the zones of a Fibre Channel fabric through the REST interface of a Brocade switch
// with FOS 9.0 or later, which is where brocade-zone/fabric-lock appeared.
//
// A change is one zoning transaction of the fabric: the edits are staged in the defined configuration,
// then the configuration in force is enabled again with the checksum that was read before. The switch
// refuses that when anybody committed in between. Any other outcome is undone by clearing the pending
// changes. Zones, aliases and configurations of others are read and never written; which configuration
// is in force does not change.
//
// Fabrics A and B of a SAN are two Fabrics of this package.
package brocade

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// Fabric is a driver.Fabric. It holds no session between calls and is safe for concurrent use.
type Fabric struct{ cfg Config }

var _ driver.Fabric = (*Fabric)(nil)

// New returns a driver for one fabric. It does not dial.
func New(cfg Config) (*Fabric, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Fabric{cfg.withDefaults()}, nil
}

// Close does nothing: every call ends its own session.
func (f *Fabric) Close() error { return nil }

// Zones reads the zones of ours that are in force, by name. A zone without initiators lists everything
// that is in it as targets.
func (f *Fabric) Zones(ctx context.Context) ([]driver.Zone, error) {
	s, err := login(ctx, f.cfg)
	if err != nil {
		return nil, err
	}
	defer s.logout(ctx)
	db, err := s.readEffective(ctx)
	if err != nil {
		return nil, err
	}
	var out []driver.Zone
	for _, d := range db.enabled {
		if z, ok := fromDevice(d); ok {
			out = append(out, z)
		}
	}
	slices.SortFunc(out, func(a, b driver.Zone) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Logins lists the port names in the name server, sorted.
func (f *Fabric) Logins(ctx context.Context) ([]string, error) {
	s, err := login(ctx, f.cfg)
	if err != nil {
		return nil, err
	}
	defer s.logout(ctx)
	r, err := s.get(ctx, pathNameServer)
	if fault.Is(err, fault.NotFound) { // "No entries in Name Server"
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range r.Devices {
		names = append(names, d.PortName)
	}
	return canonical(names), nil
}

// Apply sets the zones of c in one transaction. It is fault.Busy, naming who, while somebody else's
// transaction is open, fault.Conflict when somebody committed in between, fault.Stale for an epoch that
// has passed, and fault.Unsafe when no configuration is in force: enabling one would cut off everything
// that it does not mention.
func (f *Fabric) Apply(ctx context.Context, c driver.ZoneChange) (driver.ZoneResult, error) {
	for _, z := range c.Zones {
		if len(z.Targets) == 0 {
			return driver.ZoneResult{}, fault.Newf(fault.Invalid, "zone %s has no targets", z.Name)
		}
	}
	s, err := login(ctx, f.cfg)
	if err != nil {
		return driver.ZoneResult{}, err
	}
	defer s.logout(ctx)
	return s.apply(ctx, c)
}

func (s *session) apply(ctx context.Context, c driver.ZoneChange) (driver.ZoneResult, error) {
	if err := s.clearTheWay(ctx); err != nil {
		return driver.ZoneResult{}, err
	}
	before, err := s.readAll(ctx)
	if err != nil {
		return driver.ZoneResult{}, err
	}
	e, err := before.plan(c.Zones)
	if err != nil {
		return driver.ZoneResult{}, err
	}
	if len(e.changed) > 0 {
		switch {
		case before.cfg == "":
			return driver.ZoneResult{}, &fault.Error{Kind: fault.Unsafe, What: "set zones", Where: s.cfg.URL, Evidence: "no zone configuration is in force",
				Next: "enable one that covers every device (cfgenable), then repeat"}
		case before.token != 0:
			return driver.ZoneResult{}, &fault.Error{Kind: fault.Busy, What: "set zones", Where: s.cfg.URL,
				Evidence: fmt.Sprintf("transaction %d is open at the switch, and its lock has expired", before.token),
				Next:     "find out whose it is; cfgtransabort ends it"}
		}
		if err := s.transact(ctx, before, e, c.Zones); err != nil {
			return driver.ZoneResult{}, err
		}
	}
	return s.readBack(ctx, c, e.changed)
}

// readBack reads what is in force now and compares. What is defined says nothing: it shows the edits of
// whoever has a transaction open.
func (s *session) readBack(ctx context.Context, c driver.ZoneChange, changed []string) (driver.ZoneResult, error) {
	db, err := s.readEffective(ctx)
	if err != nil {
		return driver.ZoneResult{}, fault.Wrap(err, "read back", "")
	}
	res := driver.ZoneResult{Changed: changed}
	for _, z := range c.Zones {
		key := Key(z.Name)
		switch newest := db.newest(key); {
		case newest > z.Epoch:
			return driver.ZoneResult{}, &fault.Error{Kind: fault.Stale, What: "set zone " + z.Name, Where: s.cfg.URL,
				Evidence: fmt.Sprintf("planned with epoch %d, the fabric has %d by now", z.Epoch, newest)}
		case !db.inForce(z):
			return driver.ZoneResult{}, &fault.Error{Kind: fault.Unverified, What: "set zone " + z.Name, Where: s.cfg.URL,
				Evidence: "it was committed, and is not in force as it should be", Next: "find out who else sets zones; compare cfgshow on every switch"}
		}
		for _, d := range db.enabled {
			if keyOf(d.Name) == key {
				got, _ := fromDevice(d)
				got.Name = z.Name // a long name reads back cut
				res.After = append(res.After, got)
			}
		}
	}
	return res, nil
}

func (s *session) readEffective(ctx context.Context) (*zoneDB, error) {
	r, err := s.get(ctx, pathEffective)
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			return nil, &fault.Error{Kind: fault.Unsupported, What: "read the zoning", Where: s.cfg.URL, Evidence: "no resource brocade-zone",
				Next: "FOS 9.0 or later is needed", Err: err}
		}
		return nil, err
	}
	if r.Effective == nil || len(r.Effective.Checksum) != 32 {
		return nil, &fault.Error{Kind: fault.Internal, What: "read " + pathEffective, Where: s.cfg.URL, Evidence: "no checksum in the answer"}
	}
	e := r.Effective
	return &zoneDB{cfg: e.CfgName, checksum: e.Checksum, token: e.TransactionToken, enabled: e.EnabledZones}, nil
}

// readAll reads what is in force first: a commit between the two reads then fails by its checksum.
func (s *session) readAll(ctx context.Context) (*zoneDB, error) {
	db, err := s.readEffective(ctx)
	if err != nil {
		return nil, err
	}
	r, err := s.get(ctx, pathDefined)
	if fault.Is(err, fault.NotFound) { // nothing is defined
		return db, nil
	}
	if err != nil {
		return nil, err
	}
	if r.Defined == nil {
		return nil, &fault.Error{Kind: fault.Internal, What: "read " + pathDefined, Where: s.cfg.URL, Evidence: "no configuration in the answer"}
	}
	db.zones = r.Defined.Zones
	for _, c := range r.Defined.Cfgs {
		if c.Name == db.cfg {
			db.members = c.Members
		}
	}
	return db, nil
}

// clearTheWay makes sure that no transaction is open. One of our own account that is older than any call
// of ours was left by a crash, and is cleared (hazard H23); anybody else's is respected (H22).
func (s *session) clearTheWay(ctx context.Context) error {
	l, err := s.readLock(ctx)
	if err != nil || l.Domain == 0 {
		return err
	}
	age := time.Duration(l.Timeout-l.RemainingTime) * time.Second
	if !s.ours(l) || age < s.cfg.StaleAfter {
		return s.held(l, age)
	}
	s.cfg.Logger.WarnContext(ctx, "clearing a zoning transaction that we left open", "switch", s.cfg.URL, "age", age)
	if err := s.abort(ctx); err != nil {
		return fault.Wrap(err, "clear the transaction that we left open", s.cfg.URL)
	}
	if l, err = s.readLock(ctx); err != nil || l.Domain == 0 {
		return err
	}
	return s.held(l, age)
}

func (s *session) readLock(ctx context.Context) (lock, error) {
	r, err := s.get(ctx, pathLock)
	switch {
	case fault.Is(err, fault.NotFound):
		return lock{}, &fault.Error{Kind: fault.Unsupported, What: "read the fabric lock", Where: s.cfg.URL, Next: "FOS 9.0 or later is needed", Err: err}
	case err != nil:
		return lock{}, err
	case r.Lock == nil:
		return lock{}, &fault.Error{Kind: fault.Internal, What: "read " + pathLock, Where: s.cfg.URL, Evidence: "no lock in the answer"}
	}
	return *r.Lock, nil
}

// ours says whether the holder of the lock is our account. The application's name is given by newer
// releases only.
func (s *session) ours(l lock) bool {
	return l.User == s.user && (l.Application == "" || l.Application == application)
}

func (s *session) held(l lock, age time.Duration) error {
	e := &fault.Error{Kind: fault.Busy, What: "set zones", Where: s.cfg.URL,
		Evidence: fmt.Sprintf("%q holds the zoning lock since %s (domain %d, %s, from %s)", l.User, age, l.Domain, l.Interface, l.Address),
		Next:     "ask them to finish, or wait for the lock to expire"}
	if s.ours(l) {
		e.Next = fmt.Sprintf("another change of ours is under way, or crashed; it is cleared when older than %s", s.cfg.StaleAfter)
	}
	return e
}

// abort clears the pending changes.
func (s *session) abort(ctx context.Context) error {
	return s.send(ctx, http.MethodPatch, pathEffective, effective{CfgAction: actionAbort})
}
