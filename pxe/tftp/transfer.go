package tftp

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"

	"rerack.dev/rerack/internal/fault"
)

// buffers of one transfer are used again by the next.
type buffers struct {
	ahead []byte // file content read ahead
	pkts  []byte // the packets of one window
	msgs  []ipv4.Message
	in    [maxRequest]byte
}

const (
	readAhead = 64 << 10
	minRTO    = 20 * time.Millisecond
	maxRTO    = 8 * time.Second
)

// transfer sends one file. Blocks are counted from 1 without wrapping; on the wire their number is the
// low 16 bits, so a file may have more than 65,535 blocks.
type transfer struct {
	cfg    *Config
	conn   net.PacketConn
	udp    *net.UDPConn     // conn, when it is the kernel's
	batch  *ipv4.PacketConn // for windows, when udp is set
	step   *lockstep        // for a window of 1, where the system has it
	to     netip.AddrPort
	addr   *net.UDPAddr
	file   File
	opt    options // as granted
	block  int
	window uint64
	blocks uint64 // of the whole file; the last is shorter than block, maybe empty
	b      *buffers
	aheadO int64 // where b.ahead starts in the file

	rtt    time.Duration // smoothed; 0 until measured
	resent uint64
}

func newTransfer(c *Config, conn net.PacketConn, to netip.AddrPort, f File, want options, b *buffers) *transfer {
	t := &transfer{cfg: c, conn: conn, to: to, addr: net.UDPAddrFromAddrPort(to), file: f, block: stdBlock, window: 1, b: b, aheadO: -1}
	if want.block > 0 {
		t.block = min(want.block, c.MaxBlock)
		t.opt.block = t.block
	}
	if want.window > 0 {
		t.window = uint64(min(want.window, c.MaxWindow))
		t.opt.window = int(t.window)
	}
	t.opt.timeout = want.timeout
	if want.hasSize {
		t.opt.tsize, t.opt.hasSize = f.Size(), true
	}
	t.blocks = uint64(f.Size())/uint64(t.block) + 1
	if u, ok := conn.(*net.UDPConn); ok {
		t.udp = u
		if t.window > 1 {
			t.batch = ipv4.NewPacketConn(u)
		} else {
			t.step = newLockstep(u, to)
		}
	}
	return t
}

var errNoAnswer = fault.New(fault.Timeout, "client does not acknowledge")

// run sends the file and returns nil when its last block is acknowledged.
func (t *transfer) run() error {
	end := time.Now().Add(t.cfg.Deadline)
	acked, sent := uint64(0), uint64(0) // last block acknowledged, last block sent
	tries, wait := 0, t.timeout()
	oack := t.opt.any()
	dupAllowed := false
	if err := t.send(oack, acked, &sent); err != nil {
		return err
	}
	at := time.Now()
	deadline := at.Add(wait)
	for {
		n, err := t.receive(deadline)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if tries++; tries >= t.cfg.Tries || time.Now().After(end) {
				return errNoAnswer
			}
			t.resent++
			wait = min(2*wait, maxRTO)
			at = time.Time{} // Karn's rule: an answer after a repetition measures nothing
			if err := t.send(oack, acked, &sent); err != nil {
				return err
			}
			deadline = time.Now().Add(wait)
			continue
		}
		if err != nil {
			return err
		}
		block := acked + uint64(n-uint16(acked)) // the first block from acked on with this number
		switch {
		case block > sent: // before acked, or never sent
			continue
		case block == acked && !oack:
			// A duplicate. To answer each would double the packets for the rest of the transfer (the
			// Sorcerer's Apprentice, RFC 1123 section 4.2.3.1). A window may have lost its first block,
			// of which this is the only sign (RFC 7440 section 4): it is sent again, but once.
			if t.window == 1 || !dupAllowed {
				continue
			}
			dupAllowed = false
			t.resent++
			at = time.Time{}
		default:
			if block == t.blocks {
				return nil
			}
			if !at.IsZero() && (block == sent || oack) {
				t.measure(time.Since(at))
			}
			acked, oack, tries, wait, dupAllowed = block, false, 0, t.timeout(), true
			at = time.Now()
		}
		if err := t.send(oack, acked, &sent); err != nil {
			return err
		}
		deadline = time.Now().Add(wait)
	}
}

// timeout is what the client asked for (RFC 2349), else follows the round trip.
func (t *transfer) timeout() time.Duration {
	switch {
	case t.opt.timeout > 0:
		return time.Duration(t.opt.timeout) * time.Second
	case t.rtt == 0:
		return t.cfg.Timeout
	}
	return min(max(8*t.rtt, minRTO), t.cfg.Timeout)
}

func (t *transfer) measure(d time.Duration) {
	if t.rtt == 0 {
		t.rtt = d
		return
	}
	t.rtt += (d - t.rtt) / 8
}

// send sends the OACK, or the window after acked.
func (t *transfer) send(oack bool, acked uint64, sent *uint64) error {
	if oack {
		return t.write(t.opt.append(append(t.b.pkts[:0], 0, byte(opOACK))))
	}
	last := min(acked+t.window, t.blocks)
	n := int(last - acked)
	size := t.block + 4
	if need := n * size; cap(t.b.pkts) < need {
		t.b.pkts = make([]byte, need)
	}
	pkts := t.b.pkts[:cap(t.b.pkts)]
	for len(t.b.msgs) < n {
		t.b.msgs = append(t.b.msgs, ipv4.Message{Buffers: make([][]byte, 1)})
	}
	for i := range n {
		p := pkts[i*size : (i+1)*size]
		k, err := t.fill(p[4:], acked+1+uint64(i))
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint16(p, uint16(opDATA))
		binary.BigEndian.PutUint16(p[2:], uint16(acked+1+uint64(i)))
		t.b.msgs[i].Buffers[0] = p[:4+k]
	}
	*sent = last
	return t.writeAll(t.b.msgs[:n])
}

// fill copies the content of a block, reading ahead: one read of the file serves many blocks.
func (t *transfer) fill(p []byte, block uint64) (int, error) {
	off := int64(block-1) * int64(t.block)
	n := int(min(int64(t.block), t.file.Size()-off))
	if n == 0 {
		return 0, nil
	}
	if t.aheadO < 0 || off < t.aheadO || off+int64(n) > t.aheadO+int64(len(t.b.ahead)) {
		if cap(t.b.ahead) < readAhead+maxBlock {
			t.b.ahead = make([]byte, readAhead+maxBlock)
		}
		want := min(int64(max(readAhead, t.block)), t.file.Size()-off)
		t.b.ahead = t.b.ahead[:want]
		if k, err := t.file.ReadAt(t.b.ahead, off); int64(k) < want {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			t.aheadO = -1
			_ = t.write(appendError(nil, errUndefined, "file cannot be read"))
			return 0, fault.Wrap(err, "read file", "TFTP transfer")
		}
		t.aheadO = off
	}
	return copy(p, t.b.ahead[off-t.aheadO:][:n]), nil
}

func (t *transfer) write(p []byte) error {
	var err error
	if t.udp != nil {
		_, err = t.udp.WriteToUDPAddrPort(p, t.to)
	} else {
		_, err = t.conn.WriteTo(p, t.addr)
	}
	return gone(err)
}

// writeAll hands a whole window to the kernel in one call where it can, a single block with the next read.
func (t *transfer) writeAll(msgs []ipv4.Message) error {
	if t.step != nil {
		t.step.out = msgs[0].Buffers[0]
		return nil
	}
	if t.batch == nil || len(msgs) == 1 {
		for i := range msgs {
			if err := t.write(msgs[i].Buffers[0]); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range msgs {
		msgs[i].Addr = t.addr
	}
	for len(msgs) > 0 {
		n, err := t.batch.WriteBatch(msgs, 0)
		if err != nil {
			return gone(err)
		}
		msgs = msgs[n:]
	}
	return nil
}

// gone lets pass what a repetition mends: a full queue of the network card.
func gone(err error) error {
	if errors.Is(err, syscall.ENOBUFS) {
		return nil
	}
	return err
}

// receive waits for an ACK of the client until the deadline and returns its number.
func (t *transfer) receive(deadline time.Time) (uint16, error) {
	if err := t.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	for {
		n, from, err := t.read()
		if err != nil {
			if transient(err) && !errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			return 0, err
		}
		op, num, rest, ok := parse(t.b.in[:n])
		if from != t.to {
			// RFC 1350 section 4: tell the stranger, go on. An ERROR is never answered by another.
			if ok && op != opERROR {
				_, _ = t.conn.WriteTo(appendError(nil, errUnknownTID, "unknown transfer ID"), net.UDPAddrFromAddrPort(from))
			}
			continue
		}
		switch {
		case ok && op == opACK:
			return num, nil
		case ok && op == opERROR: // some firmware asks for the size only and breaks off after the OACK
			return 0, remoteError(num, rest)
		}
	}
}

func (t *transfer) read() (int, netip.AddrPort, error) {
	if t.step != nil {
		return t.step.read(t.b.in[:])
	}
	if t.udp != nil {
		n, from, err := t.udp.ReadFromUDPAddrPort(t.b.in[:])
		return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
	}
	n, from, err := t.conn.ReadFrom(t.b.in[:])
	if ua, ok := from.(*net.UDPAddr); ok {
		a := ua.AddrPort()
		return n, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), err
	}
	return n, netip.AddrPort{}, err
}
