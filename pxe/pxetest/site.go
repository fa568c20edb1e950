package pxetest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/ipxe"
)

// Site is a boot server on loopback with some files, and the machines around it.
type Site struct {
	t      testing.TB
	Table  *pxe.Table
	Ledger *Ledger
	Images *images.Store
	Dir    string // of Images
	Server *bootserver.Server
	HTTP   *http.Client

	DHCP, TFTP     netip.AddrPort
	Kernel, Initrd pxe.Digest
	Image          pxe.Digest
	Loaders        map[string]pxe.Digest
	Stop           func() // ends the server; Start makes a new one
}

// Key signs the tokens of every site.
var key = bytes.Repeat([]byte{0x5e}, 32)

// Start serves on loopback with a new table. A ledger that is given keeps what earlier servers told it.
func Start(t testing.TB, ledger *Ledger, change func(*bootserver.Config)) *Site {
	t.Helper()
	if ledger == nil {
		ledger = NewLedger()
	}
	s := &Site{t: t, Ledger: ledger, Dir: t.TempDir(), Loaders: map[string]pxe.Digest{}}
	s.HTTP = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	var err error
	if s.Table, err = pxe.NewTable(key); err != nil {
		t.Fatal(err)
	}
	if s.Images, err = images.Open(s.Dir, images.Options{}); err != nil {
		t.Fatal(err)
	}
	put := func(name string, size int) pxe.Digest {
		d, err := s.Images.Import(t.Context(), name, bytes.NewReader(bytes.Repeat([]byte(name), size/len(name)+1)), "")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	s.Kernel, s.Initrd, s.Image = put("vmlinuz", 300<<10), put("initrd.img", 500<<10), put("shell.efi", 100<<10)
	for _, n := range []string{"undionly.kpxe", "snponly.efi", "snponly-arm64.efi", "shimx64.efi", "grubx64.efi", "shimaa64.efi", "grubaa64.efi"} {
		s.Loaders[n] = put(n, 80<<10)
	}
	udp := func() net.PacketConn {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	dconn, tconn := udp(), udp()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.DHCP, s.TFTP = dconn.LocalAddr().(*net.UDPAddr).AddrPort(), tconn.LocalAddr().(*net.UDPAddr).AddrPort()
	c := bootserver.Config{Table: s.Table, Images: s.Images, Loaders: s.Loaders, BaseURL: "http://" + l.Addr().String(), Sink: ledger,
		DHCP: []dhcp.Listener{{Name: "lo", Conn: dconn, ServerID: netip.MustParseAddr("127.0.0.1"),
			Relays: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
		TFTPConn: tconn, TFTPPerSource: 2048, HTTPListener: l, HTTPPerSource: 4096}
	if change != nil {
		change(&c)
	}
	if s.Server, err = bootserver.New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Server.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	s.Stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		s.HTTP.CloseIdleConnections()
		if err := s.Images.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.Stop)
	return s
}

// MAC is the address of machine i, 10.0.x.y its reserved one.
func MAC(i int) pxe.MAC { return pxe.MAC{0x52, 0x54, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

// Intent makes the intent of machine i; the caller adds what to boot.
func (s *Site) Intent(i int, boot *pxe.Boot) pxe.Intent {
	a := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 16)
	in := pxe.Intent{Machine: fmt.Sprintf("m%d", i), Epoch: 1, Hostname: fmt.Sprintf("w%d", i),
		NICs: []pxe.NIC{{MAC: MAC(i), Address: a, Gateway: netip.MustParseAddr("10.1.255.254")}}}
	if boot != nil {
		in.Run, in.Boot, in.Expires = "rack-a/1", boot, time.Now().Add(time.Hour)
	}
	return in
}

// KernelBoot boots the site's kernel.
func (s *Site) KernelBoot() *pxe.Boot {
	return &pxe.Boot{Kernel: &pxe.Kernel{Kernel: s.Kernel, Initrds: []pxe.Digest{s.Initrd},
		Params: []ipxe.Param{{Key: "console", Value: "ttyS0,115200"}, {Key: "quiet"}}}}
}

// Set puts an intent into the table.
func (s *Site) Set(in pxe.Intent) {
	s.t.Helper()
	if err := s.Table.Set(in); err != nil {
		s.t.Fatal(err)
	}
}

// Client is machine i with the given firmware, in the VLAN of its address.
func (s *Site) Client(i int, arch pxe.Arch) bootclient.Config {
	return bootclient.Config{MAC: MAC(i), UUID: [16]byte{15: byte(i)}, Arch: arch, DHCPServer: s.DHCP, TFTPServer: s.TFTP,
		Relay: netip.MustParseAddr("127.0.0.1"), LinkSelection: netip.MustParseAddr("10.1.0.0"), CircuitID: fmt.Sprintf("Ethernet1/%d", i),
		DHCPTimeout: time.Second, HTTP: s.HTTP}
}
