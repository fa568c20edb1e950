package iscsi

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Params say who logs in to what.
type Params struct {
	Initiator string  // own IQN
	Target    string  // IQN of the target; empty for a discovery session
	Account   Account // CHAP, when the target asks for it
	// Timeout bounds each exchange. Zero means 15 s, the usual login timeout of open-iscsi.
	Timeout time.Duration
	// NoImmediateData makes all written data solicited, as iPXE does.
	NoImmediateData bool
}

// Validate names the field that is wrong.
func (p Params) Validate() error {
	if err := CheckName(p.Initiator); err != nil {
		return fault.Wrap(err, "Initiator", "")
	}
	if p.Target != "" {
		if err := CheckName(p.Target); err != nil {
			return fault.Wrap(err, "Target", "")
		}
	}
	if (p.Account.User == "") != (p.Account.Secret == "") {
		return fault.New(fault.Invalid, "Account needs both User and Secret")
	}
	return nil
}

// LoginError is the status with which a target refused a login (RFC 7143 section 11.13.5).
type LoginError struct{ Class, Detail byte }

func (e *LoginError) Error() string {
	text := map[[2]byte]string{
		{2, 0}: "initiator error", {2, 1}: "authentication failed", {2, 2}: "not authorized", {2, 3}: "target not found or masked",
		{2, 4}: "target removed", {2, 6}: "too many connections", {2, 7}: "missing parameter", {2, 10}: "no such session",
		{3, 0}: "target error", {3, 1}: "service unavailable", {3, 2}: "out of resources",
	}[[2]byte{e.Class, e.Detail}]
	if e.Class == 1 {
		text = "target moved"
	}
	return fmt.Sprintf("login status %02x%02x %s", e.Class, e.Detail, text)
}

func (e *LoginError) kind() fault.Kind {
	switch {
	case e.Class == 2 && e.Detail <= 2:
		return fault.Unauthorized
	case e.Class == 2 && (e.Detail == 3 || e.Detail == 4):
		return fault.NotFound
	case e.Class == 1:
		return fault.Unsupported
	case e.Class == 3 || e.Detail == 6:
		return fault.Busy
	}
	return fault.Internal
}

// Stages of a login.
const (
	stageSecurity    = 0
	stageOperational = 1
	stageFull        = 3
	maxLoginPDUs     = 16
)

// Login opens a session over conn, which it owns from here: it is closed with the session, or at once
// when the login fails.
//
// Errors: Unauthorized (wrong account), NotFound (no such target, or masked), Busy, Timeout, Unreachable.
func Login(ctx context.Context, conn net.Conn, p Params) (*Session, error) {
	if p.Timeout == 0 {
		p.Timeout = 15 * time.Second
	}
	s := &Session{conn: conn, r: bufio.NewReader(conn), params: p, limits: defaults(), cmdSN: 1,
		turn: make(chan struct{}, 1), blockSize: map[uint16]int{}}
	s.where = fmt.Sprintf("target %s at %s", p.Target, conn.RemoteAddr())
	err := p.Validate()
	if err == nil {
		err = s.bounded(ctx, s.login)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fault.Wrap(err, "log in as "+p.Initiator, s.where)
	}
	return s, nil
}

func (s *Session) login() error {
	// A random ISID (RFC 7143 section 11.12.5, type 10b), so that two sessions of one name do not
	// reinstate each other.
	rand.Read(s.isid[:])
	s.isid[0] = 0x80

	var k keys
	k.add("InitiatorName", s.params.Initiator)
	if s.params.Target == "" {
		k.add("SessionType", "Discovery")
	} else {
		k.add("SessionType", "Normal")
		k.add("TargetName", s.params.Target)
	}
	methods := "None"
	if s.params.Account.User != "" {
		methods = "CHAP,None"
	}
	k.add("AuthMethod", methods)
	stage, transit, proposed, answered := stageSecurity, s.params.Account.User == "", false, false
	for range maxLoginPDUs {
		resp, got, err := s.loginStep(stage, transit, k)
		if err != nil {
			return err
		}
		k = nil
		if resp.final() {
			if next := int(resp.bhs[1] & 3); next == stageFull {
				if _, err := s.limits.accept(got); err != nil {
					return err
				}
				return nil
			}
			stage = stageOperational
		}
		switch {
		case stage == stageSecurity && !answered:
			if method, ok := got.get("AuthMethod"); ok && method == "None" {
				transit = true
				continue
			}
			if _, asked := got.get("CHAP_C"); !asked {
				k.add("CHAP_A", chapMD5)
				continue
			}
			if k, err = answerCHAP(got, s.params.Account); err != nil {
				return err
			}
			answered, transit = true, true
		case stage == stageOperational:
			if k, err = s.limits.accept(got); err != nil {
				return err
			}
			if !proposed {
				k = append(offer(!s.params.NoImmediateData), k...)
			}
			proposed, transit = true, true
		}
	}
	return malformed("the login does not end within %d exchanges", maxLoginPDUs)
}

// loginStep is one exchange of a login.
func (s *Session) loginStep(stage int, transit bool, k keys) (*pdu, keys, error) {
	next := stageOperational
	if stage == stageOperational {
		next = stageFull
	}
	req := newPDU(opLogin|bitImmediate, byte(stage<<2))
	if transit {
		req.bhs[1] |= bitFinal | byte(next)
	}
	copy(req.bhs[8:14], s.isid[:])
	req.put32(24, s.cmdSN)
	req.put32(28, s.expStatSN)
	req.data = k.encode()
	if err := writePDU(s.conn, req); err != nil {
		return nil, nil, err
	}
	resp, err := readPDU(s.r, loginSegment)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case resp.op() != opLoginResp:
		return nil, nil, malformed("PDU %#x in answer to a login", resp.op())
	case resp.bhs[36] != 0:
		e := &LoginError{resp.bhs[36], resp.bhs[37]}
		return nil, nil, &fault.Error{Kind: e.kind(), Err: e}
	case resp.bhs[1]&bitContinue != 0:
		return nil, nil, malformed("a login answer in several PDUs")
	case resp.final() && !transit:
		return nil, nil, malformed("the target moves on unasked")
	}
	s.expStatSN = resp.u32(24) + 1
	got, err := parseKeys(resp.data)
	return resp, got, err
}
