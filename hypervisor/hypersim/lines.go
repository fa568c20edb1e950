package hypersim

import (
	"net"
	"sync"
)

// lines are the connections to the host's agent.
type lines struct {
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func newLines() *lines { return &lines{conns: map[net.Conn]struct{}{}} }

// cut ends all connections, as a switch that restarts does: what is under way is not answered.
func (l *lines) cut() {
	l.mu.Lock()
	conns := l.conns
	l.conns = map[net.Conn]struct{}{}
	l.mu.Unlock()
	for c := range conns {
		_ = c.Close() // the other end notices
	}
}

// Listener gives the host power over the connections that an agent accepts: a reply that is lost is lost
// on the wire.
func (h *Host) Listener(l net.Listener) net.Listener { return &listener{l, h.lines} }

type listener struct {
	net.Listener
	lines *lines
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.lines.mu.Lock()
	defer l.lines.mu.Unlock()
	t := &line{c, l.lines}
	l.lines.conns[t] = struct{}{}
	return t, nil
}

type line struct {
	net.Conn
	lines *lines
}

// Close implements net.Conn.
func (l *line) Close() error {
	l.lines.mu.Lock()
	delete(l.lines.conns, l)
	l.lines.mu.Unlock()
	return l.Conn.Close()
}
