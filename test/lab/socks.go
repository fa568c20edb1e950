package lab

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/qemu/gateway"
)

// SOCKS protocol numbers: RFC 1928 sections 3 to 6.
const (
	socksVersion     = 5
	socksNoAuth      = 0x00
	socksNoMethod    = 0xff
	socksConnect     = 1
	socksIPv4        = 1
	socksDomain      = 3
	socksIPv6        = 4
	socksOK          = 0
	socksUnreachable = 4
	socksRefused     = 5
	socksBadCommand  = 7
	socksBadAddress  = 8
)

// socksTimeout bounds the negotiation.
const socksTimeout = 5 * time.Second

// probeProxy is the SOCKS5 server inside the simulated site: through it one reaches workloads in their
// own networks, as far as the world lets frames pass.
type probeProxy struct {
	ln    net.Listener
	reach func(netip.AddrPort) (service, error)
	log   *slog.Logger
	web   *http.Server
	feed  *connFeed
	wg    sync.WaitGroup
	ctx   context.Context // ends with close
	end   context.CancelFunc
}

// service is what answers at an address.
type service struct {
	Workload string `json:"workload"`
	Epoch    uint64 `json:"epoch"`
	Machine  string `json:"machine"`
	sick     bool
	dial     func() (net.Conn, error) // nil: it is simulated
}

// errRefused is returned by reach when the host is there and nothing listens on the port.
var errRefused = errors.New("connection refused")

func startProbeProxy(ln net.Listener, reach func(netip.AddrPort) (service, error), log *slog.Logger) *probeProxy {
	p := &probeProxy{ln: ln, reach: reach, log: log, feed: newConnFeed(ln.Addr())}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.web = &http.Server{
		Handler: http.HandlerFunc(p.answer), ReadHeaderTimeout: socksTimeout, IdleTimeout: time.Minute,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, probeKey{}, c) },
	}
	p.wg.Go(func() { _ = p.web.Serve(p.feed) }) // ends with ErrServerClosed
	p.wg.Go(p.accept)
	return p
}

type probeKey struct{}

// probeConn is a connection that was asked to go to an address.
type probeConn struct {
	net.Conn
	to netip.AddrPort
}

func (p *probeProxy) accept() {
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() {
			if err := p.negotiate(c); err != nil {
				p.log.Debug("probe refused", "from", c.RemoteAddr().String(), "err", err)
				_ = c.Close()
			}
		})
	}
}

func (p *probeProxy) negotiate(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(socksTimeout)); err != nil {
		return err
	}
	to, code, err := readSocks(c)
	var inside net.Conn // to a real machine
	if err == nil {
		s, rerr := p.reach(to)
		if rerr == nil && s.dial != nil {
			inside, rerr = s.dial()
		}
		if rerr != nil {
			code, err = socksUnreachable, rerr
			if errors.Is(rerr, errRefused) {
				code = socksRefused
			}
		}
	}
	if inside != nil {
		defer inside.Close()
	}
	if code == socksNoMethod {
		return err
	}
	// BND.ADDR and BND.PORT mean nothing to the clients of a CONNECT; zero is what most servers send.
	if _, werr := c.Write([]byte{socksVersion, code, 0, socksIPv4, 0, 0, 0, 0, 0, 0}); err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if inside != nil {
		gateway.Splice(p.ctx, c, inside)
		return nil
	}
	return p.feed.push(&probeConn{c, to})
}

// readSocks does the client's half of the greeting and reads its request. code is the reply to send;
// socksNoMethod means that the refusal was sent already or that there is nobody to send it to.
func readSocks(c io.ReadWriter) (to netip.AddrPort, code byte, err error) {
	var b [262]byte
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return to, socksNoMethod, err
	}
	if b[0] != socksVersion {
		return to, socksNoMethod, fault.Newf(fault.Invalid, "SOCKS version %d", b[0])
	}
	methods := b[2 : 2+int(b[1])]
	if _, err := io.ReadFull(c, methods); err != nil {
		return to, socksNoMethod, err
	}
	method := byte(socksNoMethod)
	for _, m := range methods {
		if m == socksNoAuth {
			method = socksNoAuth
		}
	}
	if _, err := c.Write([]byte{socksVersion, method}); err != nil {
		return to, socksNoMethod, err
	}
	if method == socksNoMethod {
		return to, socksNoMethod, fault.New(fault.Unauthorized, "SOCKS client wants to log in")
	}
	if _, err := io.ReadFull(c, b[:4]); err != nil {
		return to, socksNoMethod, err
	}
	if b[0] != socksVersion {
		return to, socksNoMethod, fault.Newf(fault.Invalid, "SOCKS version %d", b[0])
	}
	command := b[1]
	var addr netip.Addr
	switch b[3] {
	case socksIPv4:
		if _, err := io.ReadFull(c, b[:4]); err != nil {
			return to, socksNoMethod, err
		}
		addr = netip.AddrFrom4([4]byte(b[:4]))
	case socksIPv6:
		if _, err := io.ReadFull(c, b[:16]); err != nil {
			return to, socksNoMethod, err
		}
		addr = netip.AddrFrom16([16]byte(b[:16])).Unmap()
	case socksDomain:
		if _, err := io.ReadFull(c, b[:1]); err != nil {
			return to, socksNoMethod, err
		}
		name := b[1 : 1+int(b[0])]
		if _, err := io.ReadFull(c, name); err != nil {
			return to, socksNoMethod, err
		}
		// There is no name service inside; an address written as a name is an address.
		addr, _ = netip.ParseAddr(string(name))
	default:
		return to, socksBadAddress, fault.Newf(fault.Unsupported, "SOCKS address type %d", b[3])
	}
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return to, socksNoMethod, err
	}
	to = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[:2]))
	switch {
	case command != socksConnect:
		return to, socksBadCommand, fault.Newf(fault.Unsupported, "SOCKS command %d", command)
	case !addr.IsValid():
		return to, socksUnreachable, fault.New(fault.NotFound, "SOCKS request for a name")
	}
	return to, socksOK, nil
}

// answer is the workload's own web server. A workload that is gone meanwhile says nothing more.
func (p *probeProxy) answer(w http.ResponseWriter, r *http.Request) {
	c, ok := r.Context().Value(probeKey{}).(*probeConn)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	s, err := p.reach(c.to)
	if err != nil || s.dial != nil {
		panic(http.ErrAbortHandler) // closes the connection without an answer
	}
	w.Header().Set("Content-Type", "application/json")
	if s.sick {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(s) // the prober is gone if this fails
}

func (p *probeProxy) close() error {
	p.end()
	err := errors.Join(p.ln.Close(), p.feed.Close(), p.web.Close())
	p.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// connFeed is a listener whose connections were accepted and negotiated elsewhere.
type connFeed struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newConnFeed(a net.Addr) *connFeed {
	return &connFeed{addr: a, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (f *connFeed) push(c net.Conn) error {
	select {
	case f.conns <- c:
		return nil
	case <-f.done:
		return net.ErrClosed
	}
}

// Accept implements net.Listener.
func (f *connFeed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *connFeed) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// Addr implements net.Listener.
func (f *connFeed) Addr() net.Addr { return f.addr }
