package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/dhcp"
)

// sockets are all that the server listens on. They are opened before anything else, so that an address
// which is taken is said at once and nothing is left behind.
type sockets struct {
	api, boot net.Listener
	tftp      net.PacketConn // nil: no TFTP
	dhcp      []dhcp.Listener
}

// openSockets opens all or, with an error, none.
func openSockets(ctx context.Context, cfg serverConfig) (_ *sockets, err error) {
	s := &sockets{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.api, err = net.Listen("tcp", cfg.listen); err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "listen for the API", Err: err, Next: "choose another --listen"}
	}
	if s.boot, err = net.Listen("tcp", cfg.bootHTTP); err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "listen for network boot", Err: err, Next: "choose another --boot-http"}
	}
	if cfg.tftp != "" {
		if s.tftp, err = net.ListenPacket("udp4", cfg.tftp); err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "listen for TFTP", Err: err, Next: "choose another --tftp"}
		}
	}
	s.dhcp, err = cfg.openDHCP(ctx)
	return s, err
}

// bootURL is how machines reach a server that was told to boot them at address. Port 0 has become a true one.
func (s *sockets) bootURL(address string) string {
	if strings.HasSuffix(address, ":0") {
		address = s.boot.Addr().String()
	}
	return "http://" + address
}

// close may be called again.
func (s *sockets) close() {
	for _, l := range []net.Listener{s.api, s.boot} {
		if l != nil {
			_ = l.Close()
		}
	}
	if s.tftp != nil {
		_ = s.tftp.Close()
	}
	for _, l := range s.dhcp {
		_ = l.Conn.Close()
	}
}

func prefixes(flag string, in []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: flag + " " + s, Err: err, Next: "write address/prefix-length"}
		}
		out = append(out, p)
	}
	return out, nil
}

// openDHCP returns what it has opened also with an error.
func (cfg serverConfig) openDHCP(ctx context.Context) (out []dhcp.Listener, err error) {
	relays, err := prefixes("--dhcp-relay-from", cfg.relays)
	if err != nil {
		return nil, err
	}
	if cfg.dhcpRelay != "" {
		at, err := netip.ParseAddrPort(cfg.dhcpRelay)
		if err != nil {
			return out, &fault.Error{Kind: fault.Invalid, What: "--dhcp-relay-listen", Err: err}
		}
		if len(relays) == 0 {
			return out, &fault.Error{Kind: fault.Invalid, What: "--dhcp-relay-listen answers nobody without --dhcp-relay-from"}
		}
		conn, err := net.ListenPacket("udp4", cfg.dhcpRelay)
		if err != nil {
			return out, &fault.Error{Kind: fault.Invalid, What: "listen for relayed DHCP", Err: err}
		}
		id := at.Addr()
		if cfg.bootAddress != "" {
			if id, err = netip.ParseAddr(cfg.bootAddress); err != nil {
				return out, errors.Join(&fault.Error{Kind: fault.Invalid, What: "--boot-address", Err: err}, conn.Close())
			}
		}
		out = append(out, dhcp.Listener{Name: cfg.dhcpRelay, Conn: conn, ServerID: id, Relays: relays})
	}
	for _, d := range cfg.dhcp {
		name, cidr, _ := strings.Cut(d, "=")
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return out, &fault.Error{Kind: fault.Invalid, What: "--dhcp " + d, Err: err, Next: "write interface=address/prefix"}
		}
		conn, err := dhcp.Listen(ctx, name, "67")
		if err != nil {
			return out, fault.Wrap(err, "listen for DHCP", fmt.Sprintf("interface %s", name))
		}
		out = append(out, dhcp.Listener{Name: name, Conn: conn, ServerID: p.Addr(), Subnets: []netip.Prefix{p.Masked()}, Relays: relays})
	}
	return out, nil
}
