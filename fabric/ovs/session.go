package ovs

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/ovn-kubernetes/libovsdb/ovsdb"

	"rerack.dev/rerack/internal/fault"
)

// database is the name of Open vSwitch's configuration database.
const database = "Open_vSwitch"

// session is one connection to a database server, for one call of ours. It speaks JSON-RPC 1.0 as in RFC
// 7047 section 4, one request at a time. It is not libovsdb's client because that one keeps a replica in
// the background and decodes what it is sent without limits; reads that decide on a fence are fresh ones.
type session struct {
	conn    net.Conn
	in      *json.Decoder
	limited *io.LimitedReader
	release func() bool // undoes the tie to the context
	lastID  int
}

// maxUnasked is how many messages that are not our answer are read before giving up on it.
const maxUnasked = 64

func dial(ctx context.Context, cfg Config) (*session, error) {
	network, address, _ := cfg.dialTarget()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, netError(ctx, "connect", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // fails only on a closed connection, which the next read reports
	}
	release := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if cfg.secure() {
		tc := cfg.TLS.Clone()
		if tc.ServerName == "" {
			tc.ServerName, _, _ = net.SplitHostPort(address)
		}
		secured := tls.Client(conn, tc)
		if err := secured.HandshakeContext(ctx); err != nil {
			release()
			conn.Close()
			var unverified *tls.CertificateVerificationError
			if errors.As(err, &unverified) {
				return nil, &fault.Error{Kind: fault.Unauthorized, What: "verify certificate", Err: err}
			}
			return nil, netError(ctx, "TLS handshake", err)
		}
		conn = secured
	}
	return newSession(conn, cfg.MaxBytes, release), nil
}

func newSession(conn net.Conn, maxBytes int64, release func() bool) *session {
	limited := &io.LimitedReader{R: conn, N: maxBytes}
	return &session{conn: conn, in: json.NewDecoder(limited), limited: limited, release: release}
}

func (s *session) close() {
	s.release()
	s.conn.Close()
}

// message is any JSON-RPC message: a request or notification when Method is set, else an answer.
type message struct {
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	ID     json.RawMessage `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

type request struct {
	Method string `json:"method"`
	Params any    `json:"params"`
	ID     int    `json:"id"`
}

// opResult is the part of an operation's result that is used (RFC 7047 section 5.2).
type opResult struct {
	Error   string                       `json:"error"`
	Details string                       `json:"details"`
	Count   int                          `json:"count"`
	Rows    []map[string]json.RawMessage `json:"rows"`
}

// transact runs one transaction. Its error is about the conversation; what the server says of an
// operation is in the results, which after a failed operation end there, with at most one more for a
// constraint that is checked at the end (RFC 7047 section 4.1.3).
func (s *session) transact(ctx context.Context, ops ...ovsdb.Operation) ([]opResult, error) {
	params := make([]any, 0, len(ops)+1)
	params = append(params, database)
	for _, op := range ops {
		params = append(params, op)
	}
	raw, err := s.call(ctx, "transact", params)
	if err != nil {
		return nil, err
	}
	var results []*opResult
	if err := json.Unmarshal(raw, &results); err != nil {
		return nil, strange("transact answer", raw, err)
	}
	out := make([]opResult, 0, len(results))
	for _, r := range results {
		if r == nil {
			break
		}
		out = append(out, *r)
		if r.Error != "" {
			return out, nil
		}
	}
	if len(out) < len(ops) {
		return nil, strange("transact answer", raw, fmt.Errorf("%d results for %d operations, and no error", len(out), len(ops)))
	}
	return out, nil
}

func (s *session) call(ctx context.Context, method string, params any) (json.RawMessage, error) {
	s.lastID++
	if err := s.send(ctx, request{Method: method, Params: params, ID: s.lastID}); err != nil {
		return nil, err
	}
	want := fmt.Sprint(s.lastID)
	for range maxUnasked {
		var m message
		if err := s.in.Decode(&m); err != nil {
			return nil, s.readError(ctx, method, err)
		}
		switch {
		case m.Method == "echo":
			// The server checks that we are alive (RFC 7047 section 4.1.11).
			if err := s.send(ctx, map[string]any{"id": m.ID, "result": m.Params, "error": nil}); err != nil {
				return nil, err
			}
		case m.Method != "" || string(bytes.TrimSpace(m.ID)) != want:
			continue
		case len(m.Error) > 0 && string(m.Error) != "null":
			return nil, &fault.Error{Kind: fault.Busy, What: method, Evidence: "the database server refused it: " + excerpt(m.Error)}
		default:
			return m.Result, nil
		}
	}
	return nil, fault.Newf(fault.Internal, "no answer to %s among %d messages", method, maxUnasked)
}

func (s *session) send(ctx context.Context, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fault.Newf(fault.Internal, "encode request: %w", err)
	}
	if _, err := s.conn.Write(raw); err != nil {
		return netError(ctx, "send", err)
	}
	return nil
}

func (s *session) readError(ctx context.Context, method string, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case s.limited.N <= 0:
		return fault.Newf(fault.Internal, "the answer to %s exceeds the limit of bytes", method)
	case errors.As(err, &syntax) || errors.As(err, &kind):
		return strange("answer to "+method, nil, err)
	}
	return netError(ctx, method+", waiting for the answer", err)
}

// netError sorts a failure of the connection: too late, or gone. What was sent may or may not have taken
// effect in either case.
func netError(ctx context.Context, what string, err error) error {
	if cause := ctx.Err(); cause != nil {
		return &fault.Error{Kind: fault.Timeout, What: what, Evidence: "no answer in time", Err: cause}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &fault.Error{Kind: fault.Timeout, What: what, Evidence: "no answer in time", Err: context.DeadlineExceeded}
	}
	return &fault.Error{Kind: fault.Unreachable, What: what, Err: err,
		Next: "check the network to the switch and that ovsdb-server listens there"}
}

func strange(what string, raw []byte, err error) error {
	return &fault.Error{Kind: fault.Internal, What: what + " is not OVSDB", Evidence: excerpt(raw), Err: err}
}

func excerpt(raw []byte) string {
	const most = 200
	if len(raw) > most {
		return string(raw[:most]) + "…"
	}
	return string(raw)
}
