package netstack

import (
	"errors"
	"net"
	"os"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// The stack's own sockets report the end of a deadline and their own end as errors of other kinds than the
// kernel's do, which leaves readers that ask for these kinds in a loop. The sockets here translate.

// translate makes an error what package net would have returned.
func translate(err error, closed *atomic.Bool, op string, local net.Addr) error {
	if err == nil {
		return nil
	}
	var ne net.Error
	switch {
	case closed.Load():
		err = net.ErrClosed
	case errors.As(err, &ne) && ne.Timeout():
		err = os.ErrDeadlineExceeded
	default:
		return err
	}
	return &net.OpError{Op: op, Net: local.Network(), Addr: local, Err: err}
}

type packetConn struct {
	*gonet.UDPConn
	local  net.Addr
	closed atomic.Bool
}

// ReadFrom implements net.PacketConn.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(b)
	return n, from, translate(err, &c.closed, "read", c.local)
}

// WriteTo implements net.PacketConn. The address is a *net.UDPAddr.
func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok || udp.IP.To4() == nil {
		return 0, &net.OpError{Op: "write", Net: c.local.Network(), Addr: to, Err: net.InvalidAddrError("not an IPv4 address and port")}
	}
	n, err := c.UDPConn.WriteTo(b, &net.UDPAddr{IP: udp.IP.To4(), Port: udp.Port})
	return n, translate(err, &c.closed, "write", c.local)
}

// LocalAddr implements net.PacketConn, also after Close.
func (c *packetConn) LocalAddr() net.Addr { return c.local }

// Close implements net.PacketConn.
func (c *packetConn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: c.local.Network(), Addr: c.local, Err: net.ErrClosed}
	}
	return c.UDPConn.Close()
}

type listener struct {
	*gonet.TCPListener
	local  net.Addr
	closed atomic.Bool
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if err != nil {
		return nil, translate(err, &l.closed, "accept", l.local)
	}
	return newConn(c.(*gonet.TCPConn)), nil
}

// Addr implements net.Listener, also after Close.
func (l *listener) Addr() net.Addr { return l.local }

// Close implements net.Listener.
func (l *listener) Close() error {
	if l.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: l.local.Network(), Addr: l.local, Err: net.ErrClosed}
	}
	l.Shutdown() // wakes who waits in Accept
	return l.TCPListener.Close()
}

// conn also has CloseRead and CloseWrite.
type conn struct {
	*gonet.TCPConn
	local, remote net.Addr
	closed        atomic.Bool
}

// newConn takes the addresses while the connection still has them: one that was reset already has none.
func newConn(c *gonet.TCPConn) *conn {
	n := &conn{TCPConn: c, local: c.LocalAddr(), remote: c.RemoteAddr()}
	if n.local == nil {
		n.local = &net.TCPAddr{}
	}
	if n.remote == nil {
		n.remote = &net.TCPAddr{}
	}
	return n
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, translate(err, &c.closed, "read", c.local)
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, translate(err, &c.closed, "write", c.local)
}

// LocalAddr implements net.Conn, also after Close.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn, also after Close.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Close implements net.Conn.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return &net.OpError{Op: "close", Net: c.local.Network(), Addr: c.local, Err: net.ErrClosed}
	}
	return c.TCPConn.Close()
}
