package tftp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/sockbuf"
)

// File is what is sent. It is read by one transfer and then closed.
type File interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Files finds a file by the exact name a client sent, less one leading slash. fault.NotFound is told
// to the client as such, any other error only as a failure. A name may hold a secret before its last
// slash, which no log shows.
type Files func(name string, from netip.AddrPort) (File, error)

// Config of a Server. Zero values of the numbers mean the defaults named.
type Config struct {
	Conn  net.PacketConn // for requests: port 69
	Files Files
	// ListenPacket opens the socket of one transfer; default net.ListenPacket on Conn's address.
	ListenPacket func(network, address string) (net.PacketConn, error)
	MaxBlock     int // largest block granted; default 1468, what an Ethernet frame holds
	MaxWindow    int // largest window granted; default 64
	Transfers    int // at once; default 2048
	PerSource    int // at once to one address; default 16
	// Timeout before the first repetition while the round trip is not known, default 1 s; it doubles
	// up to 8 s. Tries without progress: default 10. A whole transfer ends after Deadline, default 5 min.
	Timeout  time.Duration
	Tries    int
	Deadline time.Duration
	// OnSent is told of each file that a client acknowledged whole, by the name that Files was asked for;
	// it must not block.
	OnSent func(name string, to netip.AddrPort, size int64)
	Logger *slog.Logger
}

// Validate names the first key that is wrong.
func (c *Config) Validate() error {
	switch {
	case c.Conn == nil:
		return fault.New(fault.Invalid, "tftp.Conn is missing")
	case c.Files == nil:
		return fault.New(fault.Invalid, "tftp.Files is missing")
	case c.MaxBlock != 0 && (c.MaxBlock < stdBlock || c.MaxBlock > maxBlock):
		return fault.Newf(fault.Invalid, "tftp.MaxBlock is %d: want %d-%d", c.MaxBlock, stdBlock, maxBlock)
	case c.MaxWindow < 0 || c.MaxWindow > 1024:
		return fault.Newf(fault.Invalid, "tftp.MaxWindow is %d: want 1-1024", c.MaxWindow)
	case c.Transfers < 0 || c.PerSource < 0 || c.Timeout < 0 || c.Tries < 0 || c.Deadline < 0:
		return fault.New(fault.Invalid, "tftp: Transfers, PerSource, Timeout, Tries and Deadline are not negative")
	}
	return nil
}

func (c *Config) defaults() {
	c.MaxBlock = or(c.MaxBlock, 1468)
	c.MaxWindow = or(c.MaxWindow, 64)
	c.Transfers = or(c.Transfers, 2048)
	c.PerSource = or(c.PerSource, 16)
	c.Timeout = or(c.Timeout, time.Second)
	c.Tries = or(c.Tries, 10)
	c.Deadline = or(c.Deadline, 5*time.Minute)
	if c.ListenPacket == nil {
		c.ListenPacket = net.ListenPacket
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Server sends files.
type Server struct {
	cfg   Config
	host  string // local address of transfers
	stats counters
	bufs  sync.Pool

	mu     sync.Mutex
	active map[netip.AddrPort]struct{} // by the client's address: a repeated request starts no second transfer
	source map[netip.Addr]int
}

type counters struct{ requests, malformed, refused, limited, done, failed, resent atomic.Uint64 }

// Stats are counters since the start, and the transfers at this moment.
type Stats struct {
	Requests  uint64
	Malformed uint64
	Refused   uint64 // writes, other modes than octet, unknown names
	Limited   uint64 // not begun because of a limit; the client asks again
	Done      uint64
	Failed    uint64
	Resent    uint64 // windows sent again
	Active    int
}

// New checks the configuration and makes a server.
func New(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.defaults()
	host, _, err := net.SplitHostPort(c.Conn.LocalAddr().String())
	if err != nil {
		return nil, fault.Wrap(err, "read own address", "TFTP server")
	}
	sockbuf.Grow(c.Conn, sockbuf.Storm)
	s := &Server{cfg: c, host: host, active: map[netip.AddrPort]struct{}{}, source: map[netip.Addr]int{}}
	s.bufs.New = func() any { return new(buffers) }
	return s, nil
}

// Stats returns the present counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.active)
	s.mu.Unlock()
	c := &s.stats
	return Stats{Requests: c.requests.Load(), Malformed: c.malformed.Load(), Refused: c.refused.Load(), Limited: c.limited.Load(),
		Done: c.done.Load(), Failed: c.failed.Load(), Resent: c.resent.Load(), Active: n}
}

// Run serves until ctx ends (nil) or the request socket fails. It closes the socket.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = s.cfg.Conn.Close() }) // it is what ends the read
	defer stop()
	var transfers sync.WaitGroup
	defer transfers.Wait()
	defer cancel()
	buf := make([]byte, maxRequest+1)
	for {
		n, from, err := s.cfg.Conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if transient(err) {
				continue
			}
			return fault.Wrap(err, "read TFTP requests", s.cfg.Conn.LocalAddr().String())
		}
		ua, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		s.stats.requests.Add(1)
		req, err := parseRequest(buf[:n])
		if err != nil {
			s.stats.malformed.Add(1)
			continue
		}
		to := netip.AddrPortFrom(ua.AddrPort().Addr().Unmap(), ua.AddrPort().Port())
		if !s.enter(to) {
			s.stats.limited.Add(1)
			continue
		}
		transfers.Go(func() {
			defer s.leave(to)
			s.serve(ctx, req, to)
		})
	}
}

func (s *Server) enter(to netip.AddrPort) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, dup := s.active[to]; dup || len(s.active) >= s.cfg.Transfers || s.source[to.Addr()] >= s.cfg.PerSource {
		return false
	}
	s.active[to] = struct{}{}
	s.source[to.Addr()]++
	return true
}

func (s *Server) leave(to netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, to)
	if s.source[to.Addr()]--; s.source[to.Addr()] == 0 {
		delete(s.source, to.Addr())
	}
}

// serve answers one request from a socket of its own.
func (s *Server) serve(ctx context.Context, req request, to netip.AddrPort) {
	conn, err := s.cfg.ListenPacket("udp4", net.JoinHostPort(s.host, "0"))
	if err != nil {
		s.stats.limited.Add(1)
		s.cfg.Logger.Warn("no socket for a TFTP transfer", "to", to, "err", err)
		return
	}
	defer conn.Close()
	refuse := func(code uint16, text string) {
		s.stats.refused.Add(1)
		_, _ = conn.WriteTo(appendError(nil, code, text), net.UDPAddrFromAddrPort(to)) // a lost one is asked for again
	}
	switch {
	case req.op == opWRQ:
		refuse(errAccess, "this server is read-only")
		return
	case req.mode != "octet":
		refuse(errIllegal, "only mode octet")
		return
	}
	name := strings.TrimPrefix(req.name, "/")
	f, err := s.cfg.Files(name, to)
	if err != nil {
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
			refuse(errNotFound, "file not found")
			return
		}
		s.cfg.Logger.Error("TFTP file not served", "name", path.Base(name), "to", to, "err", err)
		refuse(errUndefined, "file cannot be served")
		return
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	b := s.bufs.Get().(*buffers)
	defer s.bufs.Put(b)
	t := newTransfer(&s.cfg, conn, to, f, req.options, b)
	err = t.run()
	s.stats.resent.Add(t.resent)
	if err != nil {
		s.stats.failed.Add(1)
		s.cfg.Logger.Debug("TFTP transfer ended early", "name", path.Base(name), "to", to, "err", err)
		return
	}
	s.stats.done.Add(1)
	if s.cfg.OnSent != nil {
		s.cfg.OnSent(name, to, f.Size())
	}
}

// transient errors of a UDP socket tell of an earlier datagram (an ICMP error), not of the socket.
func transient(err error) bool {
	var ne net.Error
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EINTR) || (errors.As(err, &ne) && ne.Timeout())
}
