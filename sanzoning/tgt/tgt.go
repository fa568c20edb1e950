// Package tgt masks the volumes of a Linux SCSI target daemon, tgt 1.0.x, over the daemon's own
// management socket. A volume is a target, named by its IQN; its mask is the target's access list.
//
// What tgt does, and what follows from it:
//   - Rules for names and for addresses are alternatives: whoever fits one gets in. A name moves with a
//     workload's identity, so only rules for addresses fence.
//   - A rule withdrawn does not touch sessions that are open: they are ended one by one, and the access
//     list is right only when none of them is listed any more.
//   - Rules are looked at when a login begins, and a login may end later. After a revocation such late
//     comers are looked for during Config.LoginWindow. An initiator that stops in the middle of its login
//     for longer than that gets in: the next Apply ends it, and rule F2 asks for a second fence anyway.
//   - There is no compare-and-set. The epoch is checked before the first change, after the marker is
//     written and after the last grant, and a grant overtaken by a newer epoch is taken back. Two processes
//     that write to one daemon at once can still grant twice for a moment: let one gateway write (rule F5).
//   - Nothing outlives the daemon. Its start-up file must not name initiators for the volumes that are
//     masked here, so that a restart fences (rule F4). Beware: tgt-admin binds ALL to a target that has no
//     initiator-address line; such a target shows "ALL" in its mask.
package tgt

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

// Config says how to reach one daemon.
type Config struct {
	// Socket is the path of the management socket: /var/run/tgtd/socket.0 by default. tgtd takes only
	// peers with its own user and group.
	Socket string
	// Dial replaces Socket, for one that is forwarded over SSH. Every request is one connection.
	Dial func(ctx context.Context) (net.Conn, error)
	// Owned are targets whose rules for names, networks and ALL are ours to remove. Of other targets,
	// unless a mask of ours was set on them before, such rules are reported and left alone.
	Owned []string
	// CallTimeout bounds one request. Zero means 5 s.
	CallTimeout time.Duration
	// DrainTimeout bounds the wait for sessions to end, with the writes that they had under way. Zero
	// means 10 s.
	DrainTimeout time.Duration
	// LoginWindow is how long after a revocation logins that had begun before it are waited for and
	// ended. Zero means 2 s.
	LoginWindow time.Duration
	Logger      *slog.Logger // nil discards
}

// Validate names the key that is wrong.
func (c Config) Validate() error {
	if (c.Socket == "") == (c.Dial == nil) {
		return fault.New(fault.Invalid, "exactly one of Socket and Dial is needed")
	}
	if c.CallTimeout < 0 || c.DrainTimeout < 0 || c.LoginWindow < 0 {
		return fault.New(fault.Invalid, "CallTimeout, DrainTimeout and LoginWindow must not be negative")
	}
	for _, name := range c.Owned {
		if name == "" || strings.ContainsAny(name, "* \n") {
			return fault.Newf(fault.Invalid, "Owned: %q is no target's name", name)
		}
	}
	return nil
}

// Array is one tgtd. It is safe for concurrent use; its writes run one after another.
type Array struct {
	cfg    Config
	where  string
	writer chan struct{}
}

var _ driver.Array = (*Array)(nil)

// New makes the driver. It does not connect.
func New(cfg Config) (*Array, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &Array{cfg: cfg, where: "tgtd", writer: make(chan struct{}, 1)}
	if cfg.Dial == nil {
		a.where += " " + cfg.Socket
		a.cfg.Dial = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", cfg.Socket)
		}
	}
	for d, v := range map[*time.Duration]time.Duration{&a.cfg.CallTimeout: 5 * time.Second, &a.cfg.DrainTimeout: 10 * time.Second,
		&a.cfg.LoginWindow: 2 * time.Second} {
		if *d == 0 {
			*d = v
		}
	}
	if cfg.Logger == nil {
		a.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return a, nil
}

// Close does nothing: no connection outlives its request.
func (a *Array) Close() error { return nil }

// call sends one request.
func (a *Array) call(ctx context.Context, what string, req tgtadm.Request) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.CallTimeout)
	defer cancel()
	conn, err := a.cfg.Dial(ctx)
	if err != nil {
		kind := fault.Unreachable
		if ctx.Err() != nil {
			kind = fault.Timeout
		}
		return "", &fault.Error{Kind: kind, Where: a.where, What: what, Err: err, Next: "check that tgtd runs and that we may use its socket"}
	}
	text, err := tgtadm.Call(ctx, conn, req)
	return text, fault.Wrap(err, what, a.where)
}

// targets reads all targets. The description, in which initiators have a say, has to agree with the
// list of drivers, in which they have none.
func (a *Array) targets(ctx context.Context) (map[string]*target, error) {
	var last error
	for range 2 { // a target made or removed in between is no disagreement
		list, err := a.call(ctx, "list targets", tgtadm.Request{Mode: tgtadm.LLD, Op: tgtadm.Show})
		if err != nil {
			return nil, err
		}
		known, err := parseDrivers(list)
		if err != nil {
			return nil, fault.Wrap(err, "", a.where)
		}
		text, err := a.call(ctx, "show targets", tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Show, TID: tgtadm.AllTargets})
		if err != nil {
			return nil, err
		}
		all, err := parseTargets(text, known)
		if err == nil {
			return all, nil
		}
		last = err
	}
	return nil, &fault.Error{Kind: fault.Conflict, Where: a.where, What: "show targets", Err: last,
		Next: "look for an initiator with line ends in its name, and for somebody who adds and removes targets"}
}

// connections lists who is connected to a target.
func (a *Array) connections(ctx context.Context, t *target) ([]connection, error) {
	if len(t.nexus) == 0 {
		return nil, nil
	}
	text, err := a.call(ctx, "show connections of "+t.name, tgtadm.Request{Mode: tgtadm.Connection, Op: tgtadm.Show, TID: t.tid})
	if err != nil {
		return nil, err
	}
	out, err := parseConnections(text, t.nexus)
	return out, fault.Wrap(err, "connections of "+t.name, a.where)
}

// Masks reads the masks of all iSCSI targets. A rule that is no plain address stands among the
// initiators as it is: "ALL", a network, a name.
func (a *Array) Masks(ctx context.Context) ([]driver.Mask, error) {
	all, err := a.targets(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]driver.Mask, 0, len(all))
	for _, t := range all {
		if t.driver == "iscsi" {
			out = append(out, t.mask())
		}
	}
	slices.SortFunc(out, func(a, b driver.Mask) int { return strings.Compare(a.Volume, b.Volume) })
	return out, nil
}

func (t *target) mask() driver.Mask {
	r := ParseRules(t.rules)
	return driver.Mask{Volume: t.name, Initiators: r.initiators(), Epoch: r.Epoch}
}

// Sessions lists who is connected now. The initiator is empty for a session that is ending or whose
// address is in doubt.
func (a *Array) Sessions(ctx context.Context) ([]driver.Session, error) {
	all, err := a.targets(ctx)
	if err != nil {
		return nil, err
	}
	out := []driver.Session{}
	for _, t := range all {
		conns, err := a.connections(ctx, t)
		if err != nil {
			if code, ok := tgtadm.CodeOf(err); ok && code == tgtadm.NoTarget {
				continue // it went away in between, with its sessions
			}
			return nil, err
		}
		for _, c := range conns {
			out = append(out, driver.Session{Volume: t.name, Initiator: addressText(c.address), Name: c.name})
		}
	}
	slices.SortFunc(out, func(a, b driver.Session) int {
		return strings.Compare(a.Volume+" "+a.Initiator+" "+a.Name, b.Volume+" "+b.Initiator+" "+b.Name)
	})
	return out, nil
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
