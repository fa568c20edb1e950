package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/pxe/tftp"
	"rerack.dev/rerack/test/qemu/gateway"
	"rerack.dev/rerack/test/qemu/netstack"
	"rerack.dev/rerack/test/qemu/vswitch"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var (
	link = netip.MustParseAddr("10.1.255.254")
	boot = netip.MustParseAddr("198.18.0.1")
)

func host(t testing.TB, sw *vswitch.Switch, name string, last byte, router netip.Addr, addrs ...netip.Prefix) *netstack.Host {
	t.Helper()
	p, err := sw.Add(name, vswitch.Settings{Access: 10})
	must(t, err)
	h, err := netstack.New(netstack.Config{Port: p, MAC: vswitch.MAC{2, 0, 0, 0, 0, last}, Addresses: addrs, Gateway: router})
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

// open puts a gateway before a boot server on loopback, and a machine on the other side.
func open(t *testing.T) (*pxetest.Site, *netstack.Host) {
	t.Helper()
	var web netip.AddrPort
	site := pxetest.Start(t, nil, func(c *bootserver.Config) {
		web = netip.MustParseAddrPort(c.HTTPListener.Addr().String())
		c.BaseURL, c.NextServer, c.DHCP[0].ServerID = "http://"+boot.String(), boot, boot
	})
	sw := vswitch.New(nil)
	g, err := gateway.Open(gateway.Config{Host: host(t, sw, "gateway", 1, netip.Addr{}, netip.PrefixFrom(link, 16), netip.PrefixFrom(boot, 32)),
		Link: link, Boot: boot, From: netip.MustParsePrefix("127.5.0.0/16"), Relay: netip.MustParseAddr("127.6.0.1"),
		Servers: func() gateway.Servers { return gateway.Servers{DHCP: site.DHCP, TFTP: site.TFTP, HTTP: web} },
		Circuit: func(mac [6]byte) string { return "tor-a/p" + string('0'+rune(mac[5])) }})
	must(t, err)
	t.Cleanup(func() { must(t, errors.Join(g.Close(), g.Close())) })
	return site, host(t, sw, "machine", 7, link, netip.MustParsePrefix("10.1.0.7/16"))
}

func TestRelaysAndForwards(t *testing.T) {
	site, machine := open(t)
	in := site.Intent(7, site.KernelBoot())
	site.Set(in)
	c, err := machine.ListenPacket(netip.MustParseAddrPort("0.0.0.0:68"))
	must(t, err)
	defer c.Close()
	ask := func(kind dhcp.MessageType, opts ...byte) *dhcp.Packet {
		t.Helper()
		msg := dhcp.AppendHeader(nil, &dhcp.Header{Op: dhcp.BootRequest, XID: 99, MAC: pxetest.MAC(7)})
		msg = dhcp.AppendOption(msg, dhcp.OptMessageType, byte(kind))
		msg = dhcp.AppendString(append(msg, opts...), dhcp.OptClass, "PXEClient:Arch:00000:UNDI:002001")
		msg = dhcp.AppendOption(msg, dhcp.OptParams, dhcp.OptBootFile)
		_, err := c.WriteTo(dhcp.Finish(msg), &net.UDPAddr{IP: net.IPv4bcast, Port: 67})
		must(t, err)
		must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		b := make([]byte, 2048)
		n, _, err := c.ReadFrom(b)
		must(t, err)
		var p dhcp.Packet
		must(t, p.Parse(b[:n]))
		return &p
	}
	p := ask(dhcp.Discover)
	name := string(p.Option(dhcp.OptBootFile))
	if p.Type() != dhcp.Offer || p.YIAddr != in.NICs[0].Address.Addr() || p.SIAddr != boot || name != "undionly.kpxe" || p.Has(dhcp.OptRelay) || !p.GIAddr.IsUnspecified() {
		t.Errorf("type %d: address %s, next server %s, boot file %q, relay %s", p.Type(), p.YIAddr, p.SIAddr, name, p.GIAddr)
	}
	want := dhcp.AppendAddr(dhcp.AppendAddr(nil, dhcp.OptServerID, boot), dhcp.OptRequestedIP, p.YIAddr)
	if p := ask(dhcp.Request, want...); p.Type() != dhcp.Ack {
		t.Errorf("type %d", p.Type())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	m, err := site.Ledger.Wait(ctx, in.Machine, pxe.KindDHCP)
	if err != nil || !strings.Contains(m.Detail, "port tor-a/p7") {
		t.Errorf("%q, %v", m.Detail, err)
	}

	f, err := site.Images.Open(site.Loaders[name])
	must(t, err)
	loader, err := io.ReadAll(f)
	must(t, errors.Join(err, f.Close()))
	for _, window := range []int{1, 16} {
		var file bytes.Buffer
		_, err = tftp.Client{ListenPacket: machine.ListenPacketName, Block: 1400, Window: window}.Get(ctx, netip.AddrPortFrom(boot, 69), name, &file)
		if err != nil || !bytes.Equal(file.Bytes(), loader) {
			t.Errorf("TFTP: %d bytes of %d, %v", file.Len(), len(loader), err)
		}
	}
	if _, err := (tftp.Client{ListenPacket: machine.ListenPacketName}).Get(ctx, netip.AddrPortFrom(boot, 69), "nothing", io.Discard); !fault.Is(err, fault.NotFound) {
		t.Errorf("a file that is not there: %v", err)
	}

	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, a string) (net.Conn, error) {
		return machine.Dial(ctx, netip.MustParseAddrPort(a))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+boot.String()+"/boot/nobody/script.ipxe", nil)
	must(t, err)
	resp, err := web.Do(req)
	must(t, err)
	must(t, resp.Body.Close())
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("a token of nobody: %s", resp.Status)
	}
}

func TestConfig(t *testing.T) {
	_, machine := open(t)
	good := gateway.Config{Host: machine, Link: link, Boot: boot, Relay: netip.MustParseAddr("127.6.0.2"), From: netip.MustParsePrefix("127.5.0.0/16"),
		Servers: func() gateway.Servers { return gateway.Servers{} }}
	for key, spoil := range map[string]func(*gateway.Config){
		"Host":    func(c *gateway.Config) { c.Host = nil },
		"Link":    func(c *gateway.Config) { c.Link = netip.IPv6Loopback() },
		"Servers": func(c *gateway.Config) { c.Servers = nil },
		"From":    func(c *gateway.Config) { c.From = netip.MustParsePrefix("10.0.0.0/16") },
	} {
		c := good
		spoil(&c)
		if _, err := gateway.Open(c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	good.Relay = netip.MustParseAddr("192.0.2.1") // not ours
	if _, err := gateway.Open(good); err == nil {
		t.Error("a relay address that this machine does not have")
	}
}
