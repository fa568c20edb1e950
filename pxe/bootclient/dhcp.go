package bootclient

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/dhcp"
)

// configure does DISCOVER, OFFER, REQUEST, ACK through the relay.
func (m *machine) configure(ctx context.Context, class pxe.Class) (ack, error) {
	conn, err := m.c.ListenPacket("udp4", net.JoinHostPort(m.c.Relay.String(), "0"))
	if err != nil {
		return ack{}, fault.Wrap(err, "open relay socket", m.c.Relay.String())
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	x := &exchange{m: m, conn: conn, class: class, xid: rand.Uint32(), buf: make([]byte, dhcp.MaxMessage+1)}
	if err := x.ask(ctx, dhcp.Discover, dhcp.Offer); err != nil {
		return ack{}, err
	}
	x.offered, x.server = x.p.YIAddr, x.p.Addr(dhcp.OptServerID)
	if x.offered.IsUnspecified() || !x.server.IsValid() {
		return ack{}, fault.New(fault.Invalid, "DHCP offer without an address")
	}
	if err := x.ask(ctx, dhcp.Request, dhcp.Ack); err != nil {
		return ack{}, err
	}
	m.step("dhcp", fmt.Sprintf("%s got %s", class, x.p.YIAddr))
	a := m.take(&x.p)
	if class == pxe.ClassIPXE {
		m.out.PhoneHome = a.phoneHome
	}
	return a, nil
}

// exchange is one DORA.
type exchange struct {
	m       *machine
	conn    net.PacketConn
	class   pxe.Class
	xid     uint32
	offered netip.Addr
	server  netip.Addr
	buf     []byte
	p       dhcp.Packet // the last answer
}

// ask sends a message until the wanted answer comes, with the doubling pauses of PXE.
func (x *exchange) ask(ctx context.Context, kind, want dhcp.MessageType) error {
	wait := x.m.c.DHCPTimeout
	begin := time.Now()
	for range x.m.c.DHCPTries {
		msg := x.message(kind, uint16(min(time.Since(begin)/time.Second, 0xffff)))
		if _, err := x.conn.WriteTo(msg, net.UDPAddrFromAddrPort(x.m.c.DHCPServer)); err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		err := x.await(want, time.Now().Add(wait))
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		wait *= 2
	}
	return fault.New(fault.Timeout, "no DHCP answer")
}

func (x *exchange) await(want dhcp.MessageType, deadline time.Time) error {
	if err := x.conn.SetReadDeadline(deadline); err != nil {
		return err
	}
	for {
		n, _, err := x.conn.ReadFrom(x.buf)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error of an earlier datagram
		}
		if x.p.Parse(x.buf[:n]) != nil || x.p.Op != dhcp.BootReply || x.p.XID != x.xid || x.p.MAC != x.m.c.MAC {
			continue
		}
		switch x.p.Type() {
		case want:
			return nil
		case dhcp.Nak:
			return fault.New(fault.Conflict, "DHCP server refused the address")
		}
	}
}

// message writes a request as firmware or iPXE sends it and the relay passes it on.
func (x *exchange) message(kind dhcp.MessageType, secs uint16) []byte {
	c := &x.m.c
	b := dhcp.AppendHeader(make([]byte, 0, 576), &dhcp.Header{Op: dhcp.BootRequest, Hops: 1, XID: x.xid, Secs: secs,
		Flags: dhcp.FlagBroadcast, GIAddr: c.Relay, MAC: c.MAC})
	b = dhcp.AppendOption(b, dhcp.OptMessageType, byte(kind))
	if kind == dhcp.Request {
		b = dhcp.AppendAddr(b, dhcp.OptRequestedIP, x.offered)
		b = dhcp.AppendAddr(b, dhcp.OptServerID, x.server)
	}
	b = dhcp.AppendOption(b, dhcp.OptParams, dhcp.OptSubnetMask, dhcp.OptRouter, dhcp.OptDNS, dhcp.OptHostName, dhcp.OptVendor,
		dhcp.OptClass, dhcp.OptTFTPServer, dhcp.OptBootFile, dhcp.OptIPXE, dhcp.OptPhoneHome)
	b = dhcp.AppendOption(b, dhcp.OptMaxSize, byte(dhcp.MaxMessage>>8), byte(dhcp.MaxMessage&0xff))
	kindOf := "PXEClient"
	if x.class == pxe.ClassHTTP {
		kindOf = "HTTPClient"
	}
	b = dhcp.AppendString(b, dhcp.OptClass, fmt.Sprintf("%s:Arch:%05d:UNDI:003016", kindOf, c.Arch))
	b = dhcp.AppendOption(b, dhcp.OptArch, binary.BigEndian.AppendUint16(nil, uint16(c.Arch))...)
	b = dhcp.AppendOption(b, dhcp.OptInterface, 1, 3, 16)
	b = dhcp.AppendOption(b, dhcp.OptUUID, append([]byte{0}, c.UUID[:]...)...)
	if x.class == pxe.ClassIPXE {
		b = dhcp.AppendString(b, dhcp.OptUserClass, "iPXE")
		b = dhcp.AppendOption(b, dhcp.OptIPXE, 19, 1, 1) // feature: HTTP
	}
	return dhcp.Finish(dhcp.AppendOption(b, dhcp.OptRelay, c.relayInfo()...))
}

func (c *Config) relayInfo() []byte {
	var v []byte
	if c.CircuitID != "" {
		v = dhcp.AppendString(v, dhcp.RelayCircuitID, c.CircuitID)
	}
	if c.LinkSelection.IsValid() {
		v = dhcp.AppendAddr(v, dhcp.RelayLink, c.LinkSelection)
	}
	return dhcp.AppendOption(v, dhcp.RelaySourcePort)
}
