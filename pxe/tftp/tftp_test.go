package tftp_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/tftp"
)

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

// content is reproducible and does not repeat within a block.
func content(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8(sha256.Sum256([]byte("boot file")))
	_, _ = r.Read(b)
	return b
}

func files(m map[string][]byte) tftp.Files {
	return func(name string, _ netip.AddrPort) (tftp.File, error) {
		b, ok := m[name]
		if !ok {
			return nil, fault.New(fault.NotFound, name)
		}
		return memory{bytes.NewReader(b)}, nil
	}
}

func serve(t testing.TB, m map[string][]byte, change func(*tftp.Config)) (*tftp.Server, netip.AddrPort) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := tftp.Config{Conn: conn, Files: files(m), PerSource: 1000}
	if change != nil {
		change(&cfg)
	}
	s, err := tftp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s, conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestSizesAndOptions(t *testing.T) {
	sizes := []int{0, 1, 511, 512, 513, 1467, 1468, 1469, 16 * 1468, 1 << 20}
	m := map[string][]byte{}
	for _, n := range sizes {
		m[fmt.Sprint(n)] = content(n)
	}
	_, addr := serve(t, m, nil)
	for _, o := range []tftp.Client{{}, {Block: 1468}, {Block: 1468, Window: 16}, {Block: 1468, Window: 64}, {Block: 8, Window: 3}, {Block: 9000, Window: 4}} {
		for _, n := range sizes {
			if o.Block == 8 && n > 2000 {
				continue
			}
			t.Run(fmt.Sprintf("blk=%d win=%d size=%d", o.Block, o.Window, n), func(t *testing.T) {
				var got bytes.Buffer
				k, err := o.Get(t.Context(), addr, fmt.Sprint(n), &got)
				if err != nil || k != int64(n) || !bytes.Equal(got.Bytes(), m[fmt.Sprint(n)]) {
					t.Fatalf("got %d bytes, %v", k, err)
				}
			})
		}
	}
}

// TestBlockNumberWraps fetches a file of more than 65,535 blocks.
func TestBlockNumberWraps(t *testing.T) {
	b := content(70000 * 8)
	_, addr := serve(t, map[string][]byte{"big": b}, nil)
	var got bytes.Buffer
	if _, err := (tftp.Client{Block: 8, Window: 64}).Get(t.Context(), addr, "big", &got); err != nil || !bytes.Equal(got.Bytes(), b) {
		t.Fatalf("%d of %d bytes, %v", got.Len(), len(b), err)
	}
}

// lossy drops, repeats and reorders the datagrams written to it, by a fixed seed.
type lossy struct {
	net.PacketConn
	mu   sync.Mutex
	rnd  *rand.Rand
	loss float64
	held []byte
	to   net.Addr
}

func (l *lossy) WriteTo(b []byte, to net.Addr) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch x := l.rnd.Float64(); {
	case x < l.loss:
		return len(b), nil
	case x < l.loss+0.03: // twice
		if _, err := l.PacketConn.WriteTo(b, to); err != nil {
			return 0, err
		}
	case x < l.loss+0.06 && l.held == nil: // after the next one
		l.held, l.to = bytes.Clone(b), to
		return len(b), nil
	}
	n, err := l.PacketConn.WriteTo(b, to)
	if l.held != nil && err == nil {
		_, err = l.PacketConn.WriteTo(l.held, l.to)
		l.held = nil
	}
	return n, err
}

func TestLossReorderDuplicates(t *testing.T) {
	b := content(256 << 10)
	for _, loss := range []float64{0.01, 0.05, 0.20} {
		for _, window := range []int{1, 16} {
			t.Run(fmt.Sprintf("loss=%v window=%d", loss, window), func(t *testing.T) {
				t.Parallel()
				var seed atomic.Uint64
				listen := func(network, address string) (net.PacketConn, error) {
					c, err := net.ListenPacket(network, address)
					n := seed.Add(1)
					return &lossy{PacketConn: c, rnd: rand.New(rand.NewPCG(n, uint64(window))), loss: loss}, err
				}
				s, addr := serve(t, map[string][]byte{"f": b}, func(c *tftp.Config) {
					c.ListenPacket, c.Timeout, c.Tries = listen, 50*time.Millisecond, 40
				})
				lis := func(network, address string) (net.PacketConn, error) {
					c, err := net.ListenPacket(network, address)
					return &lossy{PacketConn: c, rnd: rand.New(rand.NewPCG(99, uint64(window))), loss: loss}, err
				}
				var got bytes.Buffer
				_, err := (tftp.Client{ListenPacket: lis, Block: 1468, Window: window, Timeout: 100 * time.Millisecond, Tries: 40}).Get(t.Context(), addr, "f", &got)
				if err != nil || !bytes.Equal(got.Bytes(), b) {
					t.Fatalf("%d of %d bytes, %v, %+v", got.Len(), len(b), err, s.Stats())
				}
			})
		}
	}
}

// TestSorcerersApprentice acknowledges every block twice: each must come once only.
func TestSorcerersApprentice(t *testing.T) {
	b := content(20 * 512)
	_, addr := serve(t, map[string][]byte{"f": b}, nil)
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteToUDPAddrPort([]byte("\x00\x01f\x00octet\x00"), addr); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 600)
	for want := byte(1); want <= 21; want++ {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if buf[1] != 3 || buf[3] != want || n > 516 {
			t.Fatalf("got block %d, want %d", buf[3], want)
		}
		for range 2 {
			if _, err := c.WriteToUDPAddrPort([]byte{0, 4, 0, want}, from); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// raw sends one datagram and returns the answer, or nil if the next good request is answered first.
func raw(t *testing.T, addr netip.AddrPort, req []byte) []byte {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteToUDPAddrPort(req, addr); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("no answer to %q: %v", req, err)
	}
	return buf[:n]
}

func TestRefusals(t *testing.T) {
	s, addr := serve(t, map[string][]byte{"snponly.efi": content(100)}, nil)
	tests := []struct {
		name string
		req  string
		code byte
	}{
		{"write", "\x00\x02snponly.efi\x00octet\x00", 2},
		{"netascii", "\x00\x01snponly.efi\x00netascii\x00", 4},
		{"mail", "\x00\x01snponly.efi\x00mail\x00", 4},
		{"unknown", "\x00\x01other\x00octet\x00", 1},
		{"CVE-2006-1951 ....//", "\x00\x01....//....//etc/passwd\x00octet\x00", 1},
		{"CVE-2002-1209 ..\\", "\x00\x01..\\..\\boot.ini\x00octet\x00", 1},
		{"CVE-2008-1620 ...", "\x00\x01.../etc/passwd\x00octet\x00", 1},
		{"dot dot", "\x00\x01../../etc/passwd\x00octet\x00", 1},
		{"absolute", "\x00\x01/etc/passwd\x00octet\x00", 1},
		{"two slashes", "\x00\x01//snponly.efi\x00octet\x00", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if b := raw(t, addr, []byte(tt.req)); b[1] != 5 || b[3] != tt.code {
				t.Errorf("answer % x", b[:4])
			}
		})
	}
	before := s.Stats().Malformed
	bad := []string{"", "\x00", "\x00\x01", "\x00\x01f\x00octet", "\x00\x01\x00octet\x00", "\x00\x01f\x00", "\x00\x09f\x00octet\x00",
		"\x00\x01f\noctet\x00octet\x00", "\x00\x01" + string(bytes.Repeat([]byte("a"), 129)) + "\x00octet\x00",
		"\x00\x01f\x00octet\x00blksize\x00", "\x00\x01f\x00octet\x00blksize\x008\x00blksize\x009\x00",
		"\x00\x01f\x00octet\x00" + string(bytes.Repeat([]byte("k\x00v\x00"), 9))}
	c, err := net.Dial("udp4", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, b := range bad {
		if _, err := c.Write([]byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	if b := raw(t, addr, []byte("\x00\x01/snponly.efi\x00OCTET\x00")); b[1] != 3 {
		t.Errorf("a leading slash and capitals: answer % x", b[:4])
	}
	if n := s.Stats().Malformed - before; n != uint64(len(bad)) {
		t.Errorf("%d of %d malformed requests counted", n, len(bad))
	}
}

func TestOptionRanges(t *testing.T) {
	_, addr := serve(t, map[string][]byte{"f": content(100)}, nil)
	tests := []struct{ ask, grant string }{
		{"blksize\x001468\x00", "blksize\x001468\x00"},
		{"BLKSIZE\x0065464\x00", "blksize\x001468\x00"},
		{"blksize\x007\x00tsize\x000\x00", "tsize\x00100\x00"},
		{"windowsize\x0016\x00", "windowsize\x0016\x00"},
		{"windowsize\x0065535\x00", "windowsize\x0064\x00"},
		{"timeout\x003\x00", "timeout\x003\x00"},
		{"timeout\x00256\x00tsize\x000\x00multicast\x00\x00", "tsize\x00100\x00"},
	}
	for _, tt := range tests {
		b := raw(t, addr, []byte("\x00\x01f\x00octet\x00"+tt.ask))
		if b[1] != 6 || string(b[2:]) != tt.grant {
			t.Errorf("asked %q: got %q, want %q", tt.ask, b, tt.grant)
		}
	}
	if b := raw(t, addr, []byte("\x00\x01f\x00octet\x00blksize\x00x\x00")); b[1] != 3 {
		t.Errorf("nothing to grant: want DATA, got % x", b[:4])
	}
}

func TestLimits(t *testing.T) {
	s, addr := serve(t, map[string][]byte{"f": content(4096)}, func(c *tftp.Config) { c.PerSource, c.Tries, c.Timeout = 1, 3, time.Minute })
	if b := raw(t, addr, []byte("\x00\x01f\x00octet\x00")); b[1] != 3 { // left open
		t.Fatalf("answer % x", b)
	}
	_, err := (tftp.Client{Timeout: 20 * time.Millisecond, Tries: 3}).Get(t.Context(), addr, "f", &bytes.Buffer{})
	if !fault.Is(err, fault.Timeout) || s.Stats().Limited == 0 {
		t.Errorf("second transfer of one source: %v, %+v", err, s.Stats())
	}
}

func TestClientErrors(t *testing.T) {
	_, addr := serve(t, map[string][]byte{"f": content(5000)}, nil)
	if _, err := (tftp.Client{}).Get(t.Context(), addr, "none", &bytes.Buffer{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := (tftp.Client{MaxSize: 4999}).Get(t.Context(), addr, "f", &bytes.Buffer{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("too large: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (tftp.Client{}).Get(ctx, addr, "f", &bytes.Buffer{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestHundredClients(t *testing.T) {
	b := content(1 << 20)
	s, addr := serve(t, map[string][]byte{"f": b}, nil)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			h := sha256.New()
			if _, err := (tftp.Client{Block: 1468, Window: 16, Tries: 20}).Get(t.Context(), addr, "f", h); err != nil {
				t.Error(err)
			} else if sum := sha256.Sum256(b); !bytes.Equal(h.Sum(nil), sum[:]) {
				t.Error("content differs")
			}
		})
	}
	wg.Wait()
	t.Logf("%+v", s.Stats())
}

func BenchmarkGet1MiB(b *testing.B) {
	data := content(1 << 20)
	_, addr := serve(b, map[string][]byte{"f": data}, nil)
	for _, w := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("window=%d", w), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := (tftp.Client{Block: 1468, Window: w}).Get(b.Context(), addr, "f", &bytes.Buffer{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
