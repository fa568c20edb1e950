package iscsi

import (
	"bufio"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

// window is how many commands an initiator may have under way.
const window = 32

// serverConn is one connection at the target. One goroutine reads, executes and answers, so that
// commands run in order and none runs after serve has returned.
type serverConn struct {
	target *Target
	conn   net.Conn
	r      *bufio.Reader
	done   chan struct{} // closed when it has been dropped
	closed atomic.Bool

	nexus     Nexus
	isid      [6]byte
	discovery bool
	limits    limits
	units     map[uint16]Device
	cmdSN     uint32 // the next one expected
	statSN    uint32
	queue     []*pdu // commands that came while another one waited for its data
	rest      []byte // of a text answer
}

var errLogout = errors.New("logged out")

func newServerConn(t *Target, conn net.Conn) *serverConn {
	return &serverConn{target: t, conn: conn, r: bufio.NewReader(conn), done: make(chan struct{}), limits: defaults(),
		statSN: 1, nexus: Nexus{By: Identity{Address: addressOf(conn)}}}
}

// close makes the connection end after the command that runs.
func (c *serverConn) close() {
	c.closed.Store(true)
	_ = c.conn.Close()
}

func (c *serverConn) serve() {
	err := c.login()
	if err == nil {
		err = c.loop()
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, errLogout) && !c.closed.Load() {
		c.target.cfg.Logger.Info("iSCSI connection ends", "target", c.nexus.Target, "initiator", c.nexus.By.Name,
			"address", c.nexus.By.Address, "err", err)
	}
}

func (c *serverConn) loop() error {
	for {
		req, err := c.next()
		if err != nil {
			return err
		}
		if err := c.handle(req); err != nil {
			return err
		}
	}
}

// next takes a queued command or reads one. What was received before close is not executed after it.
func (c *serverConn) next() (*pdu, error) {
	if len(c.queue) > 0 && !c.closed.Load() {
		req := c.queue[0]
		c.queue = c.queue[1:]
		return req, nil
	}
	return c.read()
}

func (c *serverConn) read() (*pdu, error) {
	req, err := readPDU(c.r, maxSegment)
	if c.closed.Load() {
		return nil, net.ErrClosed
	}
	if err != nil {
		return nil, err
	}
	if !req.immediate() && req.op() != opDataOut {
		if req.u32(24) != c.cmdSN {
			return nil, malformed("command %d, not %d", req.u32(24), c.cmdSN)
		}
		c.cmdSN++
	}
	return req, nil
}

// reply sends an answer that carries a status number.
func (c *serverConn) reply(p *pdu) error {
	p.put32(24, c.statSN)
	c.statSN++
	return c.send(p)
}

func (c *serverConn) send(p *pdu) error {
	p.put32(28, c.cmdSN)
	p.put32(32, c.cmdSN+window-1-uint32(len(c.queue)))
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.target.cfg.WriteTimeout))
	return writePDU(c.conn, p)
}

func (c *serverConn) handle(req *pdu) error {
	switch op := req.op(); {
	case op == opCommand && !c.discovery:
		return c.command(req)
	case op == opNopOut:
		if req.itt() == noTag {
			return nil
		}
		resp := newPDU(opNopIn, bitFinal)
		resp.echo(req, 16)
		resp.put32(20, noTag)
		resp.data = req.data[:min(len(req.data), c.limits.peerSegment)]
		return c.reply(resp)
	case op == opText:
		return c.text(req)
	case op == opTaskMgmt && !c.discovery:
		// Commands run one after another: whatever is to be aborted has ended or not begun.
		resp := newPDU(opTaskResp, bitFinal)
		if req.bhs[1]&0x7f == 1 { // ABORT TASK
			ref := req.u32(20)
			c.queue = slices.DeleteFunc(c.queue, func(p *pdu) bool { return p.op() == opCommand && p.itt() == ref })
		} else {
			resp.bhs[2] = 5 // not supported
		}
		resp.echo(req, 16)
		return c.reply(resp)
	case op == opLogout:
		resp := newPDU(opLogoutRsp, bitFinal)
		resp.echo(req, 16)
		if err := c.reply(resp); err != nil {
			return err
		}
		return errLogout
	default:
		resp := newPDU(opReject, bitFinal)
		resp.bhs[2] = 0x04 // protocol error
		resp.put32(16, noTag)
		resp.data = req.bhs[:]
		return errors.Join(c.reply(resp), malformed("PDU %#x", op))
	}
}

// text answers SendTargets, in as many PDUs as the initiator's segment length asks for.
func (c *serverConn) text(req *pdu) error {
	if req.u32(20) == noTag {
		got, err := parseKeys(req.data)
		if err != nil {
			return err
		}
		c.rest = c.answer(got).encode()
	}
	n := min(len(c.rest), c.limits.peerSegment)
	resp := newPDU(opTextResp, bitFinal)
	resp.put32(20, noTag)
	resp.data, c.rest = c.rest[:n], c.rest[n:]
	if len(c.rest) > 0 {
		resp.bhs[1] = bitContinue
		resp.put32(20, 1)
	}
	resp.echo(req, 16)
	return c.reply(resp)
}

func (c *serverConn) answer(got keys) keys {
	var out keys
	for _, kv := range got {
		if kv.name != "SendTargets" {
			out.add(kv.name, "NotUnderstood")
			continue
		}
		for _, name := range c.target.cfg.Gate.Visible(c.nexus.By) {
			if kv.value == "All" || kv.value == name || (kv.value == "" && name == c.nexus.Target) {
				out.add("TargetName", name)
				out.add("TargetAddress", c.conn.LocalAddr().String()+",1")
			}
		}
	}
	return out
}

func (c *serverConn) unit(req *pdu) unit {
	lun, ok := req.lun()
	u := unit{by: c.nexus.By, luns: slices.Sorted(maps.Keys(c.units))}
	if len(u.luns) == 0 || u.luns[0] != 0 {
		u.luns = slices.Insert(u.luns, 0, 0)
	}
	if ok {
		u.device, u.found = c.units[lun]
		u.found = u.found || lun == 0
	}
	return u
}

// command runs one SCSI command and answers it.
func (c *serverConn) command(req *pdu) error {
	u, cdb := c.unit(req), req.bhs[32:48]
	t := decode(cdb)
	length := int(req.u32(20))
	err := u.check(t, length)
	var out []byte
	switch {
	case err != nil:
	case t.write:
		data, lost := c.collect(req, length)
		if lost != nil {
			return lost
		}
		err = u.write(t, data)
	default:
		out, err = u.read(t, cdb)
	}
	if err == nil && req.bhs[1]&bitRead != 0 && min(len(out), length) > 0 {
		return c.dataIn(req, out, length)
	}
	resp := newPDU(opResponse, bitFinal)
	resp.echo(req, 16)
	switch {
	case err != nil:
		se := asSense(err)
		resp.bhs[3] = se.status
		resp.data = append([]byte{0, 18}, fixedSense(se.key, se.asc, se.ascq)...)
		residual(resp, length, 0)
	case !t.write:
		residual(resp, length, len(out))
	}
	return c.reply(resp)
}

// collect gathers the data of a write: what came with the command, then what it is asked for.
func (c *serverConn) collect(req *pdu, length int) ([]byte, error) {
	if len(req.data) > min(length, c.limits.firstBurst) || (len(req.data) > 0 && !c.limits.immediate) || !req.final() {
		return nil, malformed("%d bytes of unsolicited data for a write of %d", len(req.data), length)
	}
	data := make([]byte, length)
	at := copy(data, req.data)
	for sn := uint32(0); at < length; sn++ {
		burst := min(length-at, c.limits.maxBurst)
		ask := newPDU(opR2T, bitFinal)
		copy(ask.bhs[8:20], req.bhs[8:20]) // LUN and tag
		ask.put32(20, sn)
		ask.put32(24, c.statSN)
		ask.put32(36, sn)
		ask.put32(40, uint32(at))
		ask.put32(44, uint32(burst))
		if err := c.send(ask); err != nil {
			return nil, err
		}
		dataSN := uint32(0)
		for end := at + burst; at < end; {
			p, err := c.read()
			if err != nil {
				return nil, err
			}
			if p.op() != opDataOut {
				if len(c.queue) == window {
					return nil, malformed("more than %d commands under way", window)
				}
				c.queue = append(c.queue, p)
				continue
			}
			if p.itt() != req.itt() || p.u32(20) != sn || p.u32(36) != dataSN || int(p.u32(40)) != at || len(p.data) == 0 || len(p.data) > end-at {
				return nil, malformed("%d bytes at %d, asked for %d up to %d", len(p.data), p.u32(40), at, end)
			}
			dataSN++
			at += copy(data[at:], p.data)
		}
	}
	return data, nil
}

// dataIn sends the data of a read; the last PDU carries the status.
func (c *serverConn) dataIn(req *pdu, out []byte, length int) error {
	n := min(len(out), length)
	for at, sn := 0, uint32(0); ; sn++ {
		size := min(n-at, c.limits.peerSegment)
		p := newPDU(opDataIn, 0)
		p.echo(req, 16)
		p.put32(20, noTag)
		p.put32(36, sn)
		p.put32(40, uint32(at))
		p.data = out[at : at+size]
		at += size
		if at < n {
			if err := c.send(p); err != nil {
				return err
			}
			continue
		}
		p.bhs[1] = bitFinal | bitStatus
		residual(p, length, len(out))
		return c.reply(p)
	}
}

// residual tells how far the expected and the actual length differ.
func residual(p *pdu, expected, actual int) {
	switch {
	case actual > expected:
		p.bhs[1] |= bitOverflow
		p.put32(44, uint32(actual-expected))
	case actual < expected:
		p.bhs[1] |= bitUnderflow
		p.put32(44, uint32(expected-actual))
	}
}
