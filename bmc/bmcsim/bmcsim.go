package bmcsim

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"rerack.dev/rerack/bmc"
)

// Config of one simulated BMC. Backend and Users are required.
type Config struct {
	Name    string
	Addr    string // host:port; port 0 picks one. Redfish or AMT is on TCP, IPMI on UDP of the same number
	Backend Backend
	Profile Profile // default Generic
	Users   []bmc.Credential
	NoIPMI  bool
	// NoRedfish leaves TCP closed.
	NoRedfish bool
	// CertNotBefore moves the certificate's dates (hazard H17); default an hour ago.
	CertNotBefore time.Time
}

func (c *Config) validate() error {
	switch {
	case c.Backend == nil:
		return errors.New("bmcsim config: backend is missing")
	case len(c.Users) == 0:
		return errors.New("bmcsim config: users: at least one is needed")
	case c.NoRedfish && (c.NoIPMI || c.Profile.AMT):
		return errors.New("bmcsim config: noIPMI and noRedfish leave nothing")
	}
	if c.Profile.AMT {
		c.NoIPMI = true
	}
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	if c.Profile.Name == "" {
		c.Profile = Generic()
	}
	if c.Profile.MaxSessions == 0 {
		c.Profile.MaxSessions = 16
	}
	if c.CertNotBefore.IsZero() {
		c.CertNotBefore = time.Now().Add(-time.Hour)
	}
	return nil
}

// Farm is many BMCs in one process: one HTTP server over all their listeners, certificates made when
// first asked for, and per idle BMC no more than its sockets' readers.
type Farm struct {
	ca   *CA
	srv  *http.Server
	regs *registry

	mu     sync.Mutex
	bmcs   map[*BMC]struct{}
	wg     sync.WaitGroup
	closed bool
}

// NewFarm returns an empty farm whose certificates ca signs.
func NewFarm(ca *CA) *Farm {
	f := &Farm{ca: ca, bmcs: map[*BMC]struct{}{}, regs: newRegistry()}
	f.srv = &http.Server{
		Handler:           http.HandlerFunc(serveRedfish),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // faults make noise on purpose
		ConnContext:       withBMC,
	}
	return f
}

// New starts one BMC in a farm of its own; Close ends both.
func New(cfg Config, ca *CA) (*BMC, error) {
	f := NewFarm(ca)
	b, err := f.Add(cfg)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	b.alone = true
	return b, nil
}

// BMC is one simulated management controller.
type BMC struct {
	cfg   Config
	farm  *Farm
	addr  string
	alone bool
	ln    net.Listener
	ipmi  *ipmiServer
	cert  func() (*tls.Certificate, error)

	done chan struct{} // closed by Close

	mu       sync.Mutex
	faults   Faults
	changed  chan struct{} // closed at every change of faults
	counts   map[string]int
	sessions map[string]redfishSession // by token, of AMT by nonce
	amt      *amtState
	conns    map[net.Conn]struct{}
	closed   bool
}

// Add starts one more BMC.
func (f *Farm) Add(cfg Config) (*BMC, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	b := &BMC{cfg: cfg, farm: f, done: make(chan struct{}), changed: make(chan struct{}), counts: map[string]int{}, sessions: map[string]redfishSession{}, amt: newAMT(), conns: map[net.Conn]struct{}{}}
	tcp, udp, err := listen(cfg)
	if err != nil {
		return nil, fmt.Errorf("bmcsim %s: %w", cfg.Name, err)
	}
	if tcp != nil {
		b.addr = tcp.Addr().String()
	} else {
		b.addr = udp.LocalAddr().String()
	}
	host, _, _ := net.SplitHostPort(b.addr)
	b.cert = sync.OnceValues(func() (*tls.Certificate, error) { return f.ca.Certificate(host, cfg.CertNotBefore) })

	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errors.Join(net.ErrClosed, closeAll(tcp, udp))
	}
	f.bmcs[b] = struct{}{}
	if tcp != nil {
		b.ln = tls.NewListener(&listener{tcp, b}, b.tlsConfig())
		f.wg.Go(func() { _ = f.srv.Serve(b.ln) }) // ends with ErrServerClosed or the listener's close
	}
	if udp != nil {
		b.ipmi = newIPMIServer(b, udp, f.regs)
		f.wg.Go(b.ipmi.serve)
	}
	return b, nil
}

// listen binds TCP and UDP on the same port number.
func listen(cfg Config) (net.Listener, *net.UDPConn, error) {
	var lastErr error
	for range 20 { // a free TCP port may be taken on UDP
		addr := cfg.Addr
		var tcp net.Listener
		if !cfg.NoRedfish {
			var err error
			if tcp, err = net.Listen("tcp", addr); err != nil {
				return nil, nil, err
			}
			addr = tcp.Addr().String()
		}
		if cfg.NoIPMI {
			return tcp, nil, nil
		}
		ua, err := net.ResolveUDPAddr("udp", addr)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll(tcp, nil))
		}
		udp, err := net.ListenUDP("udp", ua)
		if err == nil {
			return tcp, udp, nil
		}
		lastErr = errors.Join(err, closeAll(tcp, nil))
		if _, port, _ := net.SplitHostPort(cfg.Addr); port != "0" {
			break
		}
	}
	return nil, nil, lastErr
}

func closeAll(tcp net.Listener, udp *net.UDPConn) error {
	var errs []error
	if tcp != nil {
		errs = append(errs, tcp.Close())
	}
	if udp != nil {
		errs = append(errs, udp.Close())
	}
	return errors.Join(errs...)
}

// Addr returns host:port.
func (b *BMC) Addr() string { return b.addr }

// Port returns the port number of Addr.
func (b *BMC) Port() int {
	_, p, _ := net.SplitHostPort(b.addr)
	n, _ := strconv.Atoi(p)
	return n
}

// Fingerprint returns the SHA-256 of the certificate, in hex.
func (b *BMC) Fingerprint() (string, error) {
	c, err := b.cert()
	if err != nil {
		return "", err
	}
	return fingerprint(c), nil
}

// Endpoint describes the BMC to a bmc.Fleet: CA, identity and address are filled in.
func (b *BMC) Endpoint(p bmc.Protocol, credentialRef string) bmc.Endpoint {
	id := b.cfg.Backend.Identity()
	return bmc.Endpoint{Machine: b.cfg.Name, Address: b.addr, Protocol: p, CredentialRef: credentialRef, CA: b.farm.ca.PEM(), ExpectUUID: id.UUID, ExpectSerial: id.Serial}
}

// Count returns how often verb happened: login, logout, get, power.read, press.on, press.off, boot.read,
// boot.set, restore.set, ipmi.packet, ...
func (b *BMC) Count(verb string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[verb]
}

// Counts returns all counters.
func (b *BMC) Counts() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.counts)
}

func (b *BMC) count(verb string) {
	b.mu.Lock()
	b.counts[verb]++
	b.mu.Unlock()
}

// Sessions returns how many Redfish or AMT sessions are open.
func (b *BMC) Sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.sessions)
}

// EndSessions forgets every session of all protocols, as a reboot of the BMC does.
func (b *BMC) EndSessions() {
	b.mu.Lock()
	clear(b.sessions)
	b.amt.forget()
	b.mu.Unlock()
	if b.ipmi != nil {
		b.ipmi.endSessions()
	}
}

// Close stops this BMC.
func (b *BMC) Close() error {
	if b.alone {
		return b.farm.Close()
	}
	b.farm.mu.Lock()
	delete(b.farm.bmcs, b)
	b.farm.mu.Unlock()
	return b.stop()
}

func (b *BMC) stop() error {
	b.mu.Lock()
	done := b.closed
	b.closed = true
	b.mu.Unlock()
	if done {
		return nil
	}
	close(b.done)
	var errs []error
	if b.ln != nil {
		if err := b.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if b.ipmi != nil {
		errs = append(errs, b.ipmi.close())
	}
	b.closeConns()
	return errors.Join(errs...)
}

// Close stops all BMCs and waits for their goroutines.
func (f *Farm) Close() error {
	f.mu.Lock()
	f.closed = true
	bmcs := f.bmcs
	f.bmcs = map[*BMC]struct{}{}
	f.mu.Unlock()
	var errs []error
	for b := range bmcs {
		errs = append(errs, b.stop())
	}
	if err := f.srv.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		errs = append(errs, err)
	}
	f.wg.Wait()
	return errors.Join(errs...)
}

func (b *BMC) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			// A hung BMC does not get as far as a certificate. Nobody notices here that the client has
			// left, so that the wait has an end of its own.
			ctx, cancel := context.WithTimeout(h.Context(), time.Minute)
			defer cancel()
			if !b.stall(ctx) {
				return nil, net.ErrClosed
			}
			return b.cert()
		},
	}
}

// listener wraps connections so that faults reach them.
type listener struct {
	net.Listener
	b *BMC
}

// simConn is a TCP connection that knows its BMC.
type simConn struct {
	net.Conn
	b *BMC
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	sc := &simConn{c, l.b}
	l.b.mu.Lock()
	l.b.counts["connect"]++
	dead := l.b.faults.Drop || l.b.closed
	if !dead {
		l.b.conns[sc] = struct{}{}
	}
	l.b.mu.Unlock()
	if dead {
		_ = c.Close() // the server then reads an error and forgets it
	}
	return sc, nil
}

func (c *simConn) Close() error {
	c.b.mu.Lock()
	delete(c.b.conns, c)
	for id, s := range c.b.sessions {
		if s.conn == c { // of AMT, whose sessions end with the connection
			delete(c.b.sessions, id)
		}
	}
	c.b.mu.Unlock()
	return c.Conn.Close()
}

func (b *BMC) closeConns() {
	b.mu.Lock()
	conns := make([]net.Conn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

type bmcKey struct{}

func withBMC(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		if sc, ok := t.NetConn().(*simConn); ok {
			return context.WithValue(ctx, bmcKey{}, sc)
		}
	}
	return ctx
}

func token() string { return rand.Text() }
