// Package ovssim is a simulated Open vSwitch: a real OVSDB server (RFC 7047) on a real socket with the
// part of the Open_vSwitch schema that VLANs need, and a switch daemon that tells a Backend what its
// ports do. Its database is the startup configuration: it outlives Restart, Kill and Revive.
//
// It serves list_dbs, get_schema, transact (select, wait, update, mutate, comment, commit) and echo. It
// has no monitors and no insert or delete: its ports are soldered on.
package ovssim

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/cenkalti/rpc2"
	"github.com/cenkalti/rpc2/jsonrpc"
	"github.com/ovn-kubernetes/libovsdb/ovsdb"
)

// Config is one simulated switch.
type Config struct {
	Bridge         string // "br0" when empty
	Ports          []Port
	Address        string      // "127.0.0.1:0" when empty
	TLS            *tls.Config // plain TCP when nil
	Backend        Backend     // nil: nobody is told
	QuarantineVLAN int         // 4094 when 0
}

// Switch is a running simulated switch.
type Switch struct {
	cfg     Config
	address string
	schema  ovsdb.DatabaseSchema
	faults  *faultState
	rpc     *rpc2.Server

	order sync.Mutex // held from a commit until the backend knows of it

	mu       sync.Mutex // guards what follows
	db       tables
	told     map[string]PortState
	counters Counters

	life     sync.Mutex // guards what follows, and starting and stopping
	listener net.Listener
	conns    map[net.Conn]struct{}
	down     chan struct{} // closed when it stops listening
	running  sync.WaitGroup
}

// Start makes a switch and lets it listen.
func Start(cfg Config) (*Switch, error) {
	if cfg.Bridge == "" {
		cfg.Bridge = "br0"
	}
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	if cfg.QuarantineVLAN == 0 {
		cfg.QuarantineVLAN = 4094
	}
	schema, err := parseSchema()
	if err != nil {
		return nil, fmt.Errorf("parse schema: %w", err)
	}
	seen := map[string]bool{cfg.Bridge: true}
	for _, p := range cfg.Ports {
		if p.Name == "" || seen[p.Name] {
			return nil, fmt.Errorf("port name %q is empty or taken", p.Name)
		}
		seen[p.Name] = true
	}
	s := &Switch{cfg: cfg, address: cfg.Address, schema: schema, faults: newFaultState(), rpc: rpc2.NewServer(),
		db: build(cfg.Bridge, cfg.Ports), told: map[string]PortState{}}
	for name, r := range s.portRows() {
		s.told[name] = state(r, cfg.QuarantineVLAN)
	}
	s.serve()
	if err := s.Revive(); err != nil {
		return nil, err
	}
	return s, nil
}

// Endpoint is where the switch listens, in the notation of ovsdb(7).
func (s *Switch) Endpoint() string {
	if s.cfg.TLS != nil {
		return "ssl:" + s.address
	}
	return "tcp:" + s.address
}

// Close stops the switch for good.
func (s *Switch) Close() { s.Kill() }

// Kill cuts the management off: nothing listens any more. The database stays.
func (s *Switch) Kill() {
	s.life.Lock()
	defer s.life.Unlock()
	if s.listener == nil {
		return
	}
	close(s.down)
	s.listener.Close()
	s.listener = nil
	s.dropConns()
	s.running.Wait()
}

// Revive listens again at the same address, with the database as it was.
func (s *Switch) Revive() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		return err
	}
	s.address = l.Addr().String()
	if s.cfg.TLS != nil {
		l = tls.NewListener(l, s.cfg.TLS)
	}
	s.listener, s.conns, s.down = l, map[net.Conn]struct{}{}, make(chan struct{})
	s.running.Add(1)
	go s.accept(l, s.down)
	return nil
}

// Restart drops every connection, as the server's restart does.
func (s *Switch) Restart() error {
	s.Kill()
	return s.Revive()
}

// dropConns closes every connection. The caller holds life.
func (s *Switch) dropConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

func (s *Switch) accept(l net.Listener, down <-chan struct{}) {
	defer s.running.Done()
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		select {
		case <-down: // Kill has closed the others already
			conn.Close()
		default:
			s.conns[conn] = struct{}{}
			s.counters.Connections++
		}
		s.mu.Unlock()
		s.running.Add(1)
		go func() {
			defer s.running.Done()
			defer s.forget(conn)
			// The codec trusts its input; what does not follow the protocol ends its own connection only.
			defer func() { _ = recover() }()
			s.rpc.ServeCodec(jsonrpc.NewJSONCodec(conn))
		}()
	}
}

func (s *Switch) forget(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
}

// Faults returns the present faults.
func (s *Switch) Faults() Faults { return s.faults.get() }

// SetFaults changes faults while the switch runs: fn gets the present ones.
func (s *Switch) SetFaults(fn func(*Faults)) {
	if before, after := s.faults.set(fn); before.Stalled && !after.Stalled {
		s.catchUp()
	}
}

// Counters returns what was asked so far.
func (s *Switch) Counters() Counters {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters
}

// SetLink sets whether a port has a carrier.
func (s *Switch) SetLink(port string, up bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range s.db["Interface"] {
		if r["name"].has(port) {
			s.db["Interface"] = maps.Clone(s.db["Interface"])
			s.db["Interface"][id] = r.with("link_state", link(up))
		}
	}
}

// Port says what the switch does with a port now.
func (s *Switch) Port(name string) (PortState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.told[name]
	p.Tagged = slices.Clone(p.Tagged)
	return p, ok
}

// ExternalIDs reads the external_ids of a port from the database.
func (s *Switch) ExternalIDs(port string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for k, v := range s.portRows()[port]["external_ids"].m {
		out[fmt.Sprint(k)] = fmt.Sprint(v)
	}
	return out
}

// SetExternalID writes one key of a port's external_ids, as somebody else would.
func (s *Switch) SetExternalID(port, key, value string) {
	s.order.Lock()
	defer s.order.Unlock()
	s.mu.Lock()
	for id, r := range s.db["Port"] {
		if r["name"].has(port) {
			ids := maps.Clone(r["external_ids"].m)
			ids[key] = value
			s.db["Port"] = maps.Clone(s.db["Port"])
			s.db["Port"][id] = r.with("external_ids", datum{m: ids})
		}
	}
	s.mu.Unlock()
	s.act()
}

// portRows returns the rows of the bridge's ports by name, without the local port.
func (s *Switch) portRows() map[string]row {
	out := map[string]row{}
	for _, r := range s.db["Port"] {
		if name := r["name"].set[0].(string); name != s.cfg.Bridge {
			out[name] = r
		}
	}
	return out
}

// catchUp is the daemon reading the database; the caller does not hold order.
func (s *Switch) catchUp() {
	s.order.Lock()
	defer s.order.Unlock()
	s.act()
}

// act is the daemon: it takes over what the database says, tells the backend, and says so in cur_cfg.
// The caller holds order.
func (s *Switch) act() {
	if s.faults.get().Stalled {
		return
	}
	type change struct {
		name string
		to   PortState
	}
	var changes []change
	s.mu.Lock()
	rows := s.portRows()
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		if to := state(rows[name], s.cfg.QuarantineVLAN); !to.equal(s.told[name]) {
			s.told[name] = to
			to.Tagged = slices.Clone(to.Tagged)
			changes = append(changes, change{name, to})
		}
	}
	s.mu.Unlock()
	if s.cfg.Backend != nil {
		for _, c := range changes {
			s.cfg.Backend.PortChanged(c.name, c.to)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, r := range s.db["Open_vSwitch"] {
		if !r["cur_cfg"].equal(r["next_cfg"]) {
			s.db["Open_vSwitch"] = maps.Clone(s.db["Open_vSwitch"])
			s.db["Open_vSwitch"][id] = r.with("cur_cfg", r["next_cfg"])
		}
	}
}

func isWrite(op ovsdb.Operation) bool {
	return op.Op == ovsdb.OperationUpdate || op.Op == ovsdb.OperationMutate
}
