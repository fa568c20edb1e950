package tftp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Client fetches files. The zero value asks for nothing but the file and its size.
type Client struct {
	// ListenPacket opens the socket; default net.ListenPacket.
	ListenPacket func(network, address string) (net.PacketConn, error)
	Local        string        // address to fetch from; default any
	Block        int           // blksize to ask for; 0: 512 without asking
	Window       int           // windowsize to ask for; 0 or 1: none
	Timeout      time.Duration // before a repetition; default 1 s
	Tries        int           // without progress; default 10
	MaxSize      int64         // more is refused; default 1 GiB
}

// Get fetches name from server into w and returns its size. A file that does not exist is
// fault.NotFound, silence fault.Timeout, a size other than announced fault.Unverified.
func (c Client) Get(ctx context.Context, server netip.AddrPort, name string, w io.Writer) (int64, error) {
	c.Timeout = or(c.Timeout, time.Second)
	c.Tries = or(c.Tries, 10)
	c.MaxSize = or(c.MaxSize, 1<<30)
	if c.ListenPacket == nil {
		c.ListenPacket = net.ListenPacket
	}
	if name == "" || len(name) > maxName || c.Block < 0 || c.Block > maxBlock || c.Window < 0 || c.Window > 65535 {
		return 0, fault.New(fault.Invalid, "TFTP file name or options out of range")
	}
	conn, err := c.ListenPacket("udp4", net.JoinHostPort(c.Local, "0"))
	if err != nil {
		return 0, fault.Wrap(err, "open socket", "TFTP client")
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	g := &get{c: c, conn: conn, server: server, to: server, w: w, block: stdBlock, window: 1, size: -1}
	n, err := g.run(name)
	if ctx.Err() != nil {
		return n, ctx.Err()
	}
	return n, fault.Wrap(err, "fetch "+name, "TFTP server "+server.String())
}

// get is one transfer as its receiver sees it.
type get struct {
	c      Client
	conn   net.PacketConn
	server netip.AddrPort
	to     netip.AddrPort // the server's transfer ID once it has answered
	w      io.Writer
	block  int
	window int
	size   int64 // as announced; -1: not

	got     uint16 // number of the last block in order
	n       int64
	inRow   int  // blocks since the last ACK
	gap     bool // the last good block was acknowledged because of a gap
	granted bool // OACK or first DATA came
}

func (g *get) run(name string) (int64, error) {
	ask := options{tsize: 0, hasSize: true}
	if g.c.Block > 0 && g.c.Block != stdBlock {
		ask.block = g.c.Block
	}
	if g.c.Window > 1 {
		ask.window = g.c.Window
	}
	last := appendRequest(nil, name, ask)
	if err := g.send(last); err != nil {
		return 0, err
	}
	buf := make([]byte, max(g.c.Block, stdBlock)+4+1)
	tries, wait := 0, g.c.Timeout
	for {
		b, err := g.receive(buf, wait)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if tries++; tries >= g.c.Tries {
				return g.n, fault.New(fault.Timeout, "no answer")
			}
			if g.granted {
				last = g.ackPacket()
			}
			g.gap, g.inRow = false, 0
			wait = min(2*wait, 8*time.Second)
			if err := g.send(last); err != nil {
				return g.n, err
			}
			continue
		}
		if err != nil {
			return g.n, err
		}
		done, progress, err := g.packet(b, ask)
		if done || err != nil {
			return g.n, err
		}
		if progress {
			tries, wait = 0, g.c.Timeout
		}
	}
}

// packet handles one packet of the server.
func (g *get) packet(b []byte, ask options) (done, progress bool, err error) {
	op, num, rest, ok := parse(b)
	switch {
	case !ok:
		return false, false, nil
	case op == opERROR:
		return false, false, remoteError(num, rest)
	case op == opOACK && g.got == 0 && g.n == 0:
		if err := g.grant(rest, ask); err != nil {
			_ = g.send(appendError(nil, errOptions, "option not asked for")) // best effort: the transfer is over
			return false, false, err
		}
		return false, true, g.ack()
	case op != opDATA:
		return false, false, nil
	}
	if len(rest) > g.block {
		return false, false, fault.Newf(fault.Invalid, "block of %d bytes where %d were agreed", len(rest), g.block)
	}
	if num != g.got+1 {
		return false, false, g.stray(num)
	}
	g.granted, g.gap = true, false
	if g.n += int64(len(rest)); g.n > g.c.MaxSize {
		_ = g.send(appendError(nil, errUndefined, "file too large")) // best effort: the transfer is over
		return false, false, fault.Newf(fault.Invalid, "file is larger than %d bytes", g.c.MaxSize)
	}
	if _, err := g.w.Write(rest); err != nil {
		return false, false, err
	}
	g.got++
	g.inRow++
	if end := len(rest) < g.block; end || g.inRow >= g.window {
		if err := g.ack(); err != nil || !end {
			return false, true, err
		}
		if g.size >= 0 && g.n != g.size {
			return false, false, fault.Newf(fault.Unverified, "got %d bytes, %d were announced", g.n, g.size)
		}
		return true, true, nil
	}
	return false, true, nil
}

// stray handles a block out of order. One from before means, without windows, that our ACK was lost;
// one from later that a block was: the last good one is acknowledged, once for each gap.
func (g *get) stray(num uint16) error {
	later := int16(num-g.got) > 0
	if later && !g.gap || !later && g.window == 1 {
		g.gap = later
		return g.ack()
	}
	return nil
}

func (g *get) grant(rest []byte, ask options) error {
	o, err := parseOACK(rest)
	if err != nil {
		return err
	}
	if o.block > ask.block || o.window > ask.window || o.timeout > 0 {
		return fault.New(fault.Invalid, "server grants more than was asked for")
	}
	if o.block > 0 {
		g.block = o.block
	}
	if o.window > 0 {
		g.window = o.window
	}
	if o.hasSize {
		if o.tsize > g.c.MaxSize {
			return fault.Newf(fault.Invalid, "file is larger than %d bytes", g.c.MaxSize)
		}
		g.size = o.tsize
	}
	g.granted = true
	return nil
}

func (g *get) ackPacket() []byte { return []byte{0, byte(opACK), byte(g.got >> 8), byte(g.got)} }

func (g *get) ack() error {
	g.inRow = 0
	return g.send(g.ackPacket())
}

func (g *get) send(b []byte) error {
	_, err := g.conn.WriteTo(b, net.UDPAddrFromAddrPort(g.to))
	return gone(err)
}

// receive returns the next packet of this transfer. The first answer fixes the server's port; later
// ones from elsewhere are told so and dropped (RFC 1350 section 4).
func (g *get) receive(buf []byte, wait time.Duration) ([]byte, error) {
	if err := g.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	for {
		n, from, err := g.conn.ReadFrom(buf)
		if err != nil {
			if transient(err) && !errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			return nil, err
		}
		ua, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		ap := netip.AddrPortFrom(ua.AddrPort().Addr().Unmap(), ua.AddrPort().Port())
		switch {
		case ap == g.to:
			return buf[:n], nil
		case g.to == g.server && ap.Addr() == g.server.Addr():
			g.to = ap
			return buf[:n], nil
		case n >= 2 && opcode(buf[1]) != opERROR:
			_, _ = g.conn.WriteTo(appendError(nil, errUnknownTID, "unknown transfer ID"), ua) // best effort, as RFC 1350 has it
		}
	}
}
