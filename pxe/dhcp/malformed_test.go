package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"rerack.dev/rerack/pxe"
)

var (
	knownMAC = pxe.MAC{0x52, 0x54, 0, 0, 0, 1}
	loopback = netip.MustParsePrefix("127.0.0.0/8")
)

func newServer(t testing.TB, machines int, conn net.PacketConn) *Server {
	t.Helper()
	tab, err := pxe.NewTable(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	ins := make([]pxe.Intent, machines)
	for i := range ins {
		ins[i] = pxe.Intent{Machine: fmt.Sprintf("m%d", i), Run: "r/1", Epoch: 1, Hostname: "w",
			NICs: []pxe.NIC{{MAC: nthMAC(i), Address: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 16),
				Gateway: netip.MustParseAddr("10.1.0.254"), DNS: []netip.Addr{netip.MustParseAddr("10.1.0.53")}}},
			Boot: &pxe.Boot{LocalDisk: true}, Expires: time.Now().Add(time.Hour)}
	}
	if err := tab.Replace(ins); err != nil {
		t.Fatal(err)
	}
	if conn == nil {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conn = c
	}
	s, err := New(Config{Decider: &pxe.Decider{Table: tab, BaseURL: "http://10.1.0.1:8080"}, Rate: 1 << 20, Burst: 1 << 20,
		Listeners: []Listener{{Name: "lo", Conn: conn, ServerID: netip.MustParseAddr("10.1.0.1"), Relays: []netip.Prefix{loopback}}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func nthMAC(i int) pxe.MAC {
	return pxe.MAC{0x52, 0x54, 0, byte((i + 1) >> 16), byte((i + 1) >> 8), byte(i + 1)}
}

// question is a well-formed message as relayed by 127.0.0.1.
func question(kind MessageType, m pxe.MAC, extra func([]byte) []byte) []byte {
	b := AppendHeader(nil, &Header{Op: BootRequest, Hops: 1, XID: 0x12345678, Flags: FlagBroadcast, GIAddr: netip.MustParseAddr("127.0.0.1"), MAC: m})
	b = AppendOption(b, OptMessageType, byte(kind))
	b = AppendString(b, OptClass, "PXEClient:Arch:00007:UNDI:003016")
	b = AppendOption(b, OptArch, 0, 7)
	b = AppendOption(b, OptUUID, make([]byte, 17)...)
	b = AppendOption(b, OptParams, 1, 3, 6, 12, 43, 60, 66, 67)
	b = AppendOption(b, OptClientID, append([]byte{1}, m[:]...)...)
	if extra != nil {
		b = extra(b)
	}
	info := AppendString(nil, RelayCircuitID, "Ethernet1/7")
	info = AppendAddr(info, RelayLink, netip.MustParseAddr("10.1.0.0"))
	return Finish(AppendOption(b, OptRelay, AppendOption(info, RelaySourcePort)...))
}

func seeds() [][]byte {
	mine := netip.MustParseAddr("10.1.0.0")
	return [][]byte{
		question(Discover, knownMAC, nil),
		question(Request, knownMAC, func(b []byte) []byte {
			return AppendAddr(AppendAddr(b, OptRequestedIP, mine), OptServerID, netip.MustParseAddr("10.1.0.1"))
		}),
		question(Request, knownMAC, func(b []byte) []byte { return AppendAddr(b, OptRequestedIP, mine) }),
		question(Inform, knownMAC, nil), question(Release, knownMAC, nil), question(Decline, knownMAC, nil),
		question(Discover, knownMAC, func(b []byte) []byte { return AppendString(b, OptUserClass, "iPXE") }),
		question(Discover, knownMAC, func(b []byte) []byte { return AppendOption(b, 200, make([]byte, 400)...) }),
		question(Discover, pxe.MAC{2, 9, 9, 9, 9, 9}, nil),
	}
}

// sane holds what must be true of every answer, whatever the question was.
func sane(t *testing.T, in, out []byte, to netip.AddrPort) {
	t.Helper()
	if out == nil {
		return
	}
	if len(out) < minSize || len(out) > MaxMessage {
		t.Fatalf("answer of %d bytes", len(out))
	}
	r, err := dhcpv4.FromBytes(out)
	if err != nil {
		t.Fatalf("answer is not DHCP: %v", err)
	}
	var q Packet
	if err := q.Parse(in); err != nil {
		t.Fatalf("a malformed message was answered: %v", err)
	}
	if r.OpCode != dhcpv4.OpcodeBootReply || !bytes.Equal(r.ClientHWAddr, q.MAC[:]) || !bytes.Equal(r.TransactionID[:], in[4:8]) {
		t.Fatalf("answer to another client: %s", r.Summary())
	}
	switch r.MessageType() {
	case dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak:
	default:
		t.Fatalf("answer of type %v", r.MessageType())
	}
	if a := r.YourIPAddr; !a.IsUnspecified() && a.String() != "10.1.0.0" {
		t.Fatalf("address of another machine: %v", a)
	}
	if !to.Addr().IsLoopback() {
		t.Fatalf("answer sent to %v", to)
	}
}

// TestMalformed sends 500 messages mutated by a fixed seed, and holds ours and the third-party reading
// of them against each other.
func TestMalformed(t *testing.T) {
	s := newServer(t, 1, nil)
	src := netip.MustParseAddrPort("127.0.0.1:4067")
	rnd := rand.New(rand.NewPCG(2131, 2132))
	var p Packet
	answered := 0
	for i := range 500 {
		in := mutate(rnd, seeds())
		out, to := s.answer(&p, in, src, s.links[0], make([]byte, 0, MaxMessage))
		sane(t, in, out, to)
		if out != nil {
			answered++
		}
		if n := s.Stats().Panics; n > 0 {
			t.Fatalf("message %d set off a panic: %x", i, in)
		}
	}
	st := s.Stats()
	if st.Malformed < 100 || answered < 25 {
		t.Errorf("mutations are not varied: %d malformed, %d answered of 500", st.Malformed, answered)
	}
	out, _ := s.answer(&p, seeds()[0], src, s.links[0], nil)
	if out == nil {
		t.Error("the server does not answer any more")
	}
}

func mutate(r *rand.Rand, seeds [][]byte) []byte {
	b := bytes.Clone(seeds[r.IntN(len(seeds))])
	for range 1 + r.IntN(4) {
		switch r.IntN(8) {
		case 0:
			b = b[:r.IntN(len(b)+1)]
		case 1:
			b = append(b, make([]byte, r.IntN(1500))...)
		case 2: // in the options
			if len(b) > optionsAt {
				b[optionsAt+r.IntN(len(b)-optionsAt)] = byte(r.Uint32())
			}
		case 3:
			if len(b) > 0 {
				b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			}
		case 4: // an option that says it is longer than the message
			b = append(b[:min(len(b), optionsAt+3)], OptRelay, 255, 1, 200)
		case 5: // a huge relay option in fragments
			if len(b) > optionsAt {
				b = append(AppendOption(b[:optionsAt:optionsAt], OptRelay, make([]byte, r.IntN(900))...), b[optionsAt:]...)
			}
		case 6:
			if len(b) > 40 {
				for i := range 4 {
					b[24+i] = byte(r.Uint32()) // giaddr
				}
			}
		case 7:
			if len(b) > optionsAt+3 {
				b[optionsAt+2] = byte(r.Uint32()) // message type
			}
		}
		if len(b) == 0 {
			b = []byte{1}
		}
	}
	return b
}

func FuzzHandle(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
	s := newServer(f, 1, nil)
	src := netip.MustParseAddrPort("127.0.0.1:4067")
	f.Fuzz(func(t *testing.T, in []byte) {
		var p Packet
		out, to := s.answer(&p, in, src, s.links[0], make([]byte, 0, MaxMessage))
		sane(t, in, out, to)
		if s.Stats().Panics > 0 {
			t.Fatal("panic")
		}
	})
}

// FuzzAgainstLibrary reads what both accept the same way.
func FuzzAgainstLibrary(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var p Packet
		if p.Parse(in) != nil {
			return
		}
		q, err := dhcpv4.FromBytes(in)
		if err != nil {
			return // it wants an end option, we do not
		}
		for code := 1; code < 255; code++ {
			if got, want := p.Option(byte(code)), q.Options.Get(dhcpv4.GenericOptionCode(code)); !bytes.Equal(got, want) {
				t.Fatalf("option %d: %x, library %x", code, got, want)
			}
		}
		if p.GIAddr.String() != q.GatewayIPAddr.String() || p.CIAddr.String() != q.ClientIPAddr.String() {
			t.Fatal("addresses differ")
		}
	})
}

// TestFlood is H33: 10,000 DISCOVERs a second of unknown clients, and known ones still get answers.
func TestFlood(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, 50, conn)
	ctx, cancel := context.WithCancel(context.Background())
	var server, wg sync.WaitGroup
	server.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer func() { cancel(); server.Wait() }()
	to := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	flood, stop := context.WithCancel(ctx)
	wg.Go(func() { // 20 every 2 ms
		c, err := net.Dial("udp4", to.String())
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for i := 0; flood.Err() == nil; i++ {
			<-tick.C
			for j := range 20 {
				_, _ = c.Write(question(Discover, pxe.MAC{2, 1, byte(i >> 16), byte(i >> 8), byte(i), byte(j)}, nil)) // a full buffer is the point
			}
		}
	})
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var took []time.Duration
	buf := make([]byte, MaxMessage)
	for i := range 200 {
		at := time.Now()
		if _, err := c.WriteToUDPAddrPort(question(Discover, nthMAC(i%50), nil), to); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(at.Add(time.Second))
		if _, err := c.Read(buf); err == nil {
			took = append(took, time.Since(at))
		}
	}
	grown := int64(heap()) - int64(before)
	stop()
	wg.Wait()
	if len(took) < 198 { // p99
		t.Fatalf("only %d of 200 known clients got an answer in time: %+v", len(took), s.Stats())
	}
	slices.Sort(took)
	t.Logf("p50 %v, p99 %v, heap %+d KiB, %+v", took[len(took)/2], took[197], grown>>10, s.Stats())
	if st := s.Stats(); st.Unknown == 0 {
		t.Errorf("no flood was seen: %+v", st)
	}
	if grown > 16<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
}

func TestQueueDropsTheOldest(t *testing.T) {
	q := newQueue(2)
	for i := range 5 {
		j := q.get()
		j.n = i
		as := other
		if i == 0 {
			as = bootOther
		}
		q.push(j, as)
	}
	for _, want := range []int{0, 3, 4} {
		if j := q.pop(); j.n != want {
			t.Errorf("got job %d, want %d", j.n, want)
		}
	}
	if q.dropped.Load() != 2 {
		t.Errorf("%d dropped", q.dropped.Load())
	}
}

func TestLimiter(t *testing.T) {
	l := limiter{start: time.Now(), every: time.Hour, burst: 5 * time.Hour}
	n := 0
	for range 100 {
		if l.allow(knownMAC) {
			n++
		}
	}
	if n != 5 || !l.allow(nthMAC(7)) {
		t.Errorf("%d of a burst of 5 allowed, or another client shut out", n)
	}
}

// BenchmarkDORA handles one DISCOVER and one REQUEST among 10,000 reservations.
func BenchmarkDORA(b *testing.B) {
	s := newServer(b, 10000, nil)
	src := netip.MustParseAddrPort("127.0.0.1:4067")
	type pair struct{ d, r []byte }
	all := make([]pair, 10000)
	for i := range all {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		all[i] = pair{question(Discover, nthMAC(i), nil), question(Request, nthMAC(i), func(b []byte) []byte {
			return AppendAddr(AppendAddr(b, OptRequestedIP, a), OptServerID, netip.MustParseAddr("10.1.0.1"))
		})}
	}
	var p Packet
	out := make([]byte, 0, MaxMessage)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		for _, m := range [][]byte{all[i].d, all[i].r} {
			if r, _ := s.answer(&p, m, src, s.links[0], out); r == nil {
				b.Fatal("no answer")
			}
		}
		i = (i + 1) % len(all)
	}
}

// BenchmarkLibrary is the least a server on the library does for the same two messages: read and write.
func BenchmarkLibrary(b *testing.B) {
	d := question(Discover, knownMAC, nil)
	b.ReportAllocs()
	for b.Loop() {
		for range 2 {
			q, err := dhcpv4.FromBytes(d)
			if err != nil {
				b.Fatal(err)
			}
			r, err := dhcpv4.NewReplyFromRequest(q, dhcpv4.WithYourIP(net.IPv4(10, 1, 0, 1)), dhcpv4.WithServerIP(net.IPv4(10, 1, 0, 1)),
				dhcpv4.WithNetmask(net.CIDRMask(16, 32)), dhcpv4.WithRouter(net.IPv4(10, 1, 0, 254)), dhcpv4.WithLeaseTime(3600))
			if err != nil {
				b.Fatal(err)
			}
			r.ToBytes()
		}
	}
}
