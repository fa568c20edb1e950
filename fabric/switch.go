// Package fabric sets VLANs on the ports of network switches: the part that is the same for every vendor.
//
// Switch takes a driver and adds what must hold for all of them: changes are checked before they reach the
// device, ports of the control plane are out of reach, one change at a time is in flight per switch, every
// call has a deadline, and what the driver says it read back is held against what was asked for.
package fabric

import (
	"context"
	"fmt"
	"slices"

	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
)

// Switch is one network switch. It is safe for concurrent use, and a driver.Switch itself.
type Switch struct {
	drv       driver.Switch
	cfg       Config
	protected map[string]bool
	writer    chan struct{} // one token: its holder may change the switch
}

var _ driver.Switch = (*Switch)(nil)

// New puts a switch on top of its driver, which it closes with Close.
func New(drv driver.Switch, cfg Config) (*Switch, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Switch{drv: drv, cfg: cfg.withDefaults(), protected: map[string]bool{}, writer: make(chan struct{}, 1)}
	for _, p := range cfg.Protected {
		s.protected[p] = true
	}
	s.writer <- struct{}{}
	return s, nil
}

// Close frees the driver's session.
func (s *Switch) Close() error { return s.drv.Close() }

// Ports reads every port. On error nothing is known, least of all that a link is down.
func (s *Switch) Ports(ctx context.Context) ([]driver.Port, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	ports, err := s.drv.Ports(ctx)
	if err != nil {
		return nil, s.wrap(err, "read ports")
	}
	return ports, nil
}

// Apply converges the ports of c: all of them, or none. Its errors are fault.Invalid for a change that
// makes no sense, fault.Unsafe for one that touches a protected port, fault.Stale, fault.Conflict and
// fault.NotFound, of which nothing was changed, fault.Busy when the queue before the switch did not move
// in time, and fault.Unverified, fault.Timeout and fault.Unreachable, after which the same call may and
// should be repeated.
func (s *Switch) Apply(ctx context.Context, c driver.Change) (driver.Result, error) {
	if err := s.check(c); err != nil {
		return driver.Result{}, s.wrap(err, "set ports")
	}
	select {
	case <-s.writer:
	case <-ctx.Done():
		return driver.Result{}, s.wrap(&fault.Error{Kind: fault.Busy, What: "wait for the turn",
			Evidence: "another change of this switch is still under way", Err: ctx.Err()}, "set ports")
	}
	defer func() { s.writer <- struct{}{} }()

	ctx, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
	defer cancel()
	res, err := s.drv.Apply(ctx, c)
	if err == nil {
		err = verify(c, res)
	}
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "ports not set", "switch", s.cfg.Name, "owner", c.Owner, "error", err)
		return driver.Result{}, s.wrap(err, "set ports")
	}
	s.cfg.Logger.InfoContext(ctx, "ports set", "switch", s.cfg.Name, "owner", c.Owner, "changed", res.Changed)
	return res, nil
}

func (s *Switch) wrap(err error, what string) error {
	return fault.Wrap(err, what, "switch "+s.cfg.Name)
}

// check refuses what no switch should be asked.
func (s *Switch) check(c driver.Change) error {
	if len(c.Settings) == 0 {
		return fault.New(fault.Invalid, "an empty change selects nothing")
	}
	seen := map[string]bool{}
	for _, set := range c.Settings {
		if err := checkSetting(set); err != nil {
			return err
		}
		if seen[set.Port] {
			return fault.Newf(fault.Invalid, "port %s is set twice in one change", set.Port)
		}
		seen[set.Port] = true
		if s.protected[set.Port] {
			return &fault.Error{Kind: fault.Unsafe, What: "port " + set.Port, Evidence: "is on the path of the control plane itself",
				Next: "take it out of the plan, or out of the switch's protected ports"}
		}
	}
	return nil
}

func checkSetting(set driver.Setting) error {
	bad := func(format string, args ...any) error {
		return &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("port %q", set.Port), Evidence: fmt.Sprintf(format, args...)}
	}
	switch {
	case set.Port == "":
		return bad("no name")
	case set.Epoch == 0:
		return bad("no epoch: a change that carries none could not be outlived")
	case set.Untagged != 0 && !validVLAN(set.Untagged):
		return bad("VLAN %d is not in 1..4094", set.Untagged)
	}
	seen := map[int]bool{}
	for _, id := range set.Tagged {
		switch {
		case !validVLAN(id):
			return bad("VLAN %d is not in 1..4094", id)
		case seen[id]:
			return bad("VLAN %d is listed twice", id)
		case id == set.Untagged:
			return bad("VLAN %d both tagged and untagged", id)
		}
		seen[id] = true
	}
	if !set.Shut && set.Untagged == 0 && len(set.Tagged) == 0 {
		return bad("neither a VLAN nor shut")
	}
	return nil
}

func validVLAN(id int) bool { return id >= 1 && id <= 4094 }

// verify holds what the driver read back against what was asked.
func verify(c driver.Change, res driver.Result) error {
	after := make(map[string]driver.Port, len(res.After))
	for _, p := range res.After {
		after[p.Name] = p
	}
	for _, set := range c.Settings {
		p, ok := after[set.Port]
		var why string
		switch {
		case !ok:
			why = "it was not read back"
		case p.Epoch != set.Epoch:
			why = fmt.Sprintf("epoch %d was asked, %d reads back", set.Epoch, p.Epoch)
		case p.Shut != set.Shut:
			why = fmt.Sprintf("shut %t was asked, %t reads back", set.Shut, p.Shut)
		case set.Shut:
		case p.AllVLANs || p.Untagged != set.Untagged || !slices.Equal(p.Tagged, slices.Sorted(slices.Values(set.Tagged))):
			why = fmt.Sprintf("VLANs %s were asked, %s read back", words(set.Untagged, set.Tagged, false), words(p.Untagged, p.Tagged, p.AllVLANs))
		}
		if why != "" {
			return &fault.Error{Kind: fault.Unverified, What: "port " + set.Port, Evidence: why}
		}
	}
	return nil
}

func words(untagged int, tagged []int, all bool) string {
	if all {
		return fmt.Sprintf("all (untagged %d)", untagged)
	}
	return fmt.Sprintf("%d untagged and %v tagged", untagged, tagged)
}
