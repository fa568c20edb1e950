package iscsi

import (
	"encoding/binary"
	"io"
)

// Opcodes (RFC 7143 section 11.2.1.2).
const (
	opNopOut    = 0x00
	opCommand   = 0x01
	opTaskMgmt  = 0x02
	opLogin     = 0x03
	opText      = 0x04
	opDataOut   = 0x05
	opLogout    = 0x06
	opNopIn     = 0x20
	opResponse  = 0x21
	opTaskResp  = 0x22
	opLoginResp = 0x23
	opTextResp  = 0x24
	opDataIn    = 0x25
	opLogoutRsp = 0x26
	opR2T       = 0x31
	opAsync     = 0x32
	opReject    = 0x3f
)

// Bits of the first two bytes.
const (
	bitImmediate = 0x40 // byte 0
	bitFinal     = 0x80 // byte 1; "transit" in a login
	bitContinue  = 0x40 // byte 1 of login and text; "read" in a command
	bitRead      = 0x40
	bitWrite     = 0x20
	bitOverflow  = 0x04
	bitUnderflow = 0x02
	bitStatus    = 0x01 // a Data-In that carries the status
)

const (
	bhsSize = 48
	noTag   = 0xffffffff

	// maxSegment is the largest data segment that either side of this package takes.
	maxSegment = 256 << 10
	// loginSegment is the limit before negotiation (RFC 7143 section 13.12).
	loginSegment = 8192
)

// pdu is one protocol data unit: the basic header segment and the data segment. Additional header
// segments are read over.
type pdu struct {
	bhs  [bhsSize]byte
	data []byte
}

func newPDU(op byte, flags byte) *pdu {
	p := &pdu{}
	p.bhs[0], p.bhs[1] = op, flags
	return p
}

func (p *pdu) op() byte               { return p.bhs[0] & 0x3f }
func (p *pdu) immediate() bool        { return p.bhs[0]&bitImmediate != 0 }
func (p *pdu) final() bool            { return p.bhs[1]&bitFinal != 0 }
func (p *pdu) u32(at int) uint32      { return binary.BigEndian.Uint32(p.bhs[at:]) }
func (p *pdu) put32(at int, v uint32) { binary.BigEndian.PutUint32(p.bhs[at:], v) }
func (p *pdu) u16(at int) uint16      { return binary.BigEndian.Uint16(p.bhs[at:]) }
func (p *pdu) put16(at int, v uint16) { binary.BigEndian.PutUint16(p.bhs[at:], v) }
func (p *pdu) itt() uint32            { return p.u32(16) }
func (p *pdu) echo(req *pdu, at ...int) {
	for _, i := range at {
		copy(p.bhs[i:i+4], req.bhs[i:i+4])
	}
}

// lun reads the single-level LUN of bytes 8 and 9 (SAM-5 section 4.7): peripheral or flat addressing.
// ok is false for other forms.
func (p *pdu) lun() (lun uint16, ok bool) {
	switch p.bhs[8] >> 6 {
	case 0:
		return uint16(p.bhs[9]), p.bhs[8] == 0
	case 1:
		return uint16(p.bhs[8]&0x3f)<<8 | uint16(p.bhs[9]), true
	}
	return 0, false
}

func (p *pdu) putLUN(lun uint16) { putLUN(p.bhs[8:], lun) }

func putLUN(b []byte, lun uint16) {
	b[0], b[1] = byte(lun>>8), byte(lun)
	if lun > 0xff {
		b[0] |= 0x40
	}
}

// readPDU reads one PDU whose data segment has at most limit bytes.
func readPDU(r io.Reader, limit int) (*pdu, error) {
	p := &pdu{}
	if _, err := io.ReadFull(r, p.bhs[:]); err != nil {
		return nil, err
	}
	size := int(p.bhs[5])<<16 | int(p.bhs[6])<<8 | int(p.bhs[7])
	if size > limit {
		return nil, malformed("a data segment of %d bytes, more than the %d agreed", size, limit)
	}
	if ahs := int(p.bhs[4]) * 4; ahs > 0 {
		if _, err := io.CopyN(io.Discard, r, int64(ahs)); err != nil {
			return nil, noEOF(err)
		}
	}
	if size == 0 {
		return p, nil
	}
	buf := make([]byte, (size+3)&^3)
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, noEOF(err)
	}
	p.data = buf[:size]
	return p, nil
}

// writePDU writes a PDU in one write, padded to four bytes.
func writePDU(w io.Writer, p *pdu) error {
	n := len(p.data)
	p.bhs[4], p.bhs[5], p.bhs[6], p.bhs[7] = 0, byte(n>>16), byte(n>>8), byte(n)
	buf := make([]byte, bhsSize+(n+3)&^3)
	copy(buf, p.bhs[:])
	copy(buf[bhsSize:], p.data)
	_, err := w.Write(buf)
	return err
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
