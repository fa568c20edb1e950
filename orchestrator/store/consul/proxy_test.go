package consul_test

import (
	"net"
	"sync"
	"testing"
)

// proxy stands on the network between a store and Consul.
type proxy struct {
	address string
	target  string
	l       net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
	mute  bool // answers of Consul are thrown away
	cut   bool // nothing gets through, and nobody is told
}

func newProxy(t *testing.T, target string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String(), target: target, l: l, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			p.mu.Lock()
			p.conns[client], p.conns[server] = true, true
			p.mu.Unlock()
			wg.Go(func() { p.pump(server, client, func() bool { return p.cut }) })
			wg.Go(func() { p.pump(client, server, func() bool { return p.cut || p.mute }) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.dropConnections()
		wg.Wait()
	})
	return p
}

func (p *proxy) pump(to, from net.Conn, swallow func() bool) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		silent := swallow()
		p.mu.Unlock()
		if n > 0 && !silent {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) set(change func(*proxy)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

func (p *proxy) dropConnections() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
		delete(p.conns, c)
	}
}
