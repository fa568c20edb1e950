package iscsi

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Session is an initiator's session with one target. It runs one command at a time and is safe for
// concurrent use. Pings of the target are answered while a command waits, not in between.
type Session struct {
	conn   net.Conn
	r      *bufio.Reader
	params Params
	where  string
	turn   chan struct{} // held by the command that runs

	isid      [6]byte
	limits    limits
	cmdSN     uint32
	expStatSN uint32
	tag       uint32
	blockSize map[uint16]int
	dead      error // why the connection cannot be used any more
}

// bounded runs fn with deadlines on the connection, which ctx cuts short. A connection on which an
// exchange broke off is of no further use.
func (s *Session) bounded(ctx context.Context, fn func() error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), "wait for the session", s.where)
	}
	if s.dead != nil {
		return s.dead
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap(err, "", s.where)
	}
	_ = s.conn.SetDeadline(time.Now().Add(s.params.Timeout))
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := fn()
	if err == nil {
		return nil
	}
	if _, answered := err.(*senseError); !answered {
		_ = s.conn.Close()
		s.dead = &fault.Error{Kind: fault.Unreachable, Where: s.where, What: "the session is gone", Err: err}
		return ioError(err, "")
	}
	return err
}

// senseError is a command that the target executed and refused: the session lives on.
type senseError struct {
	status         byte
	key, asc, ascq byte
}

func (e *senseError) Error() string {
	switch {
	case e.status == statusReservation:
		return "reservation conflict"
	case e.status == statusCheck:
		return "check condition " + hexValue([]byte{e.key, e.asc, e.ascq})
	}
	return "SCSI status " + hexValue([]byte{e.status})
}

func (e *senseError) kind() fault.Kind {
	switch {
	case e.status == statusReservation:
		return fault.Conflict
	case e.status == statusBusy || e.status == statusFull || e.key == senseNotReady:
		return fault.Busy
	case e.asc == ascNoLUN:
		return fault.NotFound
	case e.asc == ascOutOfRange:
		return fault.Invalid
	case e.key == senseProtect:
		return fault.Unauthorized
	}
	return fault.Internal
}

// command runs one SCSI command and returns the data read. Unit attentions, which a target reports once
// after a login or a change, are read over.
func (s *Session) command(ctx context.Context, what string, lun uint16, cdb []byte, out []byte, in int) ([]byte, error) {
	var got []byte
	var err error
	for range 4 {
		err = s.bounded(ctx, func() (err error) {
			got, err = s.exchange(lun, cdb, out, in)
			return err
		})
		if se, ok := err.(*senseError); ok {
			if se.status == statusCheck && se.key == senseAttention {
				continue
			}
			err = &fault.Error{Kind: se.kind(), Err: se}
		}
		break
	}
	return got, fault.Wrap(err, what, s.where)
}

func (s *Session) exchange(lun uint16, cdb, out []byte, in int) ([]byte, error) {
	req := newPDU(opCommand, bitFinal|1) // simple task attribute
	req.putLUN(lun)
	copy(req.bhs[32:], cdb)
	length := in
	if in > 0 {
		req.bhs[1] |= bitRead
	}
	if len(out) > 0 {
		length = len(out)
		req.bhs[1] |= bitWrite
		if s.limits.immediate {
			req.data = out[:min(len(out), s.limits.firstBurst, s.limits.peerSegment)]
		}
	}
	s.tag++
	req.put32(16, s.tag)
	req.put32(20, uint32(length))
	req.put32(24, s.cmdSN)
	req.put32(28, s.expStatSN)
	s.cmdSN++
	if err := writePDU(s.conn, req); err != nil {
		return nil, err
	}
	buf := make([]byte, in)
	filled := 0
	for {
		p, err := s.next()
		if err != nil {
			return nil, err
		}
		if p.itt() != s.tag {
			return nil, malformed("answer to tag %#x, not %#x", p.itt(), s.tag)
		}
		switch p.op() {
		case opR2T:
			if err := s.send(lun, p, out); err != nil {
				return nil, err
			}
		case opDataIn:
			at := int(p.u32(40))
			if at != filled || at+len(p.data) > in {
				return nil, malformed("data at %d of %d, after %d", at, in, filled)
			}
			filled += copy(buf[at:], p.data)
			if p.bhs[1]&bitStatus != 0 {
				return buf[:filled], status(p)
			}
		case opResponse:
			if p.bhs[2] != 0 {
				return nil, malformed("target failure: response %#x", p.bhs[2])
			}
			return buf[:filled], status(p)
		default:
			return nil, malformed("PDU %#x in answer to a command", p.op())
		}
	}
}

// next reads the next PDU that belongs to a request, and answers pings in between.
func (s *Session) next() (*pdu, error) {
	for {
		p, err := readPDU(s.r, maxSegment)
		if err != nil {
			return nil, err
		}
		ping := p.op() == opNopIn && p.itt() == noTag
		if !ping && p.op() != opR2T && (p.op() != opDataIn || p.bhs[1]&bitStatus != 0) {
			s.expStatSN = p.u32(24) + 1
		}
		switch {
		case ping:
			if p.u32(20) == noTag {
				continue
			}
			pong := newPDU(opNopOut|bitImmediate, bitFinal)
			copy(pong.bhs[8:16], p.bhs[8:16])
			pong.put32(16, noTag)
			pong.echo(p, 20)
			pong.put32(24, s.cmdSN)
			pong.put32(28, s.expStatSN)
			if err := writePDU(s.conn, pong); err != nil {
				return nil, err
			}
		case p.op() == opReject:
			return nil, malformed("rejected with reason %#x", p.bhs[2])
		case p.op() == opAsync:
			return nil, malformed("the target ends the session: event %d", p.bhs[36])
		default:
			return p, nil
		}
	}
}

// send answers a request to transmit.
func (s *Session) send(lun uint16, r2t *pdu, out []byte) error {
	at, n := int(r2t.u32(40)), int(r2t.u32(44))
	if at > len(out) || n > len(out)-at || n == 0 {
		return malformed("asked for %d bytes at %d of %d", n, at, len(out))
	}
	for sn := uint32(0); n > 0; sn++ {
		size := min(n, s.limits.peerSegment)
		p := newPDU(opDataOut, 0)
		if size == n {
			p.bhs[1] = bitFinal
		}
		p.putLUN(lun)
		p.echo(r2t, 16, 20)
		p.put32(28, s.expStatSN)
		p.put32(36, sn)
		p.put32(40, uint32(at))
		p.data = out[at : at+size]
		if err := writePDU(s.conn, p); err != nil {
			return err
		}
		at, n = at+size, n-size
	}
	return nil
}

func status(p *pdu) error {
	code := p.bhs[3]
	if code == statusGood {
		return nil
	}
	e := &senseError{status: code}
	if p.op() == opResponse && len(p.data) >= 2+14 { // sense length, fixed format sense data (SPC-4 section 4.5.3)
		e.key, e.asc, e.ascq = p.data[2+2]&0xf, p.data[2+12], p.data[2+13]
	}
	return e
}

// Capacity asks for the number of blocks of a LUN and their size in bytes.
func (s *Session) Capacity(ctx context.Context, lun uint16) (blocks uint64, size int, err error) {
	got, err := s.command(ctx, "read capacity", lun, []byte{scsiCapacity10, 0, 0, 0, 0, 0, 0, 0, 0, 0}, nil, 8)
	if err != nil {
		return 0, 0, err
	}
	if len(got) < 8 {
		return 0, 0, fault.Wrap(malformed("a capacity of %d bytes", len(got)), "read capacity", s.where)
	}
	blocks, size = uint64(binary.BigEndian.Uint32(got))+1, int(binary.BigEndian.Uint32(got[4:]))
	if blocks == 1<<32 { // or more: the form is too short to tell
		if blocks, size, err = s.capacity16(ctx, lun); err != nil {
			return 0, 0, err
		}
	}
	if size < 512 || size > 64<<10 {
		return 0, 0, fault.Wrap(malformed("a block size of %d", size), "read capacity", s.where)
	}
	return blocks, size, nil
}

func (s *Session) size(ctx context.Context, lun uint16) (int, error) {
	s.turn <- struct{}{}
	size := s.blockSize[lun]
	<-s.turn
	if size > 0 {
		return size, nil
	}
	_, size, err := s.Capacity(ctx, lun)
	if err == nil {
		s.turn <- struct{}{}
		s.blockSize[lun] = size
		<-s.turn
	}
	return size, err
}

func rw10(op byte, lba uint32, blocks int) []byte {
	cdb := make([]byte, 10)
	cdb[0] = op
	binary.BigEndian.PutUint32(cdb[2:], lba)
	binary.BigEndian.PutUint16(cdb[7:], uint16(blocks))
	return cdb
}

// WriteBlock writes data, whole blocks, from block lba on. A nil error means that the target has it.
func (s *Session) WriteBlock(ctx context.Context, lun uint16, lba uint32, data []byte) error {
	size, err := s.size(ctx, lun)
	if err != nil {
		return err
	}
	if n := len(data) / size; len(data)%size != 0 || n == 0 || n > 0xffff {
		return fault.Newf(fault.Invalid, "%d bytes are no whole blocks of %d", len(data), size)
	}
	_, err = s.command(ctx, "write", lun, rw10(scsiWrite10, lba, len(data)/size), data, 0)
	return err
}

// ReadBlock reads the block lba.
func (s *Session) ReadBlock(ctx context.Context, lun uint16, lba uint32) ([]byte, error) {
	size, err := s.size(ctx, lun)
	if err != nil {
		return nil, err
	}
	got, err := s.command(ctx, "read", lun, rw10(scsiRead10, lba, 1), nil, size)
	if err == nil && len(got) != size {
		err = fault.Wrap(malformed("%d bytes of a block of %d", len(got), size), "read", s.where)
	}
	return got, err
}

// Ping asks for a sign of life.
func (s *Session) Ping(ctx context.Context) error {
	return fault.Wrap(s.bounded(ctx, func() error {
		_, err := s.request(newPDU(opNopOut|bitImmediate, bitFinal), opNopIn)
		return err
	}), "ping", s.where)
}

// request sends an immediate request that is no command, and returns its answer.
func (s *Session) request(req *pdu, want byte) (*pdu, error) {
	s.tag++
	req.put32(16, s.tag)
	if req.op() != opLogout {
		req.put32(20, noTag)
	}
	req.put32(24, s.cmdSN)
	req.put32(28, s.expStatSN)
	if err := writePDU(s.conn, req); err != nil {
		return nil, err
	}
	p, err := s.next()
	if err == nil && (p.op() != want || p.itt() != s.tag) {
		err = malformed("PDU %#x, not %#x", p.op(), want)
	}
	return p, err
}

// Targets lists the names of the targets that the portal shows us.
func (s *Session) Targets(ctx context.Context) ([]string, error) {
	var names []string
	err := s.bounded(ctx, func() error {
		req := newPDU(opText|bitImmediate, bitFinal)
		var k keys
		k.add("SendTargets", "All")
		req.data = k.encode()
		p, err := s.request(req, opTextResp)
		if err != nil {
			return err
		}
		if !p.final() {
			return malformed("a list of targets in several PDUs")
		}
		got, err := parseKeys(p.data)
		for _, kv := range got {
			if kv.name == "TargetName" {
				names = append(names, strings.Clone(kv.value))
			}
		}
		return err
	})
	return names, fault.Wrap(err, "list targets", s.where)
}

// Logout ends the session in order and closes the connection, whatever the target answers.
func (s *Session) Logout(ctx context.Context) error {
	defer s.Close()
	return fault.Wrap(s.bounded(ctx, func() error {
		p, err := s.request(newPDU(opLogout|bitImmediate, bitFinal), opLogoutRsp)
		if err == nil && p.bhs[2] != 0 {
			err = malformed("logout response %d", p.bhs[2])
		}
		return err
	}), "log out", s.where)
}

// Close drops the connection without a logout, as a machine does that loses power.
func (s *Session) Close() error { return s.conn.Close() }
