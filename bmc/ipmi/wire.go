package ipmi

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/protocol"
	"github.com/bougou/go-ipmi/pkg/types"
	"rerack.dev/rerack/internal/fault"
)

const (
	bmcAddress = 0x20 // table 5-4
	swAddress  = 0x81 // remote console software
	authCode   = 12   // HMAC-SHA1-96
	headerLen  = 16   // RMCP and session header of an RMCP+ packet
)

// request is an IPMI LAN message (table 13-8).
func request(netFn, cmd, seq uint8, data []byte) []byte {
	m := make([]byte, 0, 7+len(data))
	m = append(m, bmcAddress, netFn<<2)
	m = append(m, protocol.Checksum(m), swAddress, seq<<2, cmd)
	m = append(m, data...)
	return append(m, protocol.Checksum(m[3:]))
}

// response takes an IPMI LAN message apart; ok is false unless it is the intact answer to netFn, cmd and
// seq.
func response(m []byte, netFn, cmd, seq uint8) (cc uint8, data []byte, ok bool) {
	if len(m) < 8 || protocol.Checksum(m[:3]) != 0 || protocol.Checksum(m[3:]) != 0 {
		return 0, nil, false
	}
	if m[1]>>2 != netFn|1 || m[4]>>2 != seq || m[5] != cmd {
		return 0, nil, false
	}
	return m[6], append([]byte(nil), m[7:len(m)-1]...), true
}

// seal encrypts and authenticates a message under the next session sequence number (section 13.28).
func (s *session) seal(msg []byte) ([]byte, error) {
	var iv [16]byte
	if _, err := rand.Read(iv[:]); err != nil {
		return nil, err
	}
	body, err := crypto.EncryptAESPayload(msg, s.k2, iv[:])
	if err != nil {
		return nil, err
	}
	if s.out++; s.out == 0 {
		s.out = 1 // zero is for packets outside a session
	}
	pkt := protocol.BuildRMCPPlusPacket(uint8(types.PayloadTypeIPMI), types.PayloadFlagEncrypted|types.PayloadFlagAuthenticated, s.bmcID, s.out, body)
	pad := (4 - (len(pkt)-4+2)%4) % 4 // the authenticated part is a multiple of four bytes
	for range pad {
		pkt = append(pkt, 0xff)
	}
	pkt = append(pkt, byte(pad), 0x07)
	mac, err := crypto.IntegrityHMAC(integrityAlg, pkt[4:], s.k1)
	if err != nil {
		return nil, err
	}
	return append(pkt, mac[:authCode]...), nil
}

// unseal checks and decrypts a packet of the session. Nothing that is not encrypted, not authenticated,
// not newer than the last one or not ours gets through: an answer "off" that anybody could have sent would
// be a licence to corrupt data.
func unseal(pkt []byte, consoleID, last uint32, k1, k2 []byte) (msg []byte, seq uint32, ok bool) {
	if len(pkt) < headerLen+2+authCode || pkt[0] != 0x06 || pkt[3] != 0x07 || pkt[4] != 0x06 {
		return nil, 0, false
	}
	if pkt[5] != uint8(types.PayloadTypeIPMI)|types.PayloadFlagEncrypted|types.PayloadFlagAuthenticated {
		return nil, 0, false
	}
	seq = binary.LittleEndian.Uint32(pkt[10:14])
	n := int(binary.LittleEndian.Uint16(pkt[14:16]))
	signed := len(pkt) - authCode
	pad := signed - 2 - headerLen - n
	if binary.LittleEndian.Uint32(pkt[6:10]) != consoleID || int32(seq-last) <= 0 || pad < 0 || pad > 3 || int(pkt[signed-2]) != pad {
		return nil, 0, false
	}
	mac, err := crypto.IntegrityHMAC(integrityAlg, pkt[4:signed], k1)
	if err != nil || !crypto.Equal(mac[:authCode], pkt[signed:]) {
		return nil, 0, false
	}
	body := pkt[headerLen : headerLen+n]
	if len(body) < 32 || len(body)%16 != 0 { // IV and one block at least
		return nil, 0, false
	}
	msg, err = crypto.DecryptAESPayload(body, k2)
	return msg, seq, err == nil
}

// completionFault turns a completion code (table 5-2) into a fault.
func completionFault(what string, cc uint8) error {
	k := fault.Internal
	switch cc {
	case 0xC0, 0xC3, 0xC4, 0xD2, 0xCE: // busy, timed out, out of space, being updated
		k = fault.Busy
	case 0xC1, 0xC2, 0x80, 0x82: // no such command or parameter
		k = fault.Unsupported
	case 0xC7, 0xC8, 0xC9, 0xCC:
		k = fault.Invalid
	case 0xCB:
		k = fault.NotFound
	case 0xD4: // insufficient privilege
		k = fault.Unauthorized
	case 0xD5, 0xD6: // not in the present state
		k = fault.Busy
	}
	return &fault.Error{Kind: k, What: what, Evidence: fmt.Sprintf("completion code %02Xh", cc)}
}
