package libvirt

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/digitalocean/go-libvirt"

	"rerack.dev/rerack/internal/fault"
)

// session is one connection to libvirtd. It ends with its context: the library's calls know none.
type session struct {
	h    *Host
	ctx  context.Context
	end  context.CancelFunc
	stop func() bool
	conn net.Conn
	lv   *libvirt.Libvirt
}

// connected is a dialer of what is dialled already.
type connected struct{ net.Conn }

// Dial implements the library's Dialer.
func (c connected) Dial() (net.Conn, error) { return c.Conn, nil }

func (h *Host) dial(ctx context.Context) (*session, error) {
	ctx, end := context.WithTimeout(ctx, h.cfg.ReadTimeout)
	return h.open(ctx, end)
}

// open connects for as long as ctx lasts, and cancels it with the session.
func (h *Host) open(ctx context.Context, end context.CancelFunc) (*session, error) {
	conn, err := h.connect(ctx)
	if err != nil {
		end()
		return nil, err
	}
	s := &session{h: h, ctx: ctx, end: end, conn: conn, lv: libvirt.NewWithDialer(connected{&framed{Conn: conn}})}
	s.stop = context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the call that is under way
	if err := s.do("open connection", func() error { return s.lv.ConnectToURI(libvirt.QEMUSystem) }); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (h *Host) connect(ctx context.Context) (net.Conn, error) {
	network, address, err := endpoint(h.cfg.Address)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, unreachable(ctx, err)
	}
	if network == "unix" {
		return conn, nil
	}
	cfg := h.cfg.TLS.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(address) // endpoint made it
	}
	secure := tls.Client(conn, cfg)
	if err := verified(ctx, secure); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// verified shakes hands and waits for libvirtd's single byte 1, by which it says after the handshake that
// it has let our certificate in (virNetTLSSession, src/rpc/virnetserverclient.c).
func verified(ctx context.Context, conn *tls.Conn) error {
	defer context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() })()
	if err := conn.HandshakeContext(ctx); err != nil {
		var untrusted *tls.CertificateVerificationError
		if errors.As(err, &untrusted) || fault.Is(err, fault.Unauthorized) {
			return &fault.Error{Kind: fault.Unauthorized, What: "verify the host's certificate", Err: err}
		}
		return unreachable(ctx, err)
	}
	var ok [1]byte
	if _, err := io.ReadFull(conn, ok[:]); err != nil || ok[0] != 1 {
		if ctx.Err() != nil {
			return unreachable(ctx, ctx.Err())
		}
		return &fault.Error{Kind: fault.Unauthorized, What: "log in", Evidence: "libvirtd refuses our certificate", Err: err,
			Next: "let Rerack's authority and name in with ca_file and tls_allowed_dn_list of libvirtd.conf"}
	}
	return nil
}

func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &fault.Error{Kind: fault.Timeout, What: "call libvirtd", Err: ctx.Err()}
	}
	return &fault.Error{Kind: fault.Unreachable, What: "call libvirtd", Err: err}
}

func (s *session) close() {
	s.stop()
	s.end()
	_ = s.conn.Close() // the other end notices
}

// do makes one call. After an error that is not libvirtd's own its effect is unknown.
func (s *session) do(what string, call func() error) error {
	if s.ctx.Err() != nil {
		return fault.Wrap(unreachable(s.ctx, nil), what, "")
	}
	err := call()
	var e libvirt.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return &fault.Error{Kind: kind(libvirt.ErrorNumber(e.Code)), What: what, Err: err}
	case errors.Is(err, libvirt.ErrUnsupported):
		return &fault.Error{Kind: fault.Unsupported, What: what, Err: err}
	}
	return fault.Wrap(unreachable(s.ctx, err), what, "")
}

// kind says what an error of libvirtd means for the caller; the numbers are virErrorNumber's.
func kind(n libvirt.ErrorNumber) fault.Kind {
	switch n {
	case libvirt.ErrAuthFailed, libvirt.ErrAuthCancelled, libvirt.ErrAuthUnavailable, libvirt.ErrAccessDenied:
		return fault.Unauthorized
	case libvirt.ErrNoSupport, libvirt.ErrConfigUnsupported, libvirt.ErrInvalidArg, libvirt.ErrXMLError:
		return fault.Unsupported // definitions are made from valid values: this host cannot do it
	case libvirt.ErrOperationTimeout:
		return fault.Timeout
	case libvirt.ErrOperationInvalid, libvirt.ErrNoDomain, libvirt.ErrNoSecret:
		return fault.Busy // somebody else changed it since it was read
	}
	return fault.Internal
}

// Frames of the remote protocol: a length in four octets, which counts itself and a header of 24, big
// endian. libvirt's own limit is VIR_NET_MESSAGE_MAX, 32 MiB and 64 KiB.
const (
	minFrame = 28
	maxFrame = 32<<20 + 64<<10
)

// framed ends a connection whose frames have a length that none can have: the library would believe it.
type framed struct {
	net.Conn
	head []byte // of the length of the next frame, what was read of it
	left uint32 // of the present frame
}

// Read implements net.Conn.
func (f *framed) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	for rest := b[:n]; len(rest) > 0; {
		if f.left > 0 {
			skip := min(uint32(len(rest)), f.left) //nolint:gosec // n is at most len(b), which is the reader's buffer
			f.left -= skip
			rest = rest[skip:]
			continue
		}
		take := min(4-len(f.head), len(rest))
		f.head, rest = append(f.head, rest[:take]...), rest[take:]
		if len(f.head) < 4 {
			break
		}
		size := binary.BigEndian.Uint32(f.head)
		f.head = f.head[:0]
		if size < minFrame || size > maxFrame {
			_ = f.Conn.Close()
			return 0, io.ErrUnexpectedEOF
		}
		f.left = size - 4
	}
	return n, err
}

// background is a short time for what must be done although the call's own time is over.
func background(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
}
