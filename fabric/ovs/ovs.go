// Package ovs drives one bridge of an Open vSwitch over OVSDB (RFC 7047).
//
// The database is the switch's configuration file: what is committed there durably is what the switch
// comes up with after a reload (rule F4). One call of Apply is one database transaction, which opens with
// `wait` operations on every row it is about: if anybody wrote one of them since it was read, the
// transaction fails as a whole. That makes the check of epochs and the change one atomic act, however
// many writers there are. Committing is not yet forwarding: ovs-vswitchd reads the database, and says in
// Open_vSwitch.cur_cfg up to which next_cfg it has acted. Apply raises next_cfg and waits for that, and
// Ports refuses to report settings that the daemon has not taken over.
//
// # Shut
//
// OVSDB has no column for an administratively closed port: Interface.admin_state is a status, written by
// the switch. A port is therefore shut by quarantine, from the columns of Port in
// ovs-vswitchd.conf.db(5): vlan_mode=access with tag=QuarantineVLAN and no trunks, so that it carries
// exactly that one VLAN and drops every tagged frame ("any packet with an 802.1Q header with a nonzero
// VLAN ID that ingresses on an access port is dropped"), and protected=true ("traffic between protected
// ports is blocked"), so that two quarantined ports cannot talk to each other either. Protected ports can
// send to unprotected ones: an uplink that trunks every VLAN would carry the quarantine VLAN to the next
// switch, and so does the bridge's local port to the switch's own host. Apply warns of such ports in its
// log; keep the VLAN off them. The carrier stays up, and link state goes on being evidence.
package ovs

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
)

// Switch is a driver.Switch. It holds no connection between calls and is safe for concurrent use.
type Switch struct{ cfg Config }

var _ driver.Switch = (*Switch)(nil)

// New returns a driver for one bridge. It does not dial.
func New(cfg Config) (*Switch, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Switch{cfg.withDefaults()}, nil
}

// Close does nothing: every call opens and closes its own connection.
func (s *Switch) Close() error { return nil }

// Ports reads the bridge's ports, sorted by name, but not its local port. It is fault.Unverified when the
// switch daemon lags behind its database.
func (s *Switch) Ports(ctx context.Context) ([]driver.Port, error) {
	ses, err := dial(ctx, s.cfg)
	if err != nil {
		return nil, err
	}
	defer ses.close()
	snap, err := s.read(ctx, ses)
	if err != nil {
		return nil, err
	}
	if err := s.settle(ctx, ses, snap); err != nil {
		return nil, err
	}
	out := make([]driver.Port, 0, len(snap.ports))
	for _, name := range sortedNames(snap.ports) {
		out = append(out, snap.ports[name].port(s.cfg.QuarantineVLAN))
	}
	return out, nil
}

// Apply sets the ports of c in one transaction. A setting that the port has already is not written again;
// one that differs in its epoch alone is. When somebody else writes one of the ports meanwhile it reads
// again and tries once more, and then gives up with fault.Conflict.
func (s *Switch) Apply(ctx context.Context, c driver.Change) (driver.Result, error) {
	want := make(map[string]vlans, len(c.Settings))
	for _, set := range c.Settings {
		if _, twice := want[set.Port]; twice {
			return driver.Result{}, fault.Newf(fault.Invalid, "port %s is set twice in one change", set.Port)
		}
		v, err := wanted(set, s.cfg.QuarantineVLAN)
		if err != nil {
			return driver.Result{}, err
		}
		want[set.Port] = v
	}
	ses, err := dial(ctx, s.cfg)
	if err != nil {
		return driver.Result{}, err
	}
	defer ses.close()
	return s.converge(ctx, ses, c, want)
}

func (s *Switch) converge(ctx context.Context, ses *session, c driver.Change, want map[string]vlans) (driver.Result, error) {
	changed, err := s.commit(ctx, ses, c, want)
	if fault.Is(err, fault.Conflict) {
		changed, err = s.commit(ctx, ses, c, want)
	}
	if err != nil {
		return driver.Result{}, err
	}
	return s.readBack(ctx, ses, c, want, changed)
}

// commit is one try: read, check, and write if there is anything to write. It returns the ports it wrote.
func (s *Switch) commit(ctx context.Context, ses *session, c driver.Change, want map[string]vlans) ([]string, error) {
	snap, err := s.read(ctx, ses)
	if err != nil {
		return nil, err
	}
	var changed []string
	var waits, writes []ovsdb.Operation
	for _, set := range c.Settings {
		r := snap.ports[set.Port]
		switch {
		case r == nil:
			return nil, &fault.Error{Kind: fault.NotFound, What: "set port " + set.Port, Evidence: "bridge " + s.cfg.Bridge + " has no such port"}
		case set.Epoch < r.epoch:
			return nil, stale(set, r)
		}
		waits = append(waits, r.unchanged())
		if r.epoch == set.Epoch && r.vlans.equal(want[set.Port]) {
			continue
		}
		changed = append(changed, set.Port)
		writes = append(writes, r.write(want[set.Port], set.Epoch, c.Owner)...)
	}
	s.warnOfLeaks(ctx, c, snap)
	if len(writes) == 0 {
		return nil, nil
	}
	comment, durable := "rerack: "+c.Owner, true
	ops := slices.Concat(waits, writes, []ovsdb.Operation{
		{Op: ovsdb.OperationMutate, Table: database, Where: byUUID(snap.root),
			Mutations: []ovsdb.Mutation{{Column: "next_cfg", Mutator: ovsdb.MutateOperationAdd, Value: 1}}},
		{Op: ovsdb.OperationComment, Comment: &comment},
		{Op: ovsdb.OperationCommit, Durable: &durable},
	})
	results, err := ses.transact(ctx, ops...)
	if err != nil {
		return nil, err
	}
	if i, failed := firstError(results); failed {
		return nil, refused(i < len(waits), results[i])
	}
	slices.Sort(changed)
	return changed, nil
}

// readBack waits until the daemon has acted, reads the ports again and compares.
func (s *Switch) readBack(ctx context.Context, ses *session, c driver.Change, want map[string]vlans, changed []string) (driver.Result, error) {
	snap, err := s.read(ctx, ses)
	if err != nil {
		return driver.Result{}, fault.Wrap(err, "read back", "")
	}
	if err := s.settle(ctx, ses, snap); err != nil {
		return driver.Result{}, err
	}
	res := driver.Result{Changed: changed}
	for _, set := range c.Settings {
		r := snap.ports[set.Port]
		switch {
		case r != nil && r.epoch > set.Epoch:
			return driver.Result{}, stale(set, r)
		case r == nil || r.epoch != set.Epoch || !r.vlans.equal(want[set.Port]):
			return driver.Result{}, &fault.Error{Kind: fault.Unverified, What: "set port " + set.Port,
				Evidence: "it was committed, and reads back otherwise", Next: "find out who else configures the switch"}
		}
		res.After = append(res.After, r.port(s.cfg.QuarantineVLAN))
	}
	return res, nil
}

// settle waits until the daemon has acted on everything that snap shows.
func (s *Switch) settle(ctx context.Context, ses *session, snap *snapshot) error {
	giveUp := time.Now().Add(s.cfg.Settle)
	pause := 2 * time.Millisecond
	for current := snap.current; current < snap.nextCfg; {
		if time.Now().After(giveUp) {
			return &fault.Error{Kind: fault.Unverified, What: "wait for the switch daemon",
				Evidence: fmt.Sprintf("it has acted up to configuration %d, the database is at %d", current, snap.nextCfg),
				Next:     "check that ovs-vswitchd runs"}
		}
		select {
		case <-ctx.Done():
			return netError(ctx, "wait for the switch daemon", ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, 100*time.Millisecond)
		results, err := ses.transact(ctx, ovsdb.Operation{Op: ovsdb.OperationSelect, Table: database,
			Where: []ovsdb.Condition{}, Columns: []string{"next_cfg", "cur_cfg"}})
		if err != nil {
			return err
		}
		if _, failed := firstError(results); failed {
			return &fault.Error{Kind: results[0].kind(), What: "read cur_cfg", Evidence: results[0].text()}
		}
		if _, current, err = parseCfg(results[0].Rows); err != nil {
			return strange("answer", nil, err)
		}
	}
	return nil
}

// warnOfLeaks tells of open ports that carry the quarantine VLAN while ports are being put there.
func (s *Switch) warnOfLeaks(ctx context.Context, c driver.Change, snap *snapshot) {
	if !slices.ContainsFunc(c.Settings, func(set driver.Setting) bool { return set.Shut }) {
		return
	}
	asked := map[string]bool{}
	for _, set := range c.Settings {
		asked[set.Port] = true
	}
	var leaks []string
	for _, name := range sortedNames(snap.ports) {
		if v := snap.ports[name].vlans; !asked[name] && !v.Protected && v.carries(s.cfg.QuarantineVLAN) {
			leaks = append(leaks, name)
		}
	}
	if l := snap.local; l != nil && !l.vlans.Protected && l.vlans.carries(s.cfg.QuarantineVLAN) {
		leaks = append(leaks, l.name)
	}
	if len(leaks) > 0 {
		s.cfg.Logger.WarnContext(ctx, "open ports carry the quarantine VLAN", "switch", s.cfg.Endpoint,
			"bridge", s.cfg.Bridge, "vlan", s.cfg.QuarantineVLAN, "ports", leaks)
	}
}

func stale(set driver.Setting, r *row) error {
	return &fault.Error{Kind: fault.Stale, What: "set port " + set.Port,
		Evidence: fmt.Sprintf("planned with epoch %d, the port has %d of %q", set.Epoch, r.epoch, r.externalIDs[OwnerKey])}
}

// refused tells of a write that the database did not take.
func refused(waiting bool, r opResult) error {
	if waiting && r.Error == "timed out" {
		return &fault.Error{Kind: fault.Conflict, What: "set ports", Evidence: "somebody else wrote one of them in between"}
	}
	return &fault.Error{Kind: r.kind(), What: "set ports", Evidence: "the database refused: " + r.text()}
}
