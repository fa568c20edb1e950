package tgtsim

import (
	"errors"
	"fmt"
	"net"
	"time"

	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

// idle is how long a management connection may take to send its request.
const idle = 30 * time.Second

// outcome is what becomes of a request.
type outcome uint8

const (
	obey outcome = iota
	refuse
	drop
	dropReply
)

// manage takes management connections.
func (s *Sim) manage() {
	for {
		conn, err := s.socket.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		refused := s.closed || s.faults.Dead
		if !refused {
			s.conns[conn] = struct{}{}
		}
		s.mu.Unlock()
		if refused {
			_ = conn.Close()
			continue
		}
		s.wg.Go(func() {
			err := s.serve(conn)
			_ = conn.Close()
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
			if err != nil {
				s.cfg.Logger.Debug("management request", "err", err)
			}
		})
	}
}

// serve answers the one request of a connection.
func (s *Sim) serve(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(idle))
	req, lld, err := tgtadm.ReadRequest(conn)
	if err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	what := s.judge(req)
	if !s.stall(conn) {
		return errors.New("gave up a hanging request")
	}
	code, text := tgtadm.UnknownError, ""
	switch what {
	case drop:
		return nil
	case refuse:
	case obey, dropReply:
		code, text = tgtadm.NoDriver, ""
		if lld == "" || lld == "iscsi" {
			code, text = s.execute(req)
		}
	}
	if what == dropReply {
		return nil
	}
	_ = conn.SetDeadline(time.Now().Add(idle))
	return tgtadm.WriteAnswer(conn, code, text)
}

// judge counts a request and finds out what becomes of it.
func (s *Sim) judge(req tgtadm.Request) outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counters["request"]++
	s.counters[fmt.Sprintf("request.%d.%d", req.Mode, req.Op)]++
	f := &s.faults
	if f.Refuse+f.Drop+f.DropReply == 0 {
		return obey
	}
	if f.After > 0 {
		f.After--
		return obey
	}
	switch {
	case f.Refuse > 0:
		f.Refuse--
		return refuse
	case f.Drop > 0:
		f.Drop--
		return drop
	}
	f.DropReply--
	return dropReply
}

// stall holds a request back for Delay, and for as long as Hang is set. It is false when the peer or the
// Sim gave up.
func (s *Sim) stall(conn net.Conn) bool {
	s.mu.Lock()
	delay, hang, changed := s.faults.Delay, s.faults.Hang, s.changed
	s.mu.Unlock()
	if delay == 0 && !hang {
		return true
	}
	gone := make(chan struct{})
	go func() { // a peer sends no more than its request: an end of reading is its end
		defer close(gone)
		var b [1]byte
		_, _ = conn.Read(b[:])
	}()
	defer func() { _ = conn.SetReadDeadline(time.Unix(1, 0)); <-gone; _ = conn.SetReadDeadline(time.Time{}) }()
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-gone:
			return false
		case <-t.C:
		}
	}
	for hang {
		select {
		case <-gone:
			return false
		case <-changed:
		}
		s.mu.Lock()
		hang, changed = s.faults.Hang && !s.closed, s.changed
		if s.closed {
			s.mu.Unlock()
			return false
		}
		s.mu.Unlock()
	}
	return true
}
