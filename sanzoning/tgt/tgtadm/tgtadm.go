// Package tgtadm is the management protocol of the Linux SCSI target framework, tgt 1.0.x: one request
// and one answer per connection to a stream socket, as usr/tgtadm.h and usr/mgmt.c of tgt define it.
//
// The daemon's C structures go over the wire as they lie in memory. This package speaks the layout of
// 64-bit little-endian machines (amd64, arm64).
package tgtadm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Op is enum tgtadm_op.
type Op uint32

const (
	New Op = iota
	Delete
	Show
	Bind
	Unbind
	Update
	Stats
	Start
	Stop
)

// Mode is enum tgtadm_mode.
type Mode uint32

const (
	System Mode = iota
	Target
	Device
	Portal
	LLD
	SessionMode
	Connection
	AccountMode
)

// Code is enum tgtadm_errno: what the daemon says of a request.
type Code uint32

const (
	Success           Code = 0
	UnknownError      Code = 1
	NoDriver          Code = 3
	NoTarget          Code = 4
	NoLUN             Code = 5
	NoSession         Code = 6
	NoConnection      Code = 7
	TargetExists      Code = 9
	LUNExists         Code = 10
	RuleExists        Code = 12
	NoRule            Code = 13
	UserExists        Code = 14
	NoUser            Code = 15
	InvalidRequest    Code = 17
	TargetActive      Code = 19
	UnsupportedAction Code = 22
)

func (c Code) String() string {
	text := map[Code]string{Success: "success", UnknownError: "unknown error", 2: "out of memory", NoDriver: "no such driver",
		NoTarget: "no such target", NoLUN: "no such logical unit", NoSession: "no such session", NoConnection: "no such connection",
		TargetExists: "the target exists", LUNExists: "the logical unit exists", RuleExists: "the access rule exists",
		NoRule: "no such access rule", UserExists: "the user exists", NoUser: "no such user", InvalidRequest: "invalid request",
		TargetActive: "the target is in use", UnsupportedAction: "unsupported operation"}[c]
	if text == "" {
		return fmt.Sprintf("tgtadm error %d", uint32(c))
	}
	return text
}

func (c Code) kind() fault.Kind {
	switch c {
	case NoTarget, NoLUN, NoSession, NoConnection, NoRule, NoUser:
		return fault.NotFound
	case TargetExists, LUNExists, RuleExists, UserExists:
		return fault.Conflict
	case TargetActive:
		return fault.Busy
	case InvalidRequest:
		return fault.Invalid
	case NoDriver, UnsupportedAction:
		return fault.Unsupported
	}
	return fault.Internal
}

// Error is a request that the daemon refused.
type Error struct{ Code Code }

func (e *Error) Error() string { return e.Code.String() }

// CodeOf returns the daemon's code for err; ok is false when it is not an answer of the daemon.
func CodeOf(err error) (c Code, ok bool) {
	var e *Error
	if errors.As(err, &e) {
		return e.Code, true
	}
	return 0, false
}

const (
	requestSize = 120
	answerSize  = 8
	driverSize  = 64
	// MaxParams is the daemon's limit on the text behind a request, bytes.
	MaxParams = 8 << 10
	// MaxText bounds the text of an answer that Call reads, bytes: a target takes about 1.5 KB.
	MaxText = 64 << 20
	// AllTargets as Request.TID asks for all of them.
	AllTargets int32 = -1
)

// Request is struct tgtadm_req and the text behind it.
type Request struct {
	Mode   Mode
	Op     Op
	TID    int32 // target number
	SID    uint64
	LUN    uint64
	CID    uint32
	Force  bool
	Dir    uint32 // account direction: 0 incoming
	Params string // "key=value", without the closing NUL
}

// Encode returns the request as it goes on the wire, to the iSCSI driver of the daemon.
func (r Request) Encode() ([]byte, error) {
	if len(r.Params) >= MaxParams || bytes.IndexByte([]byte(r.Params), 0) >= 0 {
		return nil, fault.Newf(fault.Invalid, "%d bytes of parameters, or a NUL in them", len(r.Params))
	}
	b := make([]byte, requestSize, requestSize+len(r.Params)+1)
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(r.Mode))
	le.PutUint32(b[4:], uint32(r.Op))
	copy(b[8:], "iscsi")
	le.PutUint32(b[76:], uint32(r.TID))
	le.PutUint64(b[80:], r.SID)
	le.PutUint64(b[88:], r.LUN)
	le.PutUint32(b[96:], r.CID)
	le.PutUint32(b[108:], r.Dir)
	if r.Force {
		le.PutUint32(b[116:], 1)
	}
	if r.Params != "" {
		b = append(append(b, r.Params...), 0) // the daemon looks for the NUL
	}
	le.PutUint32(b[72:], uint32(len(b)))
	return b, nil
}

// ReadRequest reads a request as the daemon does; driver is the low-level driver it is for.
func ReadRequest(r io.Reader) (req Request, driver string, err error) {
	var b [requestSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Request{}, "", err
	}
	le := binary.LittleEndian
	size := int64(le.Uint32(b[72:])) - requestSize
	if size < 0 || size > MaxParams {
		return Request{}, "", fault.Newf(fault.Invalid, "a request of %d bytes", le.Uint32(b[72:]))
	}
	params := make([]byte, size)
	if _, err := io.ReadFull(r, params); err != nil {
		return Request{}, "", io.ErrUnexpectedEOF
	}
	return Request{Mode: Mode(le.Uint32(b[0:])), Op: Op(le.Uint32(b[4:])), TID: int32(le.Uint32(b[76:])), SID: le.Uint64(b[80:]),
		LUN: le.Uint64(b[88:]), CID: le.Uint32(b[96:]), Dir: le.Uint32(b[108:]), Force: le.Uint32(b[116:]) != 0,
		Params: cstring(params)}, cstring(b[8 : 8+driverSize]), nil
}

// WriteAnswer answers a request as the daemon does: the text goes out only with Success.
func WriteAnswer(w io.Writer, code Code, text string) error {
	if code != Success {
		text = ""
	}
	if text != "" {
		text += "\x00"
	}
	b := make([]byte, answerSize, answerSize+len(text))
	binary.LittleEndian.PutUint32(b, uint32(code))
	binary.LittleEndian.PutUint32(b[4:], uint32(answerSize+len(text)))
	_, err := w.Write(append(b, text...))
	return err
}

// ReadAnswer reads the answer to a request, with at most limit bytes of text.
func ReadAnswer(r io.Reader, limit int64) (string, error) {
	var b [answerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return "", err
	}
	code, size := Code(binary.LittleEndian.Uint32(b[:])), int64(binary.LittleEndian.Uint32(b[4:]))-answerSize
	switch {
	case code != Success:
		return "", &fault.Error{Kind: code.kind(), Err: &Error{code}}
	case size < 0 || size > limit:
		return "", &fault.Error{Kind: fault.Internal, What: "tgtd answer", Evidence: fmt.Sprintf("a text of %d bytes", size)}
	}
	var text bytes.Buffer // grows with what arrives, not with what is announced
	if n, err := io.CopyN(&text, r, size); err != nil {
		return "", fmt.Errorf("%d of %d bytes of text: %w", n, size, io.ErrUnexpectedEOF)
	}
	return cstring(text.Bytes()), nil
}

// Call sends a request over a new connection, which it closes, and returns the text of the answer.
// Timeout and Unreachable leave open whether the daemon executed the request.
func Call(ctx context.Context, conn net.Conn, req Request) (string, error) {
	defer conn.Close()
	raw, err := req.Encode()
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(raw); err != nil {
		return "", lost(ctx, err)
	}
	text, err := ReadAnswer(conn, MaxText)
	var fe *fault.Error
	if err != nil && !errors.As(err, &fe) {
		return "", lost(ctx, err)
	}
	return text, err
}

func lost(ctx context.Context, err error) error {
	kind := fault.Unreachable
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		kind = fault.Timeout
	}
	return &fault.Error{Kind: kind, What: "no answer from tgtd", Err: errors.Join(err, ctx.Err())}
}

func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
