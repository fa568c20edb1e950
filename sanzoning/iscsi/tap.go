package iscsi

import (
	"encoding/binary"
	"net"
	"strings"
	"sync"
)

// Watcher is told what passes on a connection that is watched with Tap. Its functions must not block.
type Watcher struct {
	// Login is called once, when the target has accepted the initiator. A discovery session has no target.
	Login func(initiator, target string)
	// Wrote is called for every command that changes a logical unit's data, when the target has reported
	// that it succeeded.
	Wrote func(lun uint16)
	// Blind is called when no more can be seen: digests were negotiated, or the peers do not speak iSCSI.
	Blind func(why string)
}

// Tap returns c with all that passes shown to w. c is the connection towards the target: what is written to
// it comes from the initiator. Nothing is changed or held back.
func Tap(c net.Conn, w Watcher) net.Conn {
	t := &tap{Conn: c, w: w, writes: map[uint32]uint16{}}
	t.out.each, t.in.each = t.asked, t.answered
	return t
}

type tap struct {
	net.Conn
	w Watcher

	mu                sync.Mutex
	out, in           segments
	initiator, target string
	writes            map[uint32]uint16 // commands under way, by tag: their LUN
	loggedIn, blind   bool
}

// Write implements net.Conn.
func (t *tap) Write(b []byte) (int, error) {
	n, err := t.Conn.Write(b)
	t.see(&t.out, b[:n])
	return n, err
}

// Read implements net.Conn.
func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.see(&t.in, b[:n])
	return n, err
}

// CloseWrite ends the initiator's direction, where the connection can.
func (t *tap) CloseWrite() error {
	if h, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return t.Close()
}

func (t *tap) see(s *segments, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.blind {
		s.push(b)
	}
}

func (t *tap) lose(why string) {
	t.blind = true
	if t.w.Blind != nil {
		t.w.Blind(why)
	}
}

// maxTags bounds the commands under way that are remembered: more than any initiator queues.
const maxTags = 4096

// asked is a PDU of the initiator.
func (t *tap) asked(p *pdu) {
	switch p.op() {
	case opLogin:
		k, err := parseKeys(p.data)
		if err != nil {
			t.lose(err.Error())
			return
		}
		for _, kv := range k {
			switch kv.name {
			case "InitiatorName":
				t.initiator = kv.value
			case "TargetName":
				t.target = kv.value
			}
		}
	case opCommand:
		if lun, ok := p.lun(); ok && changes(p.bhs[32]) && len(t.writes) < maxTags {
			t.writes[p.itt()] = lun
		}
	}
}

// answered is a PDU of the target.
func (t *tap) answered(p *pdu) {
	switch p.op() {
	case opLoginResp:
		k, err := parseKeys(p.data)
		if err != nil {
			t.lose(err.Error())
			return
		}
		for _, name := range []string{"HeaderDigest", "DataDigest"} {
			if v, ok := k.get(name); ok && !strings.EqualFold(v, "None") {
				t.lose(name + "=" + v)
				return
			}
		}
		// Transit to the full feature phase, and a status of success (RFC 7143 section 11.13).
		if p.bhs[1]&0x83 == 0x83 && p.bhs[36] == 0 && !t.loggedIn {
			t.loggedIn = true
			if t.w.Login != nil {
				t.w.Login(t.initiator, t.target)
			}
		}
	case opResponse:
		lun, ok := t.writes[p.itt()]
		delete(t.writes, p.itt())
		if ok && p.bhs[2] == 0 && p.bhs[3] == 0 && t.w.Wrote != nil { // completed at the target, status GOOD
			t.w.Wrote(lun)
		}
	}
}

// changes says whether a SCSI command changes data (SBC-4 section 5).
func changes(operation byte) bool {
	switch operation {
	case 0x0a, 0x2a, 0xaa, 0x8a, // WRITE (6), (10), (12), (16)
		0x2e, 0xae, 0x8e, // WRITE AND VERIFY
		0x41, 0x93, // WRITE SAME
		0x42, // UNMAP
		0x89: // COMPARE AND WRITE
		return true
	}
	return false
}

// segments takes a stream apart into PDUs as it comes in. Only the data of logins is kept.
type segments struct {
	each func(*pdu)

	head []byte // of the PDU that is coming in
	p    *pdu   // its header, when that is whole
	skip int    // bytes of it that nobody wants
	want int    // bytes of data that are
	data []byte
}

func (s *segments) push(b []byte) {
	for len(b) > 0 {
		switch {
		case s.skip > 0:
			n := min(s.skip, len(b))
			s.skip, b = s.skip-n, b[n:]
		case s.want > 0:
			n := min(s.want, len(b))
			s.data, s.want, b = append(s.data, b[:n]...), s.want-n, b[n:]
		default:
			n := min(bhsSize-len(s.head), len(b))
			s.head, b = append(s.head, b[:n]...), b[n:]
			if len(s.head) < bhsSize {
				return
			}
			s.begin()
		}
		if s.p != nil && s.skip == 0 && s.want == 0 {
			s.end()
		}
	}
}

// begin knows what follows a header.
func (s *segments) begin() {
	s.p = &pdu{}
	copy(s.p.bhs[:], s.head)
	size := int(binary.BigEndian.Uint32(s.head[4:]) & 0xffffff)
	padded := int(s.head[4])*4 + (size+3)&^3
	s.head = s.head[:0]
	if op := s.p.op(); (op == opLogin || op == opLoginResp) && s.p.bhs[4] == 0 && size <= maxSegment {
		s.want = padded
		return
	}
	s.skip = padded
}

func (s *segments) end() {
	p := s.p
	p.data = s.data
	s.p, s.data = nil, nil
	s.each(p)
}
