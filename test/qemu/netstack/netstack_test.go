package netstack_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/pxe/tftp"
	"rerack.dev/rerack/test/qemu/netstack"
	"rerack.dev/rerack/test/qemu/vswitch"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// host puts a host 10.1.0.last/16 on a VLAN of a switch.
func host(t testing.TB, sw *vswitch.Switch, vlan int, last byte) *netstack.Host {
	t.Helper()
	addr := netip.AddrFrom4([4]byte{10, 1, 0, last})
	p, err := sw.Add(addr.String()+"@"+string(rune('0'+vlan)), vswitch.Settings{Access: vlan})
	must(t, err)
	h, err := netstack.New(netstack.Config{Port: p, MAC: vswitch.MAC{2, 0, 0, byte(vlan), 0, last}, Addresses: []netip.Prefix{netip.PrefixFrom(addr, 16)}})
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

func TestServesOnItsVLANOnly(t *testing.T) {
	sw := vswitch.New(nil)
	server, client, elsewhere := host(t, sw, 1, 1), host(t, sw, 1, 2), host(t, sw, 2, 3)
	at := netip.MustParseAddrPort("10.1.0.1:80")
	l, err := server.Listen(at)
	must(t, err)
	if _, err := server.Listen(at); !fault.Is(err, fault.Busy) {
		t.Errorf("a second listener: %v", err)
	}
	if _, ok := server.EthernetOf(netip.MustParseAddr("10.1.0.2")); ok {
		t.Error("a host that never sent anything is known")
	}
	body := bytes.Repeat([]byte("rerack "), 50000)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }), ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	web := func(h *netstack.Host) *http.Client {
		return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, a string) (net.Conn, error) {
			return h.Dial(ctx, netip.MustParseAddrPort(a))
		}}}
	}
	resp, err := web(client).Get("http://10.1.0.1/")
	must(t, err)
	got, err := io.ReadAll(resp.Body)
	must(t, errors.Join(err, resp.Body.Close()))
	if !bytes.Equal(got, body) {
		t.Errorf("%d bytes came of %d", len(got), len(body))
	}
	if mac, ok := server.EthernetOf(netip.MustParseAddr("10.1.0.2")); !ok || mac != (vswitch.MAC{2, 0, 0, 1, 0, 2}) {
		t.Errorf("the client is at %x, %v", mac, ok)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := elsewhere.Dial(ctx, at); err == nil {
		t.Error("a host on another VLAN gets through")
	}
	if _, err := client.Dial(t.Context(), netip.MustParseAddrPort("10.1.0.1:81")); !fault.Is(err, fault.Unreachable) {
		t.Errorf("nobody listens there: %v", err)
	}
	must(t, srv.Close())
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// TestProductServesHere runs the product's boot server on a user-space host, and takes an address and a
// boot file from it as a machine on the same VLAN.
func TestProductServesHere(t *testing.T) {
	sw := vswitch.New(nil)
	self := netip.MustParseAddr("10.1.0.1")
	server := host(t, sw, 1, 1)
	packets := func(port uint16) net.PacketConn {
		c, err := server.ListenPacket(netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		must(t, err)
		return c
	}
	site := pxetest.Start(t, nil, func(c *bootserver.Config) {
		must(t, errors.Join(c.DHCP[0].Conn.Close(), c.TFTPConn.Close(), c.HTTPListener.Close()))
		l, err := server.Listen(netip.AddrPortFrom(self, 80))
		must(t, err)
		c.DHCP = []dhcp.Listener{{Name: "vlan1", Conn: packets(67), ServerID: self, Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}}
		c.TFTPConn, c.ListenPacket, c.HTTPListener, c.BaseURL = packets(69), server.ListenPacketName, l, "http://10.1.0.1"
	})
	in := site.Intent(7, site.KernelBoot())
	site.Set(in)

	client := host(t, sw, 1, 7)
	c, err := client.ListenPacket(netip.AddrPortFrom(netip.IPv4Unspecified(), 68))
	must(t, err)
	defer c.Close()
	msg := dhcp.AppendHeader(nil, &dhcp.Header{Op: dhcp.BootRequest, XID: 99, Flags: dhcp.FlagBroadcast, MAC: pxetest.MAC(7)})
	msg = dhcp.AppendOption(msg, dhcp.OptMessageType, byte(dhcp.Discover))
	msg = dhcp.AppendOption(msg, dhcp.OptParams, dhcp.OptBootFile)
	msg = dhcp.AppendString(msg, dhcp.OptClass, "PXEClient:Arch:00000:UNDI:002001")
	_, err = c.WriteTo(dhcp.Finish(msg), &net.UDPAddr{IP: net.IPv4bcast, Port: 67})
	must(t, err)
	must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	b := make([]byte, 2048)
	n, from, err := c.ReadFrom(b)
	must(t, err)
	var p dhcp.Packet
	must(t, p.Parse(b[:n]))
	name := string(p.Option(dhcp.OptBootFile))
	if p.Type() != dhcp.Offer || p.YIAddr != in.NICs[0].Address.Addr() || p.SIAddr != self || name != "undionly.kpxe" {
		t.Fatalf("type %d from %s: address %s, next server %s, boot file %q", p.Type(), from, p.YIAddr, p.SIAddr, name)
	}
	var file bytes.Buffer
	got, err := tftp.Client{ListenPacket: client.ListenPacketName}.Get(t.Context(), netip.AddrPortFrom(self, 69), name, &file)
	must(t, err)
	f, err := site.Images.Open(site.Loaders[name])
	must(t, err)
	defer f.Close()
	want, err := io.ReadAll(f)
	must(t, err)
	if got != int64(len(want)) || !bytes.Equal(file.Bytes(), want) {
		t.Errorf("%d bytes came of %d", got, len(want))
	}
}

// TestErrorsAreTheKernels has servers tell a deadline and their own end from other errors.
func TestErrorsAreTheKernels(t *testing.T) {
	h := host(t, vswitch.New(nil), 1, 1)
	c, err := h.ListenPacket(netip.MustParseAddrPort("10.1.0.1:0"))
	must(t, err)
	if at := c.LocalAddr().(*net.UDPAddr); at.Port == 0 || at.IP.String() != "10.1.0.1" {
		t.Errorf("listens on %s", at)
	}
	must(t, c.SetReadDeadline(time.Now().Add(-time.Second)))
	if _, _, err := c.ReadFrom(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past its deadline: %v", err)
	}
	must(t, c.SetReadDeadline(time.Time{}))
	l, err := h.Listen(netip.MustParseAddrPort("10.1.0.1:80"))
	must(t, err)
	done := make(chan error, 2)
	go func() {
		_, _, err := c.ReadFrom(make([]byte, 1))
		done <- err
	}()
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	must(t, errors.Join(c.Close(), l.Close()))
	for range 2 {
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after its end: %v", err)
		}
	}
	if err := errors.Join(c.Close(), l.Close()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := c.WriteTo([]byte("x"), &net.UDPAddr{IP: net.IPv6loopback, Port: 1}); err == nil {
		t.Error("wrote to IPv6")
	}
}

func TestAnswersRouterSolicitations(t *testing.T) {
	sw := vswitch.New(nil)
	host(t, sw, 1, 1)
	p, err := sw.Add("machine", vswitch.Settings{Access: 1})
	must(t, err)
	w, err := p.Connect()
	must(t, err)
	defer w.Close()
	mac := vswitch.MAC{0x52, 0x54, 0, 0, 0, 9}
	own := [16]byte{0xfe, 0x80, 15: 9}
	for what, c := range map[string]struct {
		from, to [16]byte
		toMAC    vswitch.MAC
	}{
		"with an address": {own, own, mac},
		"without":         {[16]byte{}, [16]byte{0xff, 2, 15: 1}, vswitch.MAC{0x33, 0x33, 0, 0, 0, 1}},
	} {
		f := append([]byte{0x33, 0x33, 0, 0, 0, 2}, mac[:]...)
		f = binary.BigEndian.AppendUint16(f, 0x86dd)
		f = append(f, 0x60, 0, 0, 0, 0, 8, 58, 255)
		f = append(f, c.from[:]...)
		f = append(f, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2)
		f = append(f, 133, 0, 0, 0, 0, 0, 0, 0)
		w.Send(f)
		var got []byte
		select {
		case got = <-w.Frames():
		case <-time.After(10 * time.Second):
			t.Fatal(what, ": no answer")
		}
		ip := header.IPv6(got[14:])
		icmp := header.ICMPv6(ip.Payload())
		if vswitch.MAC(got[:6]) != c.toMAC || !ip.IsValid(len(ip)) || ip.DestinationAddress() != tcpip.AddrFrom16(c.to) || ip.HopLimit() != 255 ||
			icmp.Type() != header.ICMPv6RouterAdvert || header.NDPRouterAdvert(icmp.MessageBody()).RouterLifetime() != 0 {
			t.Errorf("%s: %x", what, got)
		}
		want := header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: ip.SourceAddress(), Dst: ip.DestinationAddress(), PayloadCsum: checksum.Checksum(nil, 0)})
		if icmp.Checksum() != want {
			t.Errorf("%s: checksum %#x, want %#x", what, icmp.Checksum(), want)
		}
	}
}

func TestConfig(t *testing.T) {
	p, err := vswitch.New(nil).Add("p", vswitch.Settings{Access: 1})
	must(t, err)
	good := netstack.Config{Port: p, MAC: vswitch.MAC{2, 0, 0, 0, 0, 1}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}
	for key, spoil := range map[string]func(*netstack.Config){
		"Port":      func(c *netstack.Config) { c.Port = nil },
		"MAC":       func(c *netstack.Config) { c.MAC[0] = 1 },
		"Addresses": func(c *netstack.Config) { c.Addresses = []netip.Prefix{netip.MustParsePrefix("fe80::1/64")} },
		"MTU":       func(c *netstack.Config) { c.MTU = 100 },
	} {
		c := good
		spoil(&c)
		if _, err := netstack.New(c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", key, err)
		}
	}
	h, err := netstack.New(good)
	must(t, err)
	if _, err := netstack.New(good); !fault.Is(err, fault.Busy) {
		t.Errorf("two hosts in one port: %v", err)
	}
	must(t, h.Close())
	must(t, h.Close())
	if p.Link() {
		t.Error("a closed host is still plugged in")
	}
}
