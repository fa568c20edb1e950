// Package vswitch is an Ethernet switch in user space: ports with an access VLAN, tagged VLANs and a
// shut state, all settable while frames pass, and MAC learning per VLAN. Its wire is that of QEMU's
// stream network backend, so virtual machines and network stacks meet on it without any privilege.
package vswitch

import (
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// MaxVLAN is the largest VLAN id (IEEE 802.1Q section 9.6: 0xfff is reserved, 0 means none).
const MaxVLAN = 4094

const (
	// age is how long an address is remembered that sends nothing (IEEE 802.1Q table 8-6).
	age = 300 * time.Second
	// maxLearned bounds the addresses remembered on one port. A port that shows more is flooded to.
	maxLearned = 1024
	maxPorts   = 4096
)

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) group() bool { return m[0]&1 != 0 }

// Settings are what a port is configured to. The zero Settings pass nothing.
type Settings struct {
	Access int   // VLAN of untagged frames; 0: they are dropped
	Tagged []int // VLANs whose frames carry an IEEE 802.1Q tag on this port
	Trunk  bool  // every VLAN but Access passes tagged
	Shut   bool  // nothing passes
}

func (s Settings) validate() error {
	if s.Access < 0 || s.Access > MaxVLAN {
		return fault.Newf(fault.Invalid, "Access: %d is no VLAN", s.Access)
	}
	for _, v := range s.Tagged {
		if v < 1 || v > MaxVLAN {
			return fault.Newf(fault.Invalid, "Tagged: %d is no VLAN", v)
		}
	}
	return nil
}

// tags reports whether frames of a VLAN pass with a tag.
func (s *Settings) tags(vlan int) bool {
	return vlan != s.Access && (s.Trunk || slices.Contains(s.Tagged, vlan))
}

// Switch connects ports. It is safe for concurrent use.
type Switch struct {
	now func() time.Time

	mu    sync.Mutex
	ports map[string]*Port
	table map[station]*learned
}

type station struct {
	vlan int
	mac  MAC
}

type learned struct {
	port *Port
	seen time.Time
}

// New makes a switch without ports. now is its clock; nil means time.Now.
func New(now func() time.Time) *Switch {
	if now == nil {
		now = time.Now
	}
	return &Switch{now: now, ports: map[string]*Port{}, table: map[station]*learned{}}
}

// Add makes a port. It fails with fault.Conflict when there is one of this name, and with fault.Invalid
// when the settings are wrong.
func (s *Switch) Add(name string, set Settings) (*Port, error) {
	if err := set.validate(); err != nil {
		return nil, fault.Wrap(err, "add", "port "+name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ports[name] != nil:
		return nil, &fault.Error{Kind: fault.Conflict, Where: "port " + name, What: "add a second one of this name"}
	case len(s.ports) >= maxPorts:
		return nil, fault.Newf(fault.Invalid, "a switch has at most %d ports", maxPorts)
	}
	p := &Port{sw: s, name: name}
	p.set = clone(set)
	s.ports[name] = p
	return p, nil
}

// Locate returns the port on which an address was last seen on a VLAN.
func (s *Switch) Locate(vlan int, mac MAC) (port string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.find(vlan, mac)
	if at == nil {
		return "", false
	}
	return at.name, true
}

// find is called with the lock held.
func (s *Switch) find(vlan int, mac MAC) *Port {
	at := s.table[station{vlan, mac}]
	if at == nil || s.now().Sub(at.seen) > age {
		return nil
	}
	return at.port
}

// learn notes where an address is. It is called with the lock held.
func (s *Switch) learn(p *Port, vlan int, mac MAC) {
	if mac.group() || mac == (MAC{}) {
		return
	}
	k := station{vlan, mac}
	at := s.table[k]
	if at == nil || at.port != p {
		if p.known >= maxLearned {
			s.forgetOld(p)
		}
		if p.known >= maxLearned {
			p.count.Unlearned++
			return
		}
		if at != nil {
			at.port.known--
		}
		at = &learned{port: p}
		s.table[k] = at
		p.known++
	}
	at.seen = s.now()
}

func (s *Switch) forgetOld(p *Port) {
	now := s.now()
	s.forget(func(l *learned) bool { return l.port == p && now.Sub(l.seen) > age })
}

// forget is called with the lock held.
func (s *Switch) forget(which func(*learned) bool) {
	for k, l := range s.table {
		if which(l) {
			delete(s.table, k)
			l.port.known--
		}
	}
}

// forward passes one frame that came in on a port. The frame is read only while it runs.
func (s *Switch) forward(p *Port, raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := parse(raw)
	p.count.RxFrames++
	p.count.RxBytes += uint64(len(raw))
	switch {
	case !ok:
		p.count.Malformed++
		return
	case p.set.Shut:
		p.count.RxShut++
		return
	}
	vlan := f.vlan
	if vlan == 0 {
		vlan = p.set.Access
	} else if !p.set.tags(vlan) {
		vlan = 0
	}
	if vlan == 0 {
		p.count.RxOtherVLAN++
		return
	}
	s.learn(p, vlan, f.src)
	if to := s.find(vlan, f.dst); to != nil && !f.dst.group() {
		if to != p {
			to.send(vlan, &f)
		}
		return
	}
	for _, to := range s.ports {
		if to != p {
			to.send(vlan, &f)
		}
	}
}

func clone(s Settings) Settings {
	s.Tagged = slices.Clone(s.Tagged)
	return s
}
