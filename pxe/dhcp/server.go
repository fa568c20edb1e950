// Package dhcp serves DHCPv4 to the machines of a pxe.Table: reserved addresses and boot files, or
// boot files alone beside another server. A machine that is not in the table meets silence.
//
// Messages are read and written here by hand. The usual library parses into a map and sorts it again
// to write, some 60 allocations a message; the tests hold both against each other, and its benchmark
// stands beside ours.
package dhcp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/sockbuf"
)

// Server answers on the listeners of its configuration.
type Server struct {
	cfg   Config
	q     *queue
	limit limiter
	stats counters
	links []*link
}

// link is a listener at work.
type link struct {
	Listener
	conn  conn
	rogue atomic.Int64 // time of the last alarm, ns since limit.start
}

type counters struct {
	received, malformed, unknown, limited, relay, silent, replies, errors, panics atomic.Uint64
}

// Stats are counters since the start.
type Stats struct {
	Received  uint64 // messages taken from sockets
	Malformed uint64 // not DHCP, or not of an Ethernet client
	Unknown   uint64 // from a client that is not in the table
	Limited   uint64 // over the client's rate
	Relay     uint64 // from a relay or link that is not allowed
	Dropped   uint64 // pushed out of a full queue
	Silent    uint64 // from a known client, and rightly not answered
	Replies   uint64
	Errors    uint64 // answers that could not be sent
	Panics    uint64 // bugs of ours that a message set off; it was dropped
}

// New checks the configuration and makes a server.
func New(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.defaults()
	every := time.Second / time.Duration(c.Rate)
	s := &Server{cfg: c, q: newQueue(c.Queue),
		limit: limiter{start: time.Now(), every: every, burst: every * time.Duration(c.Burst)}}
	for _, l := range c.Listeners {
		sockbuf.Grow(l.Conn, sockbuf.Storm)
		s.links = append(s.links, &link{Listener: l, conn: wrap(l.Conn)})
	}
	return s, nil
}

// Stats returns the present counters.
func (s *Server) Stats() Stats {
	c := &s.stats
	return Stats{Received: c.received.Load(), Malformed: c.malformed.Load(), Unknown: c.unknown.Load(),
		Limited: c.limited.Load(), Relay: c.relay.Load(), Dropped: s.q.dropped.Load(), Silent: c.silent.Load(),
		Replies: c.replies.Load(), Errors: c.errors.Load(), Panics: c.panics.Load()}
}

// Run serves until ctx ends (nil) or a socket fails. It closes the sockets.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, l := range s.links {
		g.Go(func() error { return s.read(ctx, l) })
	}
	var workers sync.WaitGroup
	for range s.cfg.Workers {
		workers.Go(s.work)
	}
	g.Go(func() error {
		<-ctx.Done()
		for _, l := range s.links {
			_ = l.Conn.Close() // it is what ends the read
		}
		return nil
	})
	err := g.Wait()
	s.q.close()
	workers.Wait()
	return err
}

// read takes messages off a socket as fast as they come, and drops at once what will not be answered:
// a flood of unknown clients costs a look into the table each, and no memory.
func (s *Server) read(ctx context.Context, l *link) error {
	j := s.q.get()
	for {
		n, src, err := l.conn.read(j.buf[:])
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			if transient(err) {
				continue
			}
			return fault.Wrap(err, "read DHCP messages", "listener "+l.Name)
		}
		s.stats.received.Add(1)
		as, keep := s.sift(j.buf[:n])
		if !keep {
			continue
		}
		j.n, j.src, j.from = n, src, l
		s.q.push(j, as)
		j = s.q.get()
	}
}

// sift looks at the fixed part of a message, and at option 53 where clients put it, which is first.
func (s *Server) sift(b []byte) (as rank, keep bool) {
	if len(b) < optionsAt || len(b) > MaxMessage || b[2] != 6 {
		s.stats.malformed.Add(1)
		return other, false
	}
	mac := pxe.MAC(b[28:34])
	if b[0] == BootReply { // another server's; rare, and looked at for the alarm
		return other, s.limit.allow(mac)
	}
	e, known := s.cfg.Decider.Table.Lookup(mac)
	if !known {
		s.stats.unknown.Add(1)
		return other, false
	}
	if !s.limit.allow(mac) {
		s.stats.limited.Add(1)
		return other, false
	}
	request := bytes.HasPrefix(b[optionsAt:], []byte{OptMessageType, 1, byte(Request)})
	return rankOf(e.Intent.Boot != nil, request), true
}

func (s *Server) work() {
	var p Packet
	out := make([]byte, 0, MaxMessage)
	for {
		j := s.q.pop()
		if j == nil {
			return
		}
		reply, to := s.answer(&p, j.buf[:j.n], j.src, j.from, out)
		if reply != nil {
			if err := j.from.conn.write(reply, to); err != nil {
				s.stats.errors.Add(1)
				s.cfg.Logger.Debug("DHCP answer not sent", "listener", j.from.Name, "to", to, "err", err)
			} else {
				s.stats.replies.Add(1)
			}
		}
		s.q.put(j)
	}
}

// answer is Handle with the last line of defence: whatever a message sets off, the next is served.
func (s *Server) answer(p *Packet, in []byte, src netip.AddrPort, l *link, out []byte) (reply []byte, to netip.AddrPort) {
	defer func() {
		if r := recover(); r != nil {
			s.stats.panics.Add(1)
			s.cfg.Logger.Error("DHCP message dropped: bug in its handling", "panic", r, "stack", string(debug.Stack()))
			reply, *p = nil, Packet{}
		}
	}()
	if err := p.Parse(in); err != nil {
		s.stats.malformed.Add(1)
		return nil, netip.AddrPort{}
	}
	reply, to = s.handle(p, src, l, out[:0])
	if reply == nil {
		s.stats.silent.Add(1)
	}
	return reply, to
}
