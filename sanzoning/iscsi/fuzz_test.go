package iscsi

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
)

func FuzzReadPDU(f *testing.F) {
	var b bytes.Buffer
	p := newPDU(opLogin|bitImmediate, 0x87)
	p.data = []byte("InitiatorName=iqn.x:a\x00")
	_ = writePDU(&b, p)
	f.Add(b.Bytes())
	f.Add(bytes.Repeat([]byte{0xff}, 60))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := readPDU(bytes.NewReader(raw), 1<<12)
		if err != nil {
			return
		}
		if len(p.data) > 1<<12 {
			t.Fatalf("%d bytes", len(p.data))
		}
		p.bhs[4] = 0
		var b bytes.Buffer
		if err := writePDU(&b, p); err != nil {
			t.Fatal(err)
		}
		again, err := readPDU(&b, 1<<12)
		if err != nil || again.bhs != p.bhs || !bytes.Equal(again.data, p.data) {
			t.Fatalf("%x does not survive, %v", raw, err)
		}
	})
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte("A=1\x00B=\x00"))
	f.Add([]byte("CHAP_C=0x12ab\x00CHAP_I=7\x00CHAP_A=5\x00MaxBurstLength=0x200\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := parseKeys(raw)
		if err != nil {
			return
		}
		again, err := parseKeys(k.encode())
		if err != nil || len(again) != len(k) {
			t.Fatalf("%q does not survive: %v", raw, err)
		}
		var l, m = defaults(), defaults()
		_, _ = l.settle(k)
		_, _ = m.accept(k)
		if l.peerSegment < 512 && l.peerSegment != 0 || m.maxBurst < 0 {
			t.Fatalf("limits %+v %+v out of %q", l, m, raw)
		}
		_, _ = answerCHAP(k, Account{"u", "s"})
	})
}

type openGate struct{ device Device }

func (g openGate) Admit(Identity, string) (Grant, error) {
	if g.device == nil {
		return Grant{}, fault.New(fault.NotFound, "masked")
	}
	return Grant{Units: map[uint16]Device{1: g.device}}, nil
}
func (openGate) Visible(Identity) []string { return []string{"iqn.x:v"} }
func (openGate) Opened(Nexus)              {}
func (openGate) Ended(Nexus)               {}

type nullDevice struct{ t *testing.T }

func (d nullDevice) Blocks() uint64 { return 64 }
func (d nullDevice) Serial() string { return "null" }
func (d nullDevice) ReadAt(_ Identity, p []byte, off int64) error {
	return d.WriteAt(Identity{}, p, off)
}
func (d nullDevice) WriteAt(_ Identity, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > 64*BlockSize || len(p)%BlockSize != 0 {
		d.t.Errorf("%d bytes at %d", len(p), off)
	}
	return nil
}

// FuzzTarget logs in and then sends hostile bytes: the target must neither panic, hang nor reach outside
// of its device.
func FuzzTarget(f *testing.F) {
	var b bytes.Buffer
	w := newPDU(opCommand, bitFinal|bitWrite|1)
	w.putLUN(1)
	w.put32(20, 512)
	w.put32(24, 1)
	copy(w.bhs[32:], rw10(scsiWrite10, 3, 1))
	w.data = make([]byte, 512)
	_ = writePDU(&b, w)
	f.Add(b.Bytes(), true)
	r := newPDU(opCommand, bitFinal|bitRead|1)
	r.putLUN(1)
	r.put32(20, 1<<30)
	r.put32(24, 1)
	copy(r.bhs[32:], rw10(scsiRead10, 60, 8))
	b.Reset()
	_ = writePDU(&b, r)
	f.Add(b.Bytes(), true)
	b.Reset()
	l := newPDU(opLogin|bitImmediate, 0x87)
	l.data = []byte("InitiatorName=iqn.x:a\x00TargetName=iqn.x:v\x00AuthMethod=CHAP,None\x00")
	_ = writePDU(&b, l)
	f.Add(b.Bytes(), false)
	f.Fuzz(func(t *testing.T, raw []byte, loggedIn bool) {
		target, err := NewTarget(TargetConfig{Gate: openGate{nullDevice{t}}, LoginTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := net.Pipe()
		target.Take(theirs)
		if loggedIn {
			if _, err := Login(context.Background(), ours, Params{Initiator: "iqn.x:a", Target: "iqn.x:v"}); err != nil {
				t.Fatal(err)
			}
		}
		_ = ours.SetDeadline(time.Now().Add(10 * time.Second))
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			var sink [4096]byte
			for {
				if _, err := ours.Read(sink[:]); err != nil {
					return
				}
			}
		}()
		_, _ = ours.Write(raw)
		_ = ours.Close()
		<-drained
		_ = target.Close()
	})
}

func TestAddressOfPipeIsInvalid(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if got := addressOf(a); got != (netip.Addr{}) {
		t.Fatalf("got %v", got)
	}
}

// FuzzTap feeds a tap with whatever both sides may say, in pieces of any size.
func FuzzTap(f *testing.F) {
	login := append([]byte{0x43, 0x87, 0, 0, 0, 0, 0, 16}, make([]byte, 40)...)
	login = append(login, "TargetName=iqn.a"...)
	f.Add(login, []byte{0x23, 0x83}, 7)
	f.Add([]byte{0x01, 0xa0, 0, 0, 255, 255, 255, 255}, bytes.Repeat([]byte{0x21}, 96), 1)
	f.Fuzz(func(t *testing.T, out, in []byte, piece int) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		c := Tap(&scripted{Conn: near, in: in}, Watcher{Login: func(string, string) {}, Wrote: func(uint16) {}, Blind: func(string) {}})
		piece = max(1, min(piece, 64))
		b := make([]byte, piece)
		for len(out) > 0 {
			n := min(piece, len(out))
			_, _ = c.Write(out[:n])
			out = out[n:]
			_, _ = c.Read(b)
		}
	})
}

// scripted takes everything and answers what it was given.
type scripted struct {
	net.Conn
	in []byte
}

func (s *scripted) Write(b []byte) (int, error) { return len(b), nil }

func (s *scripted) Read(b []byte) (int, error) {
	n := copy(b, s.in)
	s.in = s.in[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}
