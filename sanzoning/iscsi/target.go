package iscsi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Gate decides who may do what at a target portal. Its methods are called from many goroutines.
type Gate interface {
	// Admit is asked once, when a login begins and before the initiator has proven its account. What a
	// gate says later does not touch a login under way nor a live session (so does tgt). Errors:
	// NotFound hides the target, Unauthorized refuses, anything else makes the initiator come back.
	Admit(by Identity, target string) (Grant, error)
	// Visible lists the targets for discovery.
	Visible(by Identity) []string
	// Opened is told of a new session before the initiator is, Ended after its last command is done.
	Opened(n Nexus)
	Ended(n Nexus)
}

// Grant is what an admitted initiator gets.
type Grant struct {
	Account Account           // demanded of the initiator; the zero value demands none
	Units   map[uint16]Device // LUN 0 is a controller when it has no device
}

// Nexus is one live session.
type Nexus struct {
	TSIH   uint16 // the target's session number, unique among live ones
	CID    uint16
	By     Identity
	Alias  string
	Target string
}

// TargetConfig configures a portal.
type TargetConfig struct {
	Gate   Gate
	Logger *slog.Logger // nil discards
	// LoginTimeout bounds a whole login. Zero means 30 s.
	LoginTimeout time.Duration
	// WriteTimeout bounds one answer. Zero means 10 s.
	WriteTimeout time.Duration
	// MaxConns bounds the connections; further ones are closed. Zero means 4096.
	MaxConns int
}

// Target is an iSCSI portal with any number of targets behind it.
type Target struct {
	cfg TargetConfig
	ctx context.Context
	end context.CancelFunc
	wg  sync.WaitGroup

	mu       sync.Mutex
	conns    map[*serverConn]struct{}
	sessions map[uint16]*serverConn
	lastTSIH uint16
}

// NewTarget makes a portal. Serve gives it listeners.
func NewTarget(cfg TargetConfig) (*Target, error) {
	if cfg.Gate == nil {
		return nil, fault.New(fault.Invalid, "TargetConfig.Gate is missing")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.LoginTimeout == 0 {
		cfg.LoginTimeout = 30 * time.Second
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = 10 * time.Second
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 4096
	}
	ctx, end := context.WithCancel(context.Background())
	return &Target{cfg: cfg, ctx: ctx, end: end, conns: map[*serverConn]struct{}{}, sessions: map[uint16]*serverConn{}}, nil
}

// Serve accepts connections until the listener is closed, which is not an error.
func (t *Target) Serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return &fault.Error{Kind: fault.Internal, Where: "iSCSI portal " + l.Addr().String(), What: "accept", Err: err}
		}
		t.Take(conn)
	}
}

// Take serves one connection in the background.
func (t *Target) Take(conn net.Conn) {
	c := newServerConn(t, conn)
	t.mu.Lock()
	if t.ctx.Err() != nil || len(t.conns) >= t.cfg.MaxConns {
		t.mu.Unlock()
		_ = conn.Close()
		return
	}
	t.conns[c] = struct{}{}
	t.wg.Add(1)
	t.mu.Unlock()
	go func() {
		defer t.wg.Done()
		c.serve()
		t.drop(c)
	}()
}

// register gives a connection that finished its login a session number. A session of the same
// initiator and ISID is ended first (session reinstatement, RFC 7143 section 6.3.5).
func (t *Target) register(c *serverConn) error {
	for {
		t.mu.Lock()
		var old *serverConn
		for _, o := range t.sessions {
			if o.nexus.Target == c.nexus.Target && o.nexus.By.Name == c.nexus.By.Name && o.isid == c.isid {
				old = o
			}
		}
		if old != nil {
			t.mu.Unlock()
			old.close()
			<-old.done
			continue
		}
		defer t.mu.Unlock()
		if t.ctx.Err() != nil {
			return net.ErrClosed
		}
		for range 1 << 16 {
			t.lastTSIH++
			if _, taken := t.sessions[t.lastTSIH]; !taken && t.lastTSIH != 0 {
				c.nexus.TSIH = t.lastTSIH
				t.sessions[t.lastTSIH] = c
				return nil
			}
		}
		return fault.New(fault.Busy, "no session number is free")
	}
}

// drop forgets a connection whose serving has ended: none of its commands runs any more. The gate is told
// before the session leaves the list, so that whoever finds it gone knows that the gate knows.
func (t *Target) drop(c *serverConn) {
	_ = c.conn.Close()
	t.mu.Lock()
	live := t.sessions[c.nexus.TSIH] == c
	t.mu.Unlock()
	if live {
		t.cfg.Gate.Ended(c.nexus)
	}
	t.mu.Lock()
	if live {
		delete(t.sessions, c.nexus.TSIH)
	}
	delete(t.conns, c)
	t.mu.Unlock()
	close(c.done)
}

// Sessions lists the live sessions by number.
func (t *Target) Sessions() []Nexus {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Nexus, 0, len(t.sessions))
	for _, c := range t.sessions {
		out = append(out, c.nexus)
	}
	slices.SortFunc(out, func(a, b Nexus) int { return int(a.TSIH) - int(b.TSIH) })
	return out
}

// End closes the connection of a session. The command that runs finishes; no further one starts. The
// session is listed until then.
func (t *Target) End(tsih uint16) bool {
	t.mu.Lock()
	c := t.sessions[tsih]
	t.mu.Unlock()
	if c == nil {
		return false
	}
	c.close()
	return true
}

// EndAll closes every connection, also those still logging in, and waits until they have ended.
func (t *Target) EndAll() {
	t.mu.Lock()
	all := make([]*serverConn, 0, len(t.conns))
	for c := range t.conns {
		all = append(all, c)
	}
	t.mu.Unlock()
	for _, c := range all {
		c.close()
	}
	for _, c := range all {
		<-c.done
	}
}

// Close ends all connections and takes no more. Listeners are their owner's to close.
func (t *Target) Close() error {
	t.mu.Lock()
	t.end()
	t.mu.Unlock()
	t.EndAll()
	t.wg.Wait()
	return nil
}
