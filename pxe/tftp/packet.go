// Package tftp reads files to booting machines by TFTP (RFC 1350) with the options of RFC 2347-2349
// and windows (RFC 7440), and fetches them. The server is read-only and has no file system: a name is
// looked up, never walked to.
package tftp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

type opcode uint16

const (
	opRRQ opcode = 1 + iota
	opWRQ
	opDATA
	opACK
	opERROR
	opOACK
)

// Error codes (RFC 1350 section 5, RFC 2347).
const (
	errUndefined  = 0
	errNotFound   = 1
	errAccess     = 2
	errIllegal    = 4
	errUnknownTID = 5
	errOptions    = 8
)

// Limits. A request must fit in one small datagram (RFC 2347 allows 512 bytes).
const (
	maxRequest = 512
	maxName    = 128
	maxOptions = 8
	minBlock   = 8     // RFC 2348
	maxBlock   = 65464 // RFC 2348
	stdBlock   = 512
)

// request is a parsed RRQ or WRQ. Options that are unknown or out of range are left out, which RFC
// 2347 takes as "not granted".
type request struct {
	op   opcode
	name string
	mode string
	options
}

// options of a transfer; 0 means absent.
type options struct {
	block   int
	window  int
	timeout int // seconds
	tsize   int64
	hasSize bool
}

// parseRequest reads an RRQ or WRQ, or returns fault.Invalid.
func parseRequest(b []byte) (request, error) {
	if len(b) < 4 || len(b) > maxRequest || b[len(b)-1] != 0 {
		return request{}, fault.Newf(fault.Invalid, "request of %d bytes", len(b))
	}
	r := request{op: opcode(binary.BigEndian.Uint16(b))}
	if r.op != opRRQ && r.op != opWRQ {
		return request{}, fault.Newf(fault.Invalid, "opcode %d is no request", r.op)
	}
	f := bytes.Split(b[2:len(b)-1], []byte{0})
	if len(f) < 2 || len(f)%2 != 0 || len(f) > 2+2*maxOptions {
		return request{}, fault.Newf(fault.Invalid, "request of %d strings", len(f))
	}
	r.name, r.mode = string(f[0]), strings.ToLower(string(f[1]))
	if r.name == "" || len(r.name) > maxName {
		return request{}, fault.Newf(fault.Invalid, "file name of %d bytes", len(r.name))
	}
	for _, c := range []byte(r.name) {
		if c < ' ' || c > '~' {
			return request{}, fault.Newf(fault.Invalid, "byte %#02x in file name", c)
		}
	}
	var err error
	r.options, err = parseOptions(f[2:])
	return r, err
}

func parseOptions(f [][]byte) (options, error) {
	var o options
	seen := map[string]bool{}
	for ; len(f) >= 2; f = f[2:] {
		key := strings.ToLower(string(f[0]))
		if seen[key] {
			return options{}, fault.Newf(fault.Invalid, "option %.20q twice", key) // RFC 2347 forbids it
		}
		seen[key] = true
		v, err := strconv.ParseInt(string(f[1]), 10, 64)
		if err != nil || v < 0 {
			continue
		}
		switch {
		case key == "blksize" && v >= minBlock && v <= maxBlock:
			o.block = int(v)
		case key == "windowsize" && v >= 1 && v <= 65535:
			o.window = int(v)
		case key == "timeout" && v >= 1 && v <= 255:
			o.timeout = int(v)
		case key == "tsize":
			o.tsize, o.hasSize = v, true
		}
	}
	return o, nil
}

func (o options) any() bool { return o.block+o.window+o.timeout > 0 || o.hasSize }

// append writes the options that are present.
func (o options) append(b []byte) []byte {
	for _, kv := range []struct {
		k  string
		v  int64
		ok bool
	}{{"blksize", int64(o.block), o.block > 0}, {"tsize", o.tsize, o.hasSize},
		{"timeout", int64(o.timeout), o.timeout > 0}, {"windowsize", int64(o.window), o.window > 0}} {
		if kv.ok {
			b = append(append(b, kv.k...), 0)
			b = append(strconv.AppendInt(b, kv.v, 10), 0)
		}
	}
	return b
}

func appendRequest(b []byte, name string, o options) []byte {
	b = append(b, 0, byte(opRRQ))
	b = append(append(b, name...), 0)
	b = append(append(b, "octet"...), 0)
	return o.append(b)
}

func appendError(b []byte, code uint16, text string) []byte {
	b = append(b, 0, byte(opERROR), byte(code>>8), byte(code))
	return append(append(b, text...), 0)
}

// parse splits a packet of a running transfer: its opcode, the block or error number (not of an OACK),
// and the rest.
func parse(b []byte) (op opcode, n uint16, rest []byte, ok bool) {
	if len(b) < 2 {
		return 0, 0, nil, false
	}
	op = opcode(binary.BigEndian.Uint16(b))
	switch op {
	case opDATA, opACK, opERROR:
		if len(b) < 4 {
			return 0, 0, nil, false
		}
		return op, binary.BigEndian.Uint16(b[2:]), b[4:], true
	case opOACK:
		return op, 0, b[2:], true
	}
	return 0, 0, nil, false
}

// parseOACK reads what the server granted.
func parseOACK(b []byte) (options, error) {
	if len(b) == 0 {
		return options{}, nil
	}
	if len(b) > maxRequest || b[len(b)-1] != 0 {
		return options{}, fault.New(fault.Invalid, "malformed OACK")
	}
	f := bytes.Split(b[:len(b)-1], []byte{0})
	if len(f)%2 != 0 || len(f) > 2*maxOptions {
		return options{}, fault.New(fault.Invalid, "malformed OACK")
	}
	return parseOptions(f)
}

// remoteError is an ERROR packet of the other side.
func remoteError(code uint16, text []byte) error {
	text, _, _ = bytes.Cut(text[:min(len(text), 128)], []byte{0})
	kind := fault.Internal
	switch code {
	case errNotFound:
		kind = fault.NotFound
	case errAccess:
		kind = fault.Unauthorized
	case errIllegal, errOptions:
		kind = fault.Unsupported
	}
	return fault.New(kind, fmt.Sprintf("peer sent error %d: %q", code, text))
}
