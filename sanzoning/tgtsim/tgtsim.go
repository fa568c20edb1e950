// Package tgtsim is a simulated tgtd: the management socket that tgtadm speaks to, and an iSCSI portal
// that decides on logins as tgt does. Its volumes live in memory and tell their world of every write.
package tgtsim

import (
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/iscsi"
)

// Backend is told what happens to the volumes, as it happens. Calls come from many goroutines and MUST
// NOT call back into the Sim.
type Backend interface {
	// Rules is the access list of a volume after a change; tgt.ParseRules takes it apart. A volume that
	// is gone has none.
	Rules(volume string, rules []string)
	// Session opened, or ended with its last write done.
	Session(volume string, by iscsi.Identity, open bool)
	// Wrote is called when a write is on the disk and not yet acknowledged. The data is not to be kept.
	Wrote(w Write)
}

// Write is one write that reached a volume.
type Write struct {
	Volume string
	By     iscsi.Identity
	LBA    uint64 // first block of iscsi.BlockSize bytes
	Data   []byte
}

// Config configures a Sim.
type Config struct {
	// Socket is the path of the management socket. tgtadm finds it with TGT_IPC_SOCKET=path and -C n
	// when Socket is path.n.
	Socket string
	// Portal is the iSCSI portal's address. Empty means a free port of 127.0.0.1.
	Portal string
	// Persistent makes a Restart keep the configuration, as a start-up file does. A real tgtd without
	// one forgets everything but the disks.
	Persistent bool
	Backend    Backend      // nil: nobody listens
	Logger     *slog.Logger // nil discards
}

// Volume is one target with a disk as its LUN 1.
type Volume struct {
	Target  string // IQN
	Size    int64  // bytes; 0 means 64 MiB. Memory is used for what is written.
	Account iscsi.Account
	Rules   []string // access list to begin with
}

// Sim is one simulated tgtd.
type Sim struct {
	cfg    Config
	socket net.Listener
	portal net.Listener
	iscsi  *iscsi.Target
	wg     sync.WaitGroup

	mu       sync.Mutex
	faults   Faults
	changed  chan struct{} // closed and replaced when the faults change
	closed   bool
	counters map[string]uint64
	conns    map[net.Conn]struct{} // of the management
	targets  map[int32]*target
	accounts map[string]string // user -> secret
	disks    map[string]*disk  // by path; they outlive the configuration
}

// New starts a Sim.
func New(cfg Config) (*Sim, error) {
	if cfg.Socket == "" {
		return nil, fault.New(fault.Invalid, "Config.Socket is missing")
	}
	if cfg.Portal == "" {
		cfg.Portal = "127.0.0.1:0"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Backend == nil {
		cfg.Backend = nobody{}
	}
	s := &Sim{cfg: cfg, changed: make(chan struct{}), counters: map[string]uint64{}, conns: map[net.Conn]struct{}{},
		targets: map[int32]*target{}, accounts: map[string]string{}, disks: map[string]*disk{}}
	var err error
	if s.iscsi, err = iscsi.NewTarget(iscsi.TargetConfig{Gate: gate{s}, Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	if s.portal, err = net.Listen("tcp", cfg.Portal); err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Where: "simulated tgtd", What: "listen as portal", Err: err}
	}
	if s.socket, err = net.Listen("unix", cfg.Socket); err == nil {
		err = os.Chmod(cfg.Socket, 0o600)
	}
	if err != nil {
		_ = s.portal.Close()
		return nil, &fault.Error{Kind: fault.Invalid, Where: "simulated tgtd", What: "listen for management", Err: err}
	}
	s.wg.Go(s.manage)
	s.wg.Go(func() { s.admit() })
	return s, nil
}

type nobody struct{}

func (nobody) Rules(string, []string)               {}
func (nobody) Session(string, iscsi.Identity, bool) {}
func (nobody) Wrote(Write)                          {}

// Portal is the host:port to log in to.
func (s *Sim) Portal() string { return s.portal.Addr().String() }

// Socket is the path of the management socket.
func (s *Sim) Socket() string { return s.cfg.Socket }

// Take serves an iSCSI connection that came in another way than by the portal's listener. Its
// RemoteAddr decides on the login.
func (s *Sim) Take(conn net.Conn) {
	s.mu.Lock()
	dead := s.faults.Dead || s.closed
	s.mu.Unlock()
	if dead {
		_ = conn.Close()
		return
	}
	s.iscsi.Take(conn)
}

func (s *Sim) admit() {
	for {
		conn, err := s.portal.Accept()
		if err != nil {
			return
		}
		s.Take(conn)
	}
}

// AddVolume makes a target. A disk that a volume of this name had before a Restart is found again.
func (s *Sim) AddVolume(v Volume) error {
	if err := iscsi.CheckName(v.Target); err != nil {
		return err
	}
	if v.Size == 0 {
		v.Size = 64 << 20
	}
	if v.Size < iscsi.BlockSize || v.Size%iscsi.BlockSize != 0 {
		return fault.Newf(fault.Invalid, "Size %d is no multiple of %d", v.Size, iscsi.BlockSize)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	tid := int32(1)
	for id, t := range s.targets {
		if t.name == v.Target {
			return fault.Newf(fault.Conflict, "the target %s exists", v.Target)
		}
		tid = max(tid, id+1)
	}
	t := newTarget(tid, v.Target)
	t.addresses = slices.Clone(v.Rules)
	t.units[1] = s.disk(v.Target, v.Size)
	if v.Account.User != "" {
		s.accounts[v.Account.User] = v.Account.Secret
		t.accounts = []string{v.Account.User}
	}
	s.targets[tid] = t
	s.cfg.Backend.Rules(t.name, t.rules())
	return nil
}

// disk finds or makes a disk. The caller holds the lock.
func (s *Sim) disk(path string, size int64) *disk {
	d := s.disks[path]
	if d == nil || d.size != size {
		d = &disk{sim: s, path: path, volume: path, size: size, pages: map[int64]*page{}}
		s.disks[path] = d
	}
	return d
}

// Rules is the access list of a volume now, addresses first; ok is false when there is no such volume.
func (s *Sim) Rules(volume string) (rules []string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.byName(volume); t != nil {
		return t.rules(), true
	}
	return nil, false
}

// Sessions lists the live sessions, those included that KeepSessions protects.
func (s *Sim) Sessions() []iscsi.Nexus { return s.iscsi.Sessions() }

// Restart ends all sessions and management connections. Without Config.Persistent the configuration is
// lost, and the disks stay.
func (s *Sim) Restart() {
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	if !s.cfg.Persistent {
		for _, t := range s.targets {
			s.cfg.Backend.Rules(t.name, nil)
		}
		clear(s.targets)
		clear(s.accounts)
	}
	s.mu.Unlock()
	s.iscsi.EndAll()
}

// Counters tells how often what happened: "request" and "request.<mode>.<op>" for the management,
// "change", "login", "login.refused", "write".
func (s *Sim) Counters() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.counters)
}

func (s *Sim) count(what string) {
	s.mu.Lock()
	s.counters[what]++
	s.mu.Unlock()
}

// Close stops the Sim.
func (s *Sim) Close() error {
	s.mu.Lock()
	s.closed = true
	close(s.changed)
	s.changed = make(chan struct{})
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	_ = s.socket.Close()
	_ = s.portal.Close()
	_ = s.iscsi.Close()
	s.wg.Wait()
	return nil
}

// Faults are what is wrong with the daemon right now. The zero value is a healthy one.
type Faults struct {
	Delay time.Duration // before every management answer
	Hang  bool          // takes management connections and never answers
	Dead  bool          // no management, no portal; setting it ends all sessions

	// After lets that many management requests pass before the three faults below begin.
	After     int
	Refuse    int // that many requests fail without effect
	Drop      int // that many are cut off without effect
	DropReply int // that many take effect and get no answer

	Forget       int  // that many changes are acknowledged and not made
	KeepSessions bool // the end of a connection is acknowledged, and it lives on
}

// Faults returns the present faults.
func (s *Sim) Faults() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults
}

// SetFaults changes faults while the Sim runs: fn gets the present ones. Requests that hang notice.
func (s *Sim) SetFaults(fn func(*Faults)) {
	s.mu.Lock()
	fn(&s.faults)
	dead := s.faults.Dead
	close(s.changed)
	s.changed = make(chan struct{})
	if dead {
		for c := range s.conns {
			_ = c.Close()
		}
	}
	s.mu.Unlock()
	if dead {
		s.iscsi.EndAll()
	}
}
