// Package monitor watches the data centre - BMCs, switch links, array and fabric logins - and turns
// what it sees into evidence. It looks and never touches.
package monitor

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	bmcdriver "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	san "rerack.dev/rerack/sanzoning/driver"
)

// Devices is what the monitor reads from.
type Devices interface {
	PollPower(ctx context.Context, machines []topology.Machine, each func(machine string, r bmcdriver.Reading, err error))
	Ports(ctx context.Context, s topology.Switch) ([]fabric.Port, error)
	Sessions(ctx context.Context, a topology.Array) ([]san.Session, error)
	Logins(ctx context.Context, f topology.Fabric) ([]string, error)
}

// Config of a Monitor; all but Logger are required.
type Config struct {
	Devices  Devices
	Topology func() *topology.Topology
	Now      func() time.Time
	Logger   *slog.Logger
}

// Monitor holds the last observation of everything.
type Monitor struct {
	cfg Config

	mu       sync.RWMutex
	started  time.Time
	power    map[string]track[bmcdriver.Reading] // by machine
	ports    map[string]track[map[string]link]   // by switch, then port
	sessions map[string]track[map[string]bool]   // by array: initiators logged in
	logins   map[string]track[map[string]bool]   // by fabric: WWPNs logged in
	storage  map[string]*login                   // by machine
}

// track is the last answer of a device and how long it has been silent.
type track[T any] struct {
	last    T
	read    time.Time // of the last answer; zero: never
	tried   time.Time // of the last attempt
	silent  time.Time // first attempt without an answer since; zero: it answers
	since   time.Time // since when last says the same (power only)
	unclear bool      // it answers, but not usefully: wrong credentials, unsupported
	err     error
}

type link struct {
	state fabric.LinkState
	since time.Time
}

type login struct {
	up    bool
	since time.Time
	seen  bool // it was logged in once
	clear bool // the devices that tell answered in the last round; else up is what they said before
}

// New returns a monitor that has seen nothing.
func New(c Config) *Monitor {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Monitor{cfg: c, power: map[string]track[bmcdriver.Reading]{}, ports: map[string]track[map[string]link]{},
		sessions: map[string]track[map[string]bool]{}, logins: map[string]track[map[string]bool]{}, storage: map[string]*login{}}
}

// Run polls until ctx ends, at the shortest interval that any policy asks for. after is called behind
// every round, with the detector's work.
func (m *Monitor) Run(ctx context.Context, after func(context.Context)) {
	m.mu.Lock()
	m.started = m.cfg.Now()
	m.mu.Unlock()
	for ctx.Err() == nil {
		begin, seen := time.Now(), m.cfg.Topology()
		m.Poll(ctx)
		if after != nil && ctx.Err() == nil {
			after(ctx)
		}
		// A new revision is looked at right away: what it adds is unknown until then.
		for ctx.Err() == nil && m.cfg.Topology() == seen && time.Since(begin) < interval(seen) {
			select {
			case <-ctx.Done():
			case <-time.After(min(recheck, interval(seen)-time.Since(begin))):
			}
		}
	}
}

// recheck is how often the monitor looks whether the topology has changed.
const recheck = 200 * time.Millisecond

func interval(t *topology.Topology) time.Duration {
	every := 10 * time.Second
	for _, p := range t.Policies {
		every = min(every, p.Spec.Evidence.PollEvery.Or(every))
	}
	return every
}

// Poll reads every device once. Devices are read at the same time; one that hangs delays the round by
// its own timeout and no other device's result.
func (m *Monitor) Poll(ctx context.Context) {
	t := m.cfg.Topology()
	var wg sync.WaitGroup
	wg.Go(func() {
		machines := make([]topology.Machine, 0, len(t.Machines))
		for _, mc := range t.Machines {
			machines = append(machines, mc)
		}
		m.cfg.Devices.PollPower(ctx, machines, m.sawPower)
	})
	limit := 3 * time.Second
	for name, s := range t.Switches {
		wg.Go(func() {
			c, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			ports, err := m.cfg.Devices.Ports(c, s)
			m.sawPorts(name, ports, err)
		})
	}
	for name, a := range t.Arrays {
		wg.Go(func() {
			c, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			list, err := m.cfg.Devices.Sessions(c, a)
			set := map[string]bool{}
			for _, s := range list {
				set[s.Initiator] = true
			}
			observe(m, m.sessions, name, set, err)
		})
	}
	for name, f := range t.Fabrics {
		wg.Go(func() {
			c, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			list, err := m.cfg.Devices.Logins(c, f)
			set := map[string]bool{}
			for _, w := range list {
				set[w] = true
			}
			observe(m, m.logins, name, set, err)
		})
	}
	wg.Wait()
	if ctx.Err() == nil {
		m.forget(t)
		m.judgeLogins(t)
	}
}

// forget drops what was seen of things that are not declared any more: it would count for ever.
func (m *Monitor) forget(t *topology.Topology) {
	m.mu.Lock()
	defer m.mu.Unlock()
	drop(m.power, t.Machines)
	drop(m.storage, t.Machines)
	drop(m.ports, t.Switches)
	drop(m.sessions, t.Arrays)
	drop(m.logins, t.Fabrics)
}

func drop[T, D any](seen map[string]T, declared map[string]D) {
	maps.DeleteFunc(seen, func(name string, _ T) bool {
		_, ok := declared[name]
		return !ok
	})
}

// silence tells an error that means "no answer" from one that is an answer.
func silence(err error) bool {
	k := fault.KindOf(err)
	return k == fault.Unreachable || k == fault.Timeout
}

func observe[T any](m *Monitor, in map[string]track[T], name string, v T, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Now()
	tr := in[name]
	tr.tried, tr.err = now, err
	switch {
	case err == nil:
		tr.last, tr.read, tr.silent, tr.unclear = v, now, time.Time{}, false
	case silence(err):
		tr.unclear = false
		if tr.silent.IsZero() {
			tr.silent = now
		}
	default:
		tr.unclear, tr.silent = true, time.Time{}
	}
	in[name] = tr
}

func (m *Monitor) sawPower(machine string, r bmcdriver.Reading, err error) {
	m.mu.RLock()
	before := m.power[machine]
	m.mu.RUnlock()
	observe(m, m.power, machine, r, err)
	m.mu.Lock()
	defer m.mu.Unlock()
	tr := m.power[machine]
	if err == nil && (before.read.IsZero() || before.last.State != r.State) {
		tr.since = m.cfg.Now()
		m.power[machine] = tr
	}
}

func (m *Monitor) sawPorts(name string, ports []fabric.Port, err error) {
	m.mu.RLock()
	before := m.ports[name].last
	m.mu.RUnlock()
	now := m.cfg.Now()
	links := make(map[string]link, len(ports))
	for _, p := range ports {
		l := link{p.Link, now}
		if b, ok := before[p.Name]; ok && b.state == p.Link {
			l.since = b.since
		}
		links[p.Name] = l
	}
	observe(m, m.ports, name, links, err)
}

// judgeLogins works out per machine whether storage sees it. A machine is seen down only when every
// device it would be logged in to has answered just now.
func (m *Monitor) judgeLogins(t *topology.Topology) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Now()
	for name, mc := range t.Machines {
		up, known := false, true
		for _, h := range mc.Spec.HBAs {
			tr := m.logins[h.Fabric]
			known = known && tr.silent.IsZero() && !tr.unclear && !tr.read.IsZero()
			up = up || tr.last[string(h.WWPN)] && tr.silent.IsZero()
		}
		if mc.Spec.StorageAddress.IsValid() {
			for _, tr := range m.sessions {
				known = known && tr.silent.IsZero() && !tr.unclear
				up = up || tr.last[mc.Spec.StorageAddress.String()] && tr.silent.IsZero()
			}
		}
		l := m.storage[name]
		if l == nil {
			l = &login{since: now}
			m.storage[name] = l
		}
		l.clear = up || known
		switch {
		case up && !l.up, !up && known && l.up:
			l.up, l.since = up, now
			l.seen = l.seen || up
		}
	}
}

// PowerOf returns the last power reading of a machine, or unknown when it is too old to go by.
func (m *Monitor) PowerOf(machine string) bmcdriver.Reading {
	m.mu.RLock()
	defer m.mu.RUnlock()
	tr := m.power[machine]
	if tr.read.IsZero() || !tr.silent.IsZero() || tr.unclear {
		detail := "never read"
		if tr.err != nil {
			detail = tr.err.Error()
		}
		return bmcdriver.Reading{State: bmcdriver.PowerUnknown, At: tr.read, Detail: detail}
	}
	return tr.last
}

// SilentSwitches lists switches whose management does not answer.
func (m *Monitor) SilentSwitches() map[string]bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := map[string]bool{}
	for name, tr := range m.ports {
		if !tr.silent.IsZero() {
			out[name] = true
		}
	}
	return out
}

// LinkOf is what the machine's own switch ports say of its carrier: a second witness of its power.
func (m *Monitor) LinkOf(machine string) policies.Sign {
	m.mu.RLock()
	defer m.mu.RUnlock()
	sign := policies.SignUnknown
	for _, nic := range m.cfg.Topology().Machines[machine].Spec.NICs {
		tr := m.ports[nic.Switch]
		if !tr.silent.IsZero() || tr.unclear {
			continue
		}
		switch tr.last[nic.Port].state {
		case fabric.LinkUp:
			return policies.SignUp
		case fabric.LinkDown:
			sign = policies.SignDown
		case fabric.LinkUnknown:
		}
	}
	return sign
}
