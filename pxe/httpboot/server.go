package httpboot

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Options of Serve. Zero values mean the defaults named.
type Options struct {
	Conns          int // open connections; default 4096
	ConnsPerSource int // from one address; default 64
	TLS            *tls.Config
	Logger         *slog.Logger
}

// Serve serves h on l until ctx ends (nil) or l fails, and closes l. Transfers under way have a moment
// to end.
func Serve(ctx context.Context, l net.Listener, h http.Handler, o Options) error {
	if o.Conns == 0 {
		o.Conns = 4096
	}
	if o.ConnsPerSource == 0 {
		o.ConnsPerSource = 64
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	where := "listener " + l.Addr().String()
	l = limit(l, o)
	if o.TLS != nil {
		l = tls.NewListener(l, o.TLS)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 20 * time.Second, WriteTimeout: grace,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return fault.Wrap(err, "serve boot files", where)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.Shutdown(end); err != nil {
		_ = s.Close() // what is left is a machine in the middle of a file: it asks again
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fault.Wrap(err, "serve boot files", where)
	}
	return nil
}

// limit bounds the open connections, all together by waiting and those of one source by refusal, so
// that one that opens many and says nothing does not shut the others out.
func limit(l net.Listener, o Options) net.Listener {
	return &limited{Listener: l, slots: make(chan struct{}, o.Conns), perSource: o.ConnsPerSource, closed: make(chan struct{}),
		open: map[netip.Addr]int{}}
}

type limited struct {
	net.Listener
	slots     chan struct{}
	perSource int
	once      sync.Once
	closed    chan struct{}

	mu   sync.Mutex
	open map[netip.Addr]int
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.closed:
			return nil, net.ErrClosed
		}
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		src := remote(c)
		l.mu.Lock()
		ok := l.open[src] < l.perSource
		if ok {
			l.open[src]++
		}
		l.mu.Unlock()
		if ok {
			return &limitedConn{Conn: c, l: l, src: src}, nil
		}
		_ = c.Close()
		<-l.slots
	}
}

func remote(c net.Conn) netip.Addr {
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		return ap.Addr().Unmap()
	}
	return netip.Addr{}
}

type limitedConn struct {
	net.Conn
	l    *limited
	src  netip.Addr
	once sync.Once
}

// ReadFrom keeps the kernel's sendfile in reach.
func (c *limitedConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

func (c *limitedConn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		if c.l.open[c.src]--; c.l.open[c.src] == 0 {
			delete(c.l.open, c.src)
		}
		c.l.mu.Unlock()
		<-c.l.slots
	})
	return c.Conn.Close()
}

// counter counts what was sent and keeps sendfile in reach.
type counter struct {
	http.ResponseWriter
	status int
	n      int64
}

func (c *counter) WriteHeader(code int) {
	c.status = code
	c.ResponseWriter.WriteHeader(code)
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n += int64(n)
	return n, err
}

func (c *counter) ReadFrom(r io.Reader) (n int64, err error) {
	if rf, ok := c.ResponseWriter.(io.ReaderFrom); ok {
		n, err = rf.ReadFrom(r)
	} else {
		n, err = io.Copy(struct{ io.Writer }{c.ResponseWriter}, r)
	}
	c.n += n
	return n, err
}

func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }
