package gateway

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits of forwarded transfers.
const (
	maxFlows = 256
	// idle ends a transfer in which nothing passes: longer than any repetition of RFC 2349's at most
	// 255 s that firmware really asks for.
	idle     = 30 * time.Second
	maxBlock = 65464 + 4 // RFC 2348 section 1, with the header of a DATA packet
)

// flow is a transfer as the machine sees it: it repeats a request from the same port.
type flow struct{ from netip.AddrPort }

type flows struct {
	mu   sync.Mutex
	open map[flow]bool
}

func (f *flows) take(k flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[k] || len(f.open) >= maxFlows {
		return false
	}
	f.open[k] = true
	return true
}

func (f *flows) release(k flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, k)
}

// forwardTFTP gives every request a transfer of its own: the server answers each from a new port (RFC
// 1350 section 4), so that no table of ports would do.
func (g *Gateway) forwardTFTP() {
	b := make([]byte, maxBlock)
	for {
		n, from, err := g.tftp.ReadFrom(b)
		if err != nil {
			return
		}
		udp, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		k := flow{udp.AddrPort()}
		if !g.flows.take(k) {
			continue // a repeated request, or too many: the machine asks again
		}
		request := append([]byte(nil), b[:n]...)
		g.wg.Go(func() {
			defer g.flows.release(k)
			if err := g.transfer(request, udp); err != nil {
				g.cfg.Logger.Debug("TFTP transfer not forwarded", "from", udp.String(), "err", err)
			}
		})
	}
}

// transfer carries one from the machine's request to its end.
func (g *Gateway) transfer(request []byte, machine *net.UDPAddr) error {
	inner, err := g.cfg.Host.ListenPacket(netip.AddrPortFrom(g.cfg.Boot, 0))
	if err != nil {
		return err
	}
	defer inner.Close()
	outer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: g.source(machine)})
	if err != nil {
		return err
	}
	defer outer.Close()
	ctx, cancel := context.WithCancel(g.ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _, _ = inner.Close(), outer.Close() })
	defer stop()
	at := g.cfg.Servers().TFTP
	if _, err := outer.WriteToUDPAddrPort(request, at); err != nil {
		return err
	}
	// The first answer names the port of the transfer.
	b := make([]byte, maxBlock)
	var server netip.AddrPort
	for !server.IsValid() {
		if err := outer.SetReadDeadline(time.Now().Add(idle)); err != nil {
			return err
		}
		n, from, err := outer.ReadFromUDPAddrPort(b)
		if err != nil {
			return err
		}
		if from.Addr().Unmap() != at.Addr() {
			continue
		}
		server = from
		if _, err := inner.WriteTo(b[:n], machine); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		pass(outer, inner, net.UDPAddrFromAddrPort(server), machine)
	})
	pass(inner, outer, machine, net.UDPAddrFromAddrPort(server))
	cancel()
	wg.Wait()
	return nil
}

// pass carries datagrams of one sender until none comes any more.
func pass(from, to net.PacketConn, sender, receiver *net.UDPAddr) {
	b := make([]byte, maxBlock)
	for {
		if err := from.SetReadDeadline(time.Now().Add(idle)); err != nil {
			return
		}
		n, who, err := from.ReadFrom(b)
		if err != nil {
			return
		}
		if u, ok := who.(*net.UDPAddr); !ok || u.Port != sender.Port || !u.IP.Equal(sender.IP) {
			continue
		}
		if _, err := to.WriteTo(b[:n], receiver); err != nil {
			return
		}
	}
}
