package sockbuf_test

import (
	"net"
	"testing"
	"time"

	"rerack.dev/rerack/pxe/sockbuf"
)

// TestStorm sends what a thousand machines send before anybody reads, and reads all of it.
func TestStorm(t *testing.T) {
	const machines, length = 1000, 400
	held := func(grow bool) (n int) {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if grow {
			sockbuf.Grow(c, sockbuf.Storm)
		}
		from, err := net.Dial("udp4", c.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		for range machines {
			if _, err := from.Write(make([]byte, length)); err != nil {
				t.Fatal(err)
			}
		}
		// On loopback a datagram is in the receiver's buffer, or lost, when the write returns.
		for ; ; n++ {
			if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.ReadFrom(make([]byte, length)); err != nil {
				return n
			}
		}
	}
	before, after := held(false), held(true)
	t.Logf("%d of %d before, %d after", before, machines, after)
	if after < machines && after <= before {
		t.Errorf("the buffer holds %d of %d, as before", after, machines)
	}
}

// TestOther leaves a connection alone that has no socket.
func TestOther(*testing.T) {
	sockbuf.Grow(struct{ net.PacketConn }{}, sockbuf.Storm)
}
