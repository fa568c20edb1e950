package dhcp_test

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/dhcp"
	"rerack.dev/rerack/pxe/ipxe"
)

var (
	machineMAC = pxe.MAC{0x52, 0x54, 0, 0, 0, 1}
	spareMAC   = pxe.MAC{0x52, 0x54, 0, 0, 0, 2}
	serverIP   = netip.MustParseAddr("10.0.0.1")
	relayIP    = netip.MustParseAddr("127.0.0.1")
)

// collect is a durable sink that keeps what it was told.
type collect struct {
	mu   sync.Mutex
	seen []pxe.Milestone
	got  chan pxe.Milestone
}

func (c *collect) Reached(_ context.Context, m pxe.Milestone) error {
	c.mu.Lock()
	c.seen = append(c.seen, m)
	c.mu.Unlock()
	c.got <- m
	return nil
}

func newTable(t testing.TB) *pxe.Table {
	t.Helper()
	tab, err := pxe.NewTable(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	nic := func(m pxe.MAC, ip string) []pxe.NIC {
		return []pxe.NIC{{MAC: m, Address: netip.MustParsePrefix(ip), Gateway: netip.MustParseAddr("10.0.0.254"),
			DNS: []netip.Addr{netip.MustParseAddr("10.0.0.53")}, MTU: 1500}}
	}
	for _, in := range []pxe.Intent{
		{Machine: "a01", Run: "rack-a/1", Epoch: 3, Hostname: "db1", NICs: nic(machineMAC, "10.0.0.11/24"), Expires: time.Now().Add(time.Hour),
			Boot: &pxe.Boot{ISCSI: &ipxe.Target{Portal: netip.MustParseAddrPort("10.0.0.9:3260"), LUN: 1,
				Name: "iqn.2026-01.org.example:db1", Initiator: "iqn.2026-01.org.example:w-db1"}}},
		{Machine: "a02", NICs: nic(spareMAC, "10.0.0.12/24")},
	} {
		if err := tab.Set(in); err != nil {
			t.Fatal(err)
		}
	}
	return tab
}

type lab struct {
	t      *testing.T
	server *dhcp.Server
	to     netip.AddrPort
	client *net.UDPConn
	sink   *collect
	rogues chan dhcp.Rogue
	table  *pxe.Table
}

func start(t *testing.T, change func(*dhcp.Config)) *lab {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, client: client, to: conn.LocalAddr().(*net.UDPAddr).AddrPort(), sink: &collect{got: make(chan pxe.Milestone, 64)},
		rogues: make(chan dhcp.Rogue, 8), table: newTable(t)}
	rep, err := pxe.NewReporter(l.sink, 64, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := dhcp.Config{Workers: 1, Decider: &pxe.Decider{Table: l.table, BaseURL: "http://10.0.0.1:8080"}, Reporter: rep,
		Listeners: []dhcp.Listener{{Name: "lo", Conn: conn, ServerID: serverIP, Relays: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
		OnRogue:   func(r dhcp.Rogue) { l.rogues <- r }}
	if change != nil {
		change(&cfg)
	}
	if l.server, err = dhcp.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.server.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { _ = rep.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait(); client.Close() })
	return l
}

// discover makes a message with the third-party library, as relayed by 127.0.0.1.
func discover(t *testing.T, mac pxe.MAC, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	all := append([]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), dhcpv4.WithHwAddr(mac[:]),
		dhcpv4.WithGatewayIP(relayIP.AsSlice()), dhcpv4.WithRelay(net.IP(relayIP.AsSlice())),
		dhcpv4.WithOption(dhcpv4.OptRelayAgentInfo(
			dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(1), []byte("Ethernet1/7")),
			dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(5), []byte{10, 0, 0, 0}),
			dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(19), nil)))}, mods...)
	p, err := dhcpv4.New(all...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func class(c string, arch iana.Arch) dhcpv4.Modifier {
	return func(p *dhcpv4.DHCPv4) {
		p.UpdateOption(dhcpv4.OptClassIdentifier(c))
		p.UpdateOption(dhcpv4.OptClientArch(arch))
	}
}

func requestOf(offer *dhcpv4.DHCPv4, from *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	from.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
	from.UpdateOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr))
	from.UpdateOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier()))
	return from
}

func (l *lab) send(p *dhcpv4.DHCPv4) {
	l.t.Helper()
	if _, err := l.client.WriteToUDPAddrPort(p.ToBytes(), l.to); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) ask(p *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	l.t.Helper()
	l.send(p)
	return l.read()
}

func (l *lab) read() *dhcpv4.DHCPv4 {
	l.t.Helper()
	b := make([]byte, 2000)
	_ = l.client.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _, err := l.client.ReadFromUDPAddrPort(b)
	if err != nil {
		l.t.Fatalf("no answer: %v, %+v", err, l.server.Stats())
	}
	r, err := dhcpv4.FromBytes(b[:n])
	if err != nil {
		l.t.Fatalf("answer is not DHCP: %v", err)
	}
	return r
}

// silent sends p and then a question that is answered: the answer is to the second.
func (l *lab) silent(p *dhcpv4.DHCPv4) {
	l.t.Helper()
	l.send(p)
	q := discover(l.t, spareMAC)
	if r := l.ask(q); r.TransactionID != q.TransactionID {
		l.t.Fatalf("was answered: %s", r.Summary())
	}
}

func TestBootFileByClientKind(t *testing.T) {
	tests := []struct {
		name  string
		class string
		arch  iana.Arch
		ipxe  bool
		file  string // prefix
		end   string
	}{
		{"bios", "PXEClient:Arch:00000:UNDI:002001", 0, false, "undionly.kpxe", ""},
		{"efi x64", "PXEClient:Arch:00007:UNDI:003016", 7, false, "snponly.efi", ""},
		{"efi bc", "PXEClient:Arch:00009:UNDI:003016", 9, false, "snponly.efi", ""},
		{"efi arm64", "PXEClient:Arch:00011:UNDI:003000", 11, false, "snponly-arm64.efi", ""},
		{"http x64", "HTTPClient:Arch:00016:UNDI:003001", 16, false, "http://10.0.0.1:8080/boot/", "/loader/snponly.efi"},
		{"http arm64", "HTTPClient:Arch:00019:UNDI:003001", 19, false, "http://10.0.0.1:8080/boot/", "/loader/snponly-arm64.efi"},
		{"ipxe", "PXEClient:Arch:00000:UNDI:002001", 0, true, "http://10.0.0.1:8080/boot/", "/script.ipxe"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, nil)
			q := discover(t, machineMAC, class(tt.class, tt.arch), dhcpv4.WithOption(dhcpv4.OptHostName("x")))
			if tt.ipxe {
				q.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")))
			}
			o := l.ask(q)
			if o.MessageType() != dhcpv4.MessageTypeOffer || o.YourIPAddr.String() != "10.0.0.11" {
				t.Fatalf("offer: %s", o.Summary())
			}
			a := l.ask(requestOf(o, q))
			if a.MessageType() != dhcpv4.MessageTypeAck || a.TransactionID != q.TransactionID {
				t.Fatalf("ack: %s", a.Summary())
			}
			if f := a.BootFileName; !bytes.HasPrefix([]byte(f), []byte(tt.file)) || !bytes.HasSuffix([]byte(f), []byte(tt.end)) {
				t.Errorf("boot file %q, want %s...%s", f, tt.file, tt.end)
			}
			if got := a.ClassIdentifier(); (got == "HTTPClient") != (tt.arch >= 16) {
				t.Errorf("class echoed: %q", got)
			}
			if got := a.Options.Get(dhcpv4.GenericOptionCode(175)); bytes.Equal(got, []byte{0xb0, 1, 1}) != tt.ipxe {
				t.Errorf("option 175: %x", got)
			}
			if !bytes.Equal(a.Options.Get(dhcpv4.OptionRelayAgentInformation), q.Options.Get(dhcpv4.OptionRelayAgentInformation)) {
				t.Error("option 82 not echoed")
			}
			if a.HostName() != "db1" || a.Router()[0].String() != "10.0.0.254" || a.SubnetMask().String() != "ffffff00" || a.IPAddressLeaseTime(0) != time.Hour {
				t.Errorf("addresses: %s", a.Summary())
			}
			m := <-l.sink.got
			if m.Kind != pxe.KindDHCP || m.Machine != "a01" || m.Run != "rack-a/1" || m.Epoch != 3 {
				t.Errorf("milestone %+v", m)
			}
		})
	}
}

func TestAddressQuestions(t *testing.T) {
	l := start(t, nil)
	mine, other := net.IPv4(10, 0, 0, 11), net.IPv4(10, 0, 0, 99)
	tests := []struct {
		name string
		mods []dhcpv4.Modifier
		want dhcpv4.MessageType // 0: silence
	}{
		{"selecting", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 1))), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(mine))}, dhcpv4.MessageTypeAck},
		{"selecting a wrong address", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 1))), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(other))}, dhcpv4.MessageTypeNak},
		{"selecting another server", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 2))), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(mine))}, 0},
		{"init-reboot", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(mine))}, dhcpv4.MessageTypeAck},
		{"init-reboot with a wrong address", []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(other))}, dhcpv4.MessageTypeNak},
		{"renewing", []dhcpv4.Modifier{dhcpv4.WithClientIP(mine)}, dhcpv4.MessageTypeAck},
		{"renewing a wrong address", []dhcpv4.Modifier{dhcpv4.WithClientIP(other)}, dhcpv4.MessageTypeNak},
		{"neither", nil, 0},
		{"inform", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(mine)}, dhcpv4.MessageTypeAck},
		{"release", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease), dhcpv4.WithClientIP(mine)}, 0},
		{"decline", []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDecline), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(mine))}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l.t = t
			p := discover(t, machineMAC, append([]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest)}, tt.mods...)...)
			if tt.want == 0 {
				l.silent(p)
				return
			}
			r := l.ask(p)
			if r.MessageType() != tt.want || r.TransactionID != p.TransactionID {
				t.Errorf("got %s", r.Summary())
			}
			if tt.name == "inform" && (!r.YourIPAddr.IsUnspecified() || r.Options.Has(dhcpv4.OptionIPAddressLeaseTime)) {
				t.Error("INFORM was given a lease")
			}
			if tt.want == dhcpv4.MessageTypeNak && !r.IsBroadcast() {
				t.Error("NAK by a relay is not a broadcast")
			}
		})
	}
	select {
	case r := <-l.rogues:
		if r.Server != netip.MustParseAddr("10.0.0.2") || r.MAC != machineMAC {
			t.Errorf("rogue %+v", r)
		}
	case <-time.After(5 * time.Second):
		t.Error("a foreign server in a REQUEST raised no alarm")
	}
}

func TestSilence(t *testing.T) {
	expire := func(l *lab) {
		if e, ok := l.table.Lookup(machineMAC); ok {
			in := e.Intent
			in.Expires = time.Now().Add(-time.Second)
			if err := l.table.Set(in); err != nil {
				t.Fatal(err)
			}
		}
	}
	rom := class("PXEClient:Arch:00000:UNDI:002001", 0)
	tests := []struct {
		name string
		prep func(*lab)
		pkt  func(*testing.T) *dhcpv4.DHCPv4
	}{
		{"unknown client", nil, func(t *testing.T) *dhcpv4.DHCPv4 { return discover(t, pxe.MAC{2, 0, 0, 0, 0, 9}, rom) }},
		{"giaddr not allowed", nil, func(t *testing.T) *dhcpv4.DHCPv4 {
			return discover(t, machineMAC, dhcpv4.WithGatewayIP(net.IPv4(192, 0, 2, 1)))
		}},
		{"direct on a relay-only listener", nil, func(t *testing.T) *dhcpv4.DHCPv4 {
			return discover(t, machineMAC, dhcpv4.WithGatewayIP(net.IPv4zero))
		}},
		{"on another link", nil, func(t *testing.T) *dhcpv4.DHCPv4 {
			return discover(t, machineMAC, dhcpv4.WithOption(dhcpv4.OptRelayAgentInfo(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(5), []byte{10, 9, 0, 0}))))
		}},
		{"token expired", expire, func(t *testing.T) *dhcpv4.DHCPv4 { return discover(t, machineMAC, rom) }},
		{"architecture without a loader", nil, func(t *testing.T) *dhcpv4.DHCPv4 {
			return discover(t, machineMAC, class("PXEClient:Arch:00031", 31))
		}},
		{"token used up", func(l *lab) { e, _ := l.table.Lookup(machineMAC); e.Consume("n") }, func(t *testing.T) *dhcpv4.DHCPv4 { return discover(t, machineMAC, rom) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := start(t, nil)
			if tt.prep != nil {
				tt.prep(l)
			}
			l.silent(tt.pkt(t))
			if tt.name == "token used up" {
				if m := <-l.sink.got; m.Kind != pxe.KindReboot {
					t.Errorf("milestone %v", m.Kind)
				}
				if o := l.ask(discover(t, machineMAC)); o.YourIPAddr.String() != "10.0.0.11" {
					t.Error("the operating system is refused its address")
				}
			}
		})
	}
}

func TestLocalBoot(t *testing.T) {
	rom := class("PXEClient:Arch:00007:UNDI:003016", 7)
	l := start(t, nil)
	if o := l.ask(discover(t, spareMAC, rom)); o.BootFileName != "" || o.Options.Has(dhcpv4.OptionBootfileName) || o.YourIPAddr.String() != "10.0.0.12" {
		t.Errorf("offer to a machine nobody boots: %s", o.Summary())
	}
	l = start(t, func(c *dhcp.Config) { c.Decider.SilentLocal = true })
	l.silent(discover(t, spareMAC, rom))
}

func TestProxy(t *testing.T) {
	l := start(t, func(c *dhcp.Config) { c.Mode = dhcp.Proxy })
	q := discover(t, machineMAC, class("PXEClient:Arch:00007:UNDI:003016", 7))
	o := l.ask(q)
	if !o.YourIPAddr.IsUnspecified() || o.BootFileName != "snponly.efi" || o.ClassIdentifier() != "PXEClient" ||
		o.Options.Has(dhcpv4.OptionSubnetMask) || o.Options.Has(dhcpv4.OptionIPAddressLeaseTime) {
		t.Errorf("proxy offer: %s", o.Summary())
	}
	second := discover(t, machineMAC, class("PXEClient:Arch:00007:UNDI:003016", 7), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithClientIP(net.IPv4(10, 0, 0, 77)))
	if a := l.ask(second); a.MessageType() != dhcpv4.MessageTypeAck || a.BootFileName != "snponly.efi" || !a.YourIPAddr.IsUnspecified() {
		t.Errorf("answer on the second step: %s", a.Summary())
	}
	// The real server's business stays its own.
	foreign := discover(t, machineMAC, class("PXEClient:Arch:00007:UNDI:003016", 7), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 2))))
	l.send(foreign)
	q = discover(t, machineMAC, class("PXEClient:Arch:00007:UNDI:003016", 7))
	if r := l.ask(q); r.TransactionID != q.TransactionID {
		t.Error("a REQUEST to another server was answered")
	}
}

func TestRogueOffer(t *testing.T) {
	l := start(t, nil)
	o := discover(t, pxe.MAC{2, 0, 0, 0, 0, 9}, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 66))))
	o.OpCode = dhcpv4.OpcodeBootReply
	l.send(o)
	select {
	case r := <-l.rogues:
		if r.Server != netip.MustParseAddr("10.0.0.66") || r.Evidence != "OFFER" {
			t.Errorf("rogue %+v", r)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a foreign OFFER raised no alarm")
	}
}
