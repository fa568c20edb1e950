package ipmi

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/bougou/go-ipmi/pkg/crypto"
	"github.com/bougou/go-ipmi/pkg/protocol"
	"github.com/bougou/go-ipmi/pkg/rmcpplus"
	"github.com/bougou/go-ipmi/pkg/types"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Cipher suite 3 (IPMI 2.0 table 22-20): RAKP-HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128. It is the one that
// every BMC has. It is asked for outright, because discovery costs 10-15 s on some, and nothing else is
// ever accepted, least of all suite 0, which has no authentication.
const (
	authAlg      = types.AuthAlg_HMAC_SHA1
	integrityAlg = types.IntegrityAlg_HMAC_SHA1_96
	cryptAlg     = types.CryptAlg_AES_CBC_128
)

// maxDatagram is more than any IPMI message over LAN; a longer datagram is cut and fails its checks.
const maxDatagram = 1024

// idleLimit is after how long a session is taken for expired: BMCs drop one after 60 s (section 6.12.15).
const idleLimit = 50 * time.Second

// session is one RMCP+ session over one UDP socket. It is used by one goroutine at a time.
type session struct {
	conn net.Conn
	cfg  Config
	buf  [maxDatagram]byte

	consoleID, bmcID uint32
	k1, k2           []byte
	out, in          uint32 // session sequence numbers: the last sent, the last accepted
	rqSeq            uint8
	used             time.Time
}

func dial(ctx context.Context, cfg Config) (*session, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", cfg.Address)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unreachable, What: "dial", Err: err}
	}
	return &session{conn: conn, cfg: cfg}, nil
}

// exchange sends what build makes, again after each AttemptTimeout, until accept likes an answer.
// Answers that accept does not like are dropped like noise: anybody can send a datagram.
func (s *session) exchange(ctx context.Context, what string, build func() ([]byte, error), accept func([]byte) bool) error {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var last error
	for range s.cfg.Attempts {
		if err := ctx.Err(); err != nil {
			return silent(what, err)
		}
		pkt, err := build()
		if err != nil {
			return fault.Newf(fault.Internal, "%s: %w", what, err)
		}
		if _, err := s.conn.Write(pkt); err != nil {
			last = err
			if err := pause(ctx, s.cfg.AttemptTimeout/4); err != nil {
				return silent(what, err)
			}
			continue
		}
		if err := s.conn.SetReadDeadline(time.Now().Add(s.cfg.AttemptTimeout)); err != nil {
			return fault.Newf(fault.Internal, "%s: %w", what, err)
		}
		if ctx.Err() != nil { // the deadline just set may have covered up that of AfterFunc
			return silent(what, ctx.Err())
		}
		for {
			n, err := s.conn.Read(s.buf[:])
			if err != nil {
				last = err
				break
			}
			if accept(s.buf[:n]) {
				return nil
			}
		}
		if !errors.Is(last, os.ErrDeadlineExceeded) {
			// "Connection refused" comes at once; waiting keeps the pace of the attempts.
			if err := pause(ctx, s.cfg.AttemptTimeout/4); err != nil {
				return silent(what, err)
			}
		}
	}
	return silent(what, last)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func silent(what string, err error) error {
	k := fault.Timeout
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) {
		k = fault.Unreachable
	}
	return &fault.Error{Kind: k, What: what, Evidence: "no answer", Err: err}
}

// ping sends Get Channel Authentication Capabilities outside of any session, in IPMI 1.5 framing as
// section 13.15 has it, and requires IPMI 2.0 in the answer.
func (s *session) ping(ctx context.Context) error {
	s.rqSeq = (s.rqSeq + 1) & 0x3f
	msg := request(uint8(types.NetFnAppRequest), 0x38, s.rqSeq, []byte{0x8E, uint8(s.cfg.privilege())})
	pkt := append([]byte{0x06, 0, 0xff, 0x07, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(msg))}, msg...)
	v20 := false
	err := s.exchange(ctx, "get channel authentication capabilities", func() ([]byte, error) { return pkt, nil }, func(b []byte) bool {
		if len(b) < 14 || b[0] != 0x06 || b[3] != 0x07 || b[4] != 0 || int(b[13]) > len(b)-14 {
			return false
		}
		cc, data, ok := response(b[14:14+int(b[13])], uint8(types.NetFnAppRequest), 0x38, s.rqSeq)
		if !ok {
			return false
		}
		v20 = cc == 0 && len(data) >= 4 && data[1]&0x80 != 0 && data[3]&0x02 != 0
		return true
	})
	if err == nil && !v20 {
		return fault.New(fault.Unsupported, "the BMC does not speak IPMI 2.0")
	}
	// Nothing has been asked for yet, so silence is plain absence.
	if fault.Is(err, fault.Timeout) && ctx.Err() == nil {
		return &fault.Error{Kind: fault.Unreachable, What: "reach IPMI", Err: err}
	}
	return err
}

// open is the RMCP+ session activation of section 13.15: Open Session, RAKP 1 to 4.
func (s *session) open(ctx context.Context) error {
	if err := s.ping(ctx); err != nil {
		return err
	}
	var seed [21]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return fault.Newf(fault.Internal, "random numbers: %w", err)
	}
	consoleRand, tag := [16]byte(seed[:16]), seed[16]
	s.consoleID = binary.LittleEndian.Uint32(seed[17:21]) | 1 // zero is no session

	ap, ip, cp := rmcpplus.NewAlgorithmPayloads(authAlg, integrityAlg, cryptAlg)
	opened := rmcpplus.OpenSessionResponse{}
	err := s.setup(ctx, "open session", types.PayloadTypeRmcpOpenSessionRequest, types.PayloadTypeRmcpOpenSessionResponse,
		(&rmcpplus.OpenSessionRequest{MessageTag: tag, RemoteConsoleSessionID: s.consoleID, AuthenticationPayload: ap, IntegrityPayload: ip, ConfidentialityPayload: cp}).Pack(),
		func(b []byte) bool {
			return opened.Unpack(b) == nil && opened.MessageTag == tag && opened.RemoteConsoleSessionID == s.consoleID
		})
	if err != nil {
		return err
	}
	if err := rmcpStatus("open session", opened.RmcpStatusCode); err != nil {
		return err
	}
	if types.AuthAlg(opened.AuthAlg) != authAlg || types.IntegrityAlg(opened.IntegrityAlg) != integrityAlg || types.CryptAlg(opened.CryptAlg) != cryptAlg {
		return &fault.Error{Kind: fault.Unsafe, What: "open session", Evidence: fmt.Sprintf("the answer chose algorithms %d/%d/%d, cipher suite 3 was asked for",
			opened.AuthAlg, opened.IntegrityAlg, opened.CryptAlg)}
	}
	s.bmcID = opened.ManagedSystemSessionID

	rakp1 := rmcpplus.RAKPMessage1{MessageTag: tag + 1, ManagedSystemSessionID: s.bmcID, RemoteConsoleRandomNumber: consoleRand,
		NameOnlyLookup: true, RequestedMaximumPrivilegeLevel: s.cfg.privilege(), UsernameLength: uint8(len(s.cfg.User)), Username: []byte(s.cfg.User)}
	rakp2 := rmcpplus.RAKPMessage2{}
	err = s.setup(ctx, "RAKP 1", types.PayloadTypeRAKPMessage1, types.PayloadTypeRAKPMessage2, rakp1.Pack(), func(b []byte) bool {
		rakp2 = rmcpplus.RAKPMessage2{AuthAlg: authAlg}
		return rakp2.Unpack(b) == nil && rakp2.MessageTag == tag+1 && rakp2.RemoteConsoleSessionID == s.consoleID
	})
	if err != nil {
		return err
	}
	if err := rmcpStatus("RAKP 2", rakp2.RmcpStatusCode); err != nil {
		return err
	}
	return s.prove(ctx, tag+2, rakp1, rakp2)
}

// prove checks that the BMC knows the password, proves that we do, and derives the keys (sections 13.21
// to 13.24, 13.31, 13.32).
func (s *session) prove(ctx context.Context, tag uint8, rakp1 rmcpplus.RAKPMessage1, rakp2 rmcpplus.RAKPMessage2) error {
	key := crypto.PadPassword20([]byte(s.cfg.Password.Reveal()))
	user, role := s.cfg.User, rakp1.Role()
	cRand, bRand, guid := rakp1.RemoteConsoleRandomNumber[:], rakp2.ManagedSystemRandomNumber[:], rakp2.ManagedSystemGUID[:]
	want, err := crypto.RAKP2AuthCode(authAlg, s.consoleID, s.bmcID, cRand, bRand, guid, role, user, key)
	if err != nil {
		return fault.Newf(fault.Internal, "RAKP 2 code: %w", err)
	}
	if !crypto.Equal(want, rakp2.KeyExchangeAuthenticationCode) {
		return &fault.Error{Kind: fault.Unauthorized, What: "log in as " + user, Evidence: "the BMC's proof does not fit the password", Next: "correct the credential"}
	}
	sik, k1, k2, err := crypto.DeriveSessionKeys(authAlg, cRand, bRand, role, user, key)
	if err != nil {
		return fault.Newf(fault.Internal, "session keys: %w", err)
	}
	code, err := crypto.RAKP3AuthCode(authAlg, bRand, s.consoleID, role, user, key)
	if err != nil {
		return fault.Newf(fault.Internal, "RAKP 3 code: %w", err)
	}
	rakp3 := rmcpplus.RAKPMessage3{MessageTag: tag, ManagedSystemSessionID: s.bmcID, KeyExchangeAuthenticationCode: code}
	rakp4 := rmcpplus.RAKPMessage4{}
	err = s.setup(ctx, "RAKP 3", types.PayloadTypeRAKPMessage3, types.PayloadTypeRAKPMessage4, rakp3.Pack(), func(b []byte) bool {
		rakp4 = rmcpplus.RAKPMessage4{AuthAlg: authAlg}
		return rakp4.Unpack(b) == nil && rakp4.MessageTag == tag && rakp4.MgmtConsoleSessionID == s.consoleID
	})
	if err != nil {
		return err
	}
	if err := rmcpStatus("RAKP 4", rakp4.RmcpStatusCode); err != nil {
		return err
	}
	icv, err := crypto.RAKP4ICV(authAlg, cRand, s.bmcID, guid, sik)
	if err != nil {
		return fault.Newf(fault.Internal, "RAKP 4 code: %w", err)
	}
	if !crypto.Equal(icv, rakp4.IntegrityCheckValue) {
		return &fault.Error{Kind: fault.Unsafe, What: "log in", Evidence: "the BMC's last proof is wrong: it does not hold the session's key"}
	}
	s.k1, s.k2, s.out, s.in, s.used = k1, k2, 0, 0, time.Now()
	_, err = s.command(ctx, "set session privilege", types.NetFnAppRequest, 0x3B, []byte{uint8(s.cfg.privilege())})
	return err
}

// setup is one request and answer of the session's activation, which has no protection yet.
func (s *session) setup(ctx context.Context, what string, req, resp types.PayloadType, payload []byte, accept func([]byte) bool) error {
	pkt := protocol.BuildRMCPPlusPacket(uint8(req), 0, 0, 0, payload)
	return s.exchange(ctx, what, func() ([]byte, error) { return pkt, nil }, func(b []byte) bool {
		if len(b) < 5 || b[0] != 0x06 || b[3] != 0x07 || b[4] != 0x06 {
			return false
		}
		_, _, typ, flags, body, ok := protocol.ParseRMCPPlusHeader(b)
		return ok && typ == uint8(resp) && flags&0xC0 == 0 && accept(body)
	})
}

// rmcpStatus turns an RMCP+ status (table 13-15) into a fault.
func rmcpStatus(what string, code types.RmcpStatusCode) error {
	if code == 0 {
		return nil
	}
	k, next := fault.Internal, ""
	switch code {
	case 0x01: // insufficient resources to create a session
		k = fault.Busy
	case 0x02, 0x08: // invalid, inactive session ID: the BMC gave up half-way
		k = fault.Busy
	case 0x09, 0x0A, 0x0C, 0x0D, 0x0F: // role, name and integrity check refused
		k, next = fault.Unauthorized, "correct the credential"
	case 0x04, 0x05, 0x10, 0x11: // no such algorithm, no cipher suite match
		k, next = fault.Unsupported, "enable cipher suite 3 on the BMC, or use Redfish"
	}
	return &fault.Error{Kind: k, What: what, Evidence: fmt.Sprintf("RMCP+ status %02Xh, %s", uint8(code), code), Next: next}
}

// command sends one IPMI command in the session and returns the data behind a completion code of zero.
func (s *session) command(ctx context.Context, what string, netFn types.NetFn, cmd uint8, data []byte) ([]byte, error) {
	if time.Since(s.used) > idleLimit {
		return nil, &fault.Error{Kind: fault.Busy, What: what, Evidence: "session idle for too long", Err: driver.ErrSessionLost}
	}
	s.rqSeq = (s.rqSeq + 1) & 0x3f
	msg := request(uint8(netFn), cmd, s.rqSeq, data)
	var (
		cc  uint8
		out []byte
	)
	err := s.exchange(ctx, what, func() ([]byte, error) { return s.seal(msg) }, func(b []byte) bool {
		plain, seq, ok := unseal(b, s.consoleID, s.in, s.k1, s.k2)
		if !ok {
			return false
		}
		s.in = seq
		var mine bool
		cc, out, mine = response(plain, uint8(netFn), cmd, s.rqSeq)
		return mine
	})
	if err != nil {
		return nil, s.diagnose(ctx, err)
	}
	s.used = time.Now()
	if cc != 0 {
		return nil, completionFault(what, cc)
	}
	return out, nil
}

// diagnose tells a BMC that is gone from one that has forgotten the session: BMCs drop packets of a
// session they do not know without a word.
func (s *session) diagnose(ctx context.Context, err error) error {
	if ctx.Err() != nil || !fault.Is(err, fault.Timeout) {
		return err
	}
	if s.ping(ctx) != nil {
		return err
	}
	return &fault.Error{Kind: fault.Timeout, What: "the BMC answers, but not in this session", Err: errors.Join(driver.ErrSessionLost, err)}
}

// close ends the session on the BMC, without waiting for long.
func (s *session) close(ctx context.Context) error {
	defer func() {
		_ = s.conn.Close()
		s.k1 = nil
	}()
	if s.k1 == nil || time.Since(s.used) > idleLimit {
		return nil
	}
	s.cfg.Attempts = 1
	_, err := s.command(ctx, "close session", types.NetFnAppRequest, 0x3C, binary.LittleEndian.AppendUint32(nil, s.bmcID))
	if errors.Is(err, driver.ErrSessionLost) {
		return nil
	}
	return err
}
