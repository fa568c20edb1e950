package dhcp

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/pxe"
)

func TestQueueOrder(t *testing.T) {
	q := newQueue(4)
	for i, as := range []rank{rankOf(false, false), rankOf(false, true), rankOf(true, false), rankOf(true, true)} {
		j := q.get()
		j.n = i
		q.push(j, as)
	}
	for _, want := range []int{3, 2, 1, 0} {
		if j := q.pop(); j.n != want {
			t.Errorf("got job %d, want %d", j.n, want)
		}
	}
}

// TestOverloadFinishesWhatItBegan lets DISCOVERs pile up behind a busy worker, more than the queue takes,
// and then asks for one address that was offered before: that client is answered first.
func TestOverloadFinishesWhatItBegan(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	const machines = 100
	s := newServer(t, machines, conn)
	s.q, s.cfg.Workers = newQueue(16), 1
	begun, release := make(chan struct{}, 1), make(chan struct{})
	s.cfg.Decider.Now = func() time.Time { // a slow worker
		select {
		case begun <- struct{}{}:
		default:
		}
		<-release
		return time.Now()
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	free := sync.OnceFunc(func() { close(release) })
	defer free()

	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	to := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	sent := uint64(0)
	send := func(b []byte) {
		t.Helper()
		if _, err := client.WriteToUDPAddrPort(b, to); err != nil {
			t.Fatal(err)
		}
		sent++
		// One after the other, so that the socket's buffer is not what overflows.
		for end := time.Now().Add(10 * time.Second); s.Stats().Received < sent; {
			if time.Now().After(end) {
				t.Fatalf("message %d not received", sent)
			}
			time.Sleep(50 * time.Microsecond)
		}
	}
	send(question(Discover, nthMAC(0), nil))
	<-begun // the worker has it, and stays in it
	for i := 1; i < machines-1; i++ {
		send(question(Discover, nthMAC(i), nil))
	}
	late := nthMAC(machines - 1)
	send(question(Request, late, func(b []byte) []byte {
		b = AppendAddr(b, OptRequestedIP, netip.AddrFrom4([4]byte{10, 1, 0, machines - 1}))
		return AppendAddr(b, OptServerID, netip.MustParseAddr("10.1.0.1"))
	}))
	send(question(Discover, pxe.MAC{2, 0xff}, nil)) // nobody's: it is received when what came before is in the queue
	free()

	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
	var p Packet
	buf := make([]byte, MaxMessage)
	for _, want := range []struct {
		mac  pxe.MAC
		kind MessageType
	}{{nthMAC(0), Offer}, {late, Ack}} {
		n, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Parse(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if p.MAC != want.mac || p.Type() != want.kind {
			t.Errorf("message type %d to %s, want %d to %s", p.Type(), p.MAC, want.kind, want.mac)
		}
	}
	if s.Stats().Dropped == 0 {
		t.Error("the queue was never full")
	}
}
