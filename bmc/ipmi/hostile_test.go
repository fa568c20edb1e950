package ipmi_test

import (
	"context"
	"net"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/internal/fault"
)

// meddler is a UDP relay that answers every datagram of the client with a forgery before it passes it on.
type meddler struct {
	front, back *net.UDPConn
	forge       func(request []byte) [][]byte
}

func meddle(t *testing.T, to string, forge func([]byte) [][]byte) string {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	addr, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	m := &meddler{front: front, back: back, forge: forge}
	done := make(chan struct{})
	go func() { defer close(done); m.run() }()
	t.Cleanup(func() {
		_ = front.Close()
		_ = back.Close()
		<-done
	})
	return front.LocalAddr().String()
}

func (m *meddler) run() {
	var buf [2048]byte
	for {
		n, client, err := m.front.ReadFromUDP(buf[:])
		if err != nil {
			return
		}
		for _, f := range m.forge(buf[:n]) {
			_, _ = m.front.WriteToUDP(f, client) // lost datagrams are part of the game
		}
		_, _ = m.back.Write(buf[:n])
		_ = m.back.SetReadDeadline(time.Now().Add(2 * time.Second))
		if n, err = m.back.Read(buf[:]); err != nil {
			continue
		}
		_, _ = m.front.WriteToUDP(buf[:n], client)
	}
}

// plainOff is "chassis power is off", unprotected, for each of the 64 sequence numbers that the question
// may have: what an attacker who sees or guesses the port can send.
func plainOff(request []byte) [][]byte {
	if len(request) < 16 || request[4] != 6 || request[5]&0xC0 != 0xC0 {
		return nil // only within the session
	}
	var out [][]byte
	for seq := range byte(64) {
		msg := []byte{0x81, 0x04, 0x7b, 0x20, seq << 2, 0x01, 0x00, 0x00, 0x00, 0x00, 0}
		for _, b := range msg[3:10] {
			msg[10] -= b
		}
		out = append(out, append([]byte{6, 0, 0xff, 7, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(msg)), 0}, msg...))
	}
	return out
}

func TestForgedOffIsNotBelieved(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.Generic(), true, nil)
	addr := meddle(t, s.BMC.Addr(), plainOff)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := ipmi.Opener{}.Open(ctx, bmc.Endpoint{Address: addr}, bmctest.SimCredential())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close(ctx)
	for range 20 {
		r, err := d.Power(ctx)
		if err != nil || r.State != driver.PowerOn {
			t.Fatalf("reads %s, %v; the machine is on", r.State, err)
		}
	}
}

// A BMC that answers the open session request with "no authentication" is not followed there.
func TestDowngradeIsRefused(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.Generic(), true, nil)
	addr := meddle(t, s.BMC.Addr(), func(req []byte) [][]byte {
		if len(req) < 48 || req[4] != 6 || req[5] != 0x10 {
			return nil
		}
		body := make([]byte, 36)
		body[0] = req[16] // tag
		copy(body[4:8], req[20:24])
		copy(body[8:12], []byte{1, 2, 3, 4})
		for i, typ := range []byte{0, 1, 2} { // authentication, integrity, confidentiality: none
			body[12+8*i], body[15+8*i] = typ, 8
		}
		return [][]byte{append([]byte{6, 0, 0xff, 7, 6, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(body)), 0}, body...)}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := ipmi.Opener{}.Open(ctx, bmc.Endpoint{Address: addr}, bmctest.SimCredential())
	if !fault.Is(err, fault.Unsafe) {
		t.Errorf("%v is %s, want unsafe", err, fault.KindOf(err))
	}
}

func TestConfigValidate(t *testing.T) {
	for _, c := range []ipmi.Config{{Address: "x"}, {Address: "h:1", User: "seventeen-letters"}, {Address: "h:1", Password: bmc.NewSecret("twenty-one characters")},
		{Address: "h:1", Privilege: "root"}} {
		if err := c.Validate(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v, want invalid", c, err)
		}
	}
}

// Datagrams get lost; a few lost ones cost time and nothing else.
func TestLostDatagrams(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.Generic(), true, ipmi.Opener{Config: ipmi.Config{AttemptTimeout: 100 * time.Millisecond, Attempts: 6}}.Open)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := s.Open(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close(ctx)
	for range 5 {
		s.BMC.SetFaults(func(f *bmcsim.Faults) { f.ResetConn = 2 })
		if r, err := d.Power(ctx); err != nil || r.State != driver.PowerOn {
			t.Fatalf("%+v, %v", r, err)
		}
	}
}

func BenchmarkPowerRead(b *testing.B) {
	s := bmctest.NewSim(b, bmcsim.Generic(), true, ipmi.Opener{}.Open)
	d, err := s.Open(context.Background(), false)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close(context.Background())
	for b.Loop() {
		if _, err := d.Power(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
