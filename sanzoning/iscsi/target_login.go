package iscsi

import (
	"strconv"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// login runs the login phase of a connection. An error means that it is over.
func (c *serverConn) login() error {
	_ = c.conn.SetReadDeadline(time.Now().Add(c.target.cfg.LoginTimeout))
	l := loginState{conn: c}
	for range maxLoginPDUs {
		req, err := readPDU(c.r, loginSegment)
		if err != nil {
			return err
		}
		if req.op() != opLogin || !req.immediate() {
			return malformed("PDU %#x before the login", req.op())
		}
		resp, refused := l.step(req)
		resp.bhs[2], resp.bhs[3] = 0, 0 // version
		copy(resp.bhs[8:14], req.bhs[8:14])
		resp.echo(req, 16)
		done := refused == nil && resp.final() && resp.bhs[1]&3 == stageFull
		if done {
			if err := l.finish(resp); err != nil {
				refused = &LoginError{3, 0}
				c.target.cfg.Logger.Warn("iSCSI session refused", "by", c.nexus.By.Address, "err", err)
			}
		}
		if refused != nil {
			resp.bhs[1] = req.bhs[1] & 0x0c
			resp.bhs[36], resp.bhs[37] = refused.Class, refused.Detail
			resp.data = nil
		}
		if err := c.reply(resp); err != nil {
			return err
		}
		switch {
		case refused != nil:
			return refused
		case done:
			_ = c.conn.SetReadDeadline(time.Time{})
			return nil
		}
	}
	return malformed("the login does not end within %d exchanges", maxLoginPDUs)
}

// loginState is how far a login got.
type loginState struct {
	conn      *serverConn
	started   bool
	grant     Grant
	challenge *challenge
	proven    bool
	stage     int
	declared  bool // our segment length was told
}

// Details of a status of class 2, initiator error (RFC 7143 section 11.13.5).
const (
	badRequest   = 0
	badAuth      = 1
	forbidden    = 2
	notFound     = 3
	missingParam = 7
	badSession   = 9
	noSession    = 10
)

func refuse(detail byte) *LoginError { return &LoginError{2, detail} }

// step answers one login request.
func (l *loginState) step(req *pdu) (*pdu, *LoginError) {
	resp := newPDU(opLoginResp, req.bhs[1]&0x0c)
	stage := int(req.bhs[1] >> 2 & 3)
	got, err := parseKeys(req.data)
	if err != nil || got.once() != nil || req.bhs[1]&bitContinue != 0 || stage > stageOperational || stage < l.stage {
		return resp, refuse(badRequest)
	}
	if !l.started {
		l.conn.cmdSN = req.u32(24)
		if refused := l.start(req, got); refused != nil {
			return resp, refused
		}
		l.stage = stage
	}
	var out keys
	hold := false // the stage has more to say
	if stage == stageSecurity {
		var refused *LoginError
		if out, hold, refused = l.security(got); refused != nil {
			return resp, refused
		}
	} else {
		if !l.authenticated() || stage != l.stage {
			return resp, refuse(badAuth)
		}
		if out, err = l.conn.limits.settle(got); err != nil {
			return resp, refuse(badRequest)
		}
		if !l.declared {
			out.add("MaxRecvDataSegmentLength", strconv.Itoa(maxSegment))
			out.add("TargetPortalGroupTag", "1")
			l.declared = true
		}
	}
	if req.final() && !hold {
		next := int(req.bhs[1] & 3)
		if next <= stage || next == 2 {
			return resp, refuse(badRequest)
		}
		if !l.authenticated() {
			return resp, refuse(badAuth)
		}
		resp.bhs[1] |= bitFinal | byte(next)
		l.stage = next
	}
	resp.data = out.encode()
	return resp, nil
}

func (l *loginState) authenticated() bool { return l.proven || l.grant.Account == Account{} }

// start reads who wants what, and asks the gate.
func (l *loginState) start(req *pdu, got keys) *LoginError {
	c := l.conn
	name, ok := got.get("InitiatorName")
	if !ok {
		return refuse(missingParam)
	}
	if CheckName(strings.ToLower(name)) != nil {
		return refuse(badRequest)
	}
	if req.u16(14) != 0 {
		return refuse(noSession) // adding connections and reconnecting need a session to continue
	}
	copy(c.isid[:], req.bhs[8:14])
	c.nexus.By.Name, c.nexus.CID = name, req.u16(20)
	c.nexus.Alias, _ = got.get("InitiatorAlias")
	l.started = true
	switch kind, _ := got.get("SessionType"); kind {
	case "Discovery":
		c.discovery = true
		return nil
	case "", "Normal":
	default:
		return refuse(badSession)
	}
	if c.nexus.Target, ok = got.get("TargetName"); !ok {
		return refuse(missingParam)
	}
	grant, err := c.target.cfg.Gate.Admit(c.nexus.By, c.nexus.Target)
	switch {
	case err == nil:
		l.grant = grant
		c.units = grant.Units
		return nil
	case fault.Is(err, fault.NotFound):
		return refuse(notFound)
	case fault.Is(err, fault.Unauthorized):
		return refuse(forbidden)
	}
	return &LoginError{3, 1}
}

// security is one step of the security stage; hold keeps the login in it.
func (l *loginState) security(got keys) (out keys, hold bool, refused *LoginError) {
	methods, told := got.get("AuthMethod")
	_, answered := got.get("CHAP_R")
	algorithms, chap := got.get("CHAP_A")
	switch {
	case l.authenticated():
		if told {
			out.add("AuthMethod", "None")
		}
	case answered:
		if l.challenge == nil || !l.challenge.verify(got, l.grant.Account) {
			return nil, false, refuse(badAuth)
		}
		l.proven, l.challenge = true, nil // a response counts once
	case chap:
		if l.challenge != nil || !offers(algorithms, chapMD5) {
			return nil, false, refuse(badAuth)
		}
		l.challenge = newChallenge()
		return l.challenge.keys(), true, nil
	case told:
		if !offers(methods, "CHAP") {
			return nil, false, refuse(badAuth)
		}
		out.add("AuthMethod", "CHAP")
		out.add("TargetPortalGroupTag", "1")
		return out, true, nil
	default:
		return nil, false, refuse(badAuth)
	}
	return out, false, nil
}

// finish opens the session.
func (l *loginState) finish(resp *pdu) error {
	c := l.conn
	if c.discovery {
		resp.put16(14, 1)
		return nil
	}
	if err := c.target.register(c); err != nil {
		return err
	}
	resp.put16(14, c.nexus.TSIH)
	c.target.cfg.Gate.Opened(c.nexus)
	return nil
}
