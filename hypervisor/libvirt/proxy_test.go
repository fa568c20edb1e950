package libvirt_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"rerack.dev/rerack/hypervisor/hypervisortest"
)

// proxy stands between a driver and libvirtd and breaks calls on the wire.
type proxy struct {
	socket, behind string

	mu  sync.Mutex
	n   int // calls until the one to break; 0: none
	how hypervisortest.Failure
}

func serve(t *testing.T, behind string) *proxy {
	t.Helper()
	p := &proxy{socket: filepath.Join(filepath.Dir(behind), "proxy"), behind: behind}
	l, err := net.Listen("unix", p.socket)
	check(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.relay(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return p
}

func (p *proxy) fail(n int, how hypervisortest.Failure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n, p.how = n, how
}

func (p *proxy) heal() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	broke := p.n == 0
	p.n = 0
	return broke
}

// next says how the call at hand goes wrong, "" for not.
func (p *proxy) next() hypervisortest.Failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == 0 {
		return ""
	}
	if p.n--; p.n > 0 {
		return ""
	}
	return p.how
}

func (p *proxy) relay(c net.Conn) {
	defer c.Close()
	d, err := net.Dial("unix", p.behind)
	if err != nil {
		return
	}
	defer d.Close()
	var mu sync.Mutex
	lost := false
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer c.Close()
		defer d.Close()
		for {
			f, err := frame(d)
			if err != nil {
				return
			}
			mu.Lock()
			stop := lost
			mu.Unlock()
			if stop {
				return
			}
			if _, err := c.Write(f); err != nil {
				return
			}
		}
	})
	for {
		f, err := frame(c)
		if err != nil {
			_ = d.Close()
			return
		}
		switch p.next() {
		case hypervisortest.Refused:
			if _, err := c.Write(refusal(f)); err != nil {
				return
			}
			continue
		case hypervisortest.Dropped:
			_ = d.Close()
			return
		case hypervisortest.Lost:
			mu.Lock()
			lost = true
			mu.Unlock()
		}
		if _, err := d.Write(f); err != nil {
			return
		}
	}
}

// frame reads one message of the remote protocol with its length.
func frame(r io.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head)
	if size < 28 || size > 32<<20 {
		return nil, errors.New("no message")
	}
	f := append(head, make([]byte, size-4)...)
	_, err := io.ReadFull(r, f[4:])
	return f, err
}

// refusal answers a call with VIR_ERR_INTERNAL_ERROR: virNetMessageError in src/rpc/virnetprotocol.x.
func refusal(call []byte) []byte {
	const text = "not today!!!" // a multiple of four
	out := append([]byte(nil), call[:28]...)
	binary.BigEndian.PutUint32(out[16:], 1) // a reply
	binary.BigEndian.PutUint32(out[24:], 1) // an error
	for _, v := range []uint32{1, 0, 1, uint32(len(text))} {
		out = binary.BigEndian.AppendUint32(out, v)
	}
	out = append(out, text...)
	for _, v := range []uint32{2, 0, 0, 0, 0, 0, 0, 0, 0} { // its level, and nothing in the optional rest
		out = binary.BigEndian.AppendUint32(out, v)
	}
	binary.BigEndian.PutUint32(out, uint32(len(out)))
	return out
}
