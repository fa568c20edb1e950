// Package brocadesim is a simulated Brocade switch: the REST interface of FOS 9 over HTTPS, as far as
// zoning needs it, with the transactions of a real fabric. One switch stands for a whole fabric.
//
// There is one transaction per fabric. The first edit of the defined configuration opens it and takes the
// fabric lock; until it is committed, aborted or expired, nobody else can edit. Edits are visible in the
// defined configuration at once and in force only after a commit. A commit names the checksum of the
// database it was made for, and is refused for another. The committed database is the startup
// configuration: it outlives Restart, Kill and Revive, which open transactions and logins do not.
package brocadesim

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

// Zone is a zone in force, its aliases resolved.
type Zone struct {
	Name       string   `json:"name"`
	Peer       bool     `json:"peer"`                 // members see the principals, and not each other
	Members    []string `json:"members"`              // WWPNs; of a peer zone, those that are not principals
	Principals []string `json:"principals,omitempty"` // of a peer zone
}

// Login is a device in the name server.
type Login struct {
	PortName string // WWPN
	NodeName string // WWNN
}

// Backend is the fabric behind the switch.
type Backend interface {
	// ZonesChanged is told all zones in force after each commit that changes them, before the commit is
	// answered. Calls come one after another.
	ZonesChanged(effective []Zone)
	// Logins is asked for the devices that are logged in now.
	Logins() []Login
}

// Config is one simulated fabric.
type Config struct {
	Address  string      // "127.0.0.1:0" when empty
	TLS      *tls.Config // a certificate of its own when nil: see Roots
	User     string      // "rerack" when empty
	Password string
	Domain   int // domain id of the switch; 1 when 0
	// Active is the configuration in force, with Zones in it; none when empty.
	Active  string
	Zones   []Zone
	Aliases map[string][]string
	Backend Backend // nil: nobody is told, nobody is logged in
	// VirtualFabric is the vf-id that requests must carry; none when 0.
	VirtualFabric int
	// MaxSessions is how many may be logged in; 10 when 0.
	MaxSessions int
	// LockTimeout is how long a transaction holds the lock; 1,800 s when 0, as on real ones.
	LockTimeout time.Duration
	Now         func() time.Time // time.Now when nil
}

// Switch is a running simulated fabric.
type Switch struct {
	cfg    Config
	roots  *x509.CertPool
	faults *faultState
	order  sync.Mutex // held from a commit until the backend knows of it

	mu       sync.Mutex // guards what follows
	db       database   // committed
	txn      *transaction
	sessions map[string]string // token -> user
	tokens   uint32
	counters Counters

	life    sync.Mutex // guards what follows
	address string
	server  *http.Server
	served  chan struct{}
}

// Counters is what the fabric was asked for since it started.
type Counters struct {
	Requests int
	Logins   int
	Commits  int // that were accepted
	Refused  int // commits that were not
	Aborts   int
}

// Start makes a fabric and lets its switch listen.
func Start(cfg Config) (*Switch, error) {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&cfg.Address, "127.0.0.1:0")
	def(&cfg.User, "rerack")
	if cfg.Domain == 0 {
		cfg.Domain = 1
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = 10
	}
	if cfg.LockTimeout == 0 {
		cfg.LockTimeout = 1800 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Switch{cfg: cfg, address: cfg.Address, faults: newFaultState(), db: newDatabase(cfg), sessions: map[string]string{}}
	if err := s.db.enable(cfg.Active); cfg.Active != "" && err != nil {
		return nil, fmt.Errorf("enable %s: %w", cfg.Active, err)
	}
	if cfg.TLS == nil {
		cert, roots, err := selfSigned()
		if err != nil {
			return nil, err
		}
		s.cfg.TLS, s.roots = &tls.Config{Certificates: []tls.Certificate{cert}}, roots
	}
	if err := s.Revive(); err != nil {
		return nil, err
	}
	return s, nil
}

// URL is where the switch listens.
func (s *Switch) URL() string {
	s.life.Lock()
	defer s.life.Unlock()
	return "https://" + s.address
}

// Roots verifies the switch's own certificate; nil when it was given one.
func (s *Switch) Roots() *x509.CertPool { return s.roots }

// Close stops the switch for good.
func (s *Switch) Close() { s.Kill() }

// Kill takes the switch down: nothing listens, logins and the open transaction are gone, the committed
// database stays.
func (s *Switch) Kill() {
	s.life.Lock()
	defer s.life.Unlock()
	if s.server == nil {
		return
	}
	s.server.Close() // of what it reports, nothing is left to do anything about
	<-s.served
	s.server = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.txn = nil
	clear(s.sessions)
}

// Revive listens again at the same address.
func (s *Switch) Revive() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.server != nil {
		return nil
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		return err
	}
	s.address = l.Addr().String()
	s.server = &http.Server{Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	s.served = make(chan struct{})
	go func(srv *http.Server, done chan struct{}) {
		defer close(done)
		_ = srv.Serve(tls.NewListener(l, s.cfg.TLS)) // ends when Kill closes it
	}(s.server, s.served)
	return nil
}

// Restart reboots the switch.
func (s *Switch) Restart() error {
	s.Kill()
	return s.Revive()
}

// Faults returns the present faults.
func (s *Switch) Faults() Faults { return s.faults.get() }

// SetFaults changes faults while the switch runs: fn gets the present ones.
func (s *Switch) SetFaults(fn func(*Faults)) {
	before, after := s.faults.set(fn)
	if before.LockedBy == after.LockedBy {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.txn != nil && s.txn.session == person {
		s.txn = nil
	}
	if after.LockedBy != "" && s.txn == nil {
		s.open(person, after.LockedBy, "CLI", "")
	}
}

// Counters returns what was asked so far.
func (s *Switch) Counters() Counters {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters
}

// Effective returns the zones in force, by name.
func (s *Switch) Effective() []Zone {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db.effectiveCopy()
}

// Defined returns the committed defined configuration.
func (s *Switch) Defined() Defined {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db.Defined.clone()
}

// Open tells who has a transaction open; empty for nobody.
func (s *Switch) Open() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.txn == nil {
		return ""
	}
	return s.txn.user
}

// Sessions is how many are logged in.
func (s *Switch) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Edit changes the defined configuration and enables the active one, at once, as a person at another
// switch does between two looks of ours. It is refused while a transaction is open.
func (s *Switch) Edit(fn func(*Defined)) error {
	s.order.Lock()
	defer s.order.Unlock()
	s.mu.Lock()
	if s.txn != nil {
		s.mu.Unlock()
		return fmt.Errorf("%s has a transaction open", s.txn.user)
	}
	next := s.db.clone()
	fn(&next.Defined)
	err := next.enable(next.active)
	if err == nil {
		s.db = next
	}
	s.mu.Unlock()
	if err == nil {
		s.tell()
	}
	return err
}

// tell hands the zones in force to the backend. The caller holds order.
func (s *Switch) tell() {
	if s.cfg.Backend != nil {
		s.cfg.Backend.ZonesChanged(s.Effective())
	}
}
