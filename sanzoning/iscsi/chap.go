package iscsi

import (
	"crypto/md5" //nolint:gosec // the algorithm that CHAP of RFC 7143 section 12.1.3 requires
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"strings"
)

const (
	chapMD5       = "5" // RFC 1994
	maxChallenge  = 1024
	challengeSize = 16
)

func chapDigest(id byte, secret string, challenge []byte) []byte {
	h := md5.New() //nolint:gosec // see the import
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return h.Sum(nil)
}

// parseBinary reads a large binary value: 0x and hex digits, or 0b and base64 (RFC 7143 section 6.1).
func parseBinary(s string) ([]byte, error) {
	var out []byte
	var err error
	switch {
	case strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0X"):
		s = s[2:]
		if len(s)%2 == 1 {
			s = "0" + s
		}
		out, err = hex.DecodeString(s)
	case strings.HasPrefix(s, "0b") || strings.HasPrefix(s, "0B"):
		out, err = base64.StdEncoding.DecodeString(s[2:])
	default:
		return nil, malformed("a binary value without 0x or 0b")
	}
	if err != nil || len(out) == 0 || len(out) > maxChallenge {
		return nil, malformed("a binary value that cannot be read")
	}
	return out, nil
}

func hexValue(b []byte) string { return "0x" + hex.EncodeToString(b) }

// answerCHAP is the initiator's answer to a challenge.
func answerCHAP(k keys, a Account) (keys, error) {
	algorithm, _ := k.get("CHAP_A")
	if algorithm != chapMD5 {
		return nil, malformed("the target asks for CHAP algorithm %.10q, not %s", algorithm, chapMD5)
	}
	idText, _ := k.get("CHAP_I")
	id, err := number("CHAP_I", idText, 0, 255)
	if err != nil {
		return nil, err
	}
	text, _ := k.get("CHAP_C")
	challenge, err := parseBinary(text)
	if err != nil {
		return nil, err
	}
	var out keys
	out.add("CHAP_N", a.User)
	out.add("CHAP_R", hexValue(chapDigest(byte(id), a.Secret, challenge)))
	return out, nil
}

// challenge is the target's side of one CHAP exchange.
type challenge struct {
	id    byte
	bytes [challengeSize]byte
}

func newChallenge() *challenge {
	var raw [challengeSize + 1]byte
	rand.Read(raw[:]) // never fails (crypto/rand)
	return &challenge{id: raw[0], bytes: [challengeSize]byte(raw[1:])}
}

func (c *challenge) keys() keys {
	var k keys
	k.add("CHAP_A", chapMD5)
	k.add("CHAP_I", strconv.Itoa(int(c.id)))
	k.add("CHAP_C", hexValue(c.bytes[:]))
	return k
}

func (c *challenge) verify(k keys, a Account) bool {
	user, _ := k.get("CHAP_N")
	text, _ := k.get("CHAP_R")
	got, err := parseBinary(text)
	if err != nil {
		return false
	}
	want := chapDigest(c.id, a.Secret, c.bytes[:])
	return subtle.ConstantTimeCompare(got, want)&subtle.ConstantTimeCompare([]byte(user), []byte(a.User)) == 1
}
