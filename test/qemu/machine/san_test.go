package machine_test

import (
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/tgt"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
	"rerack.dev/rerack/test/qemu/gateway"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// counter is a disk which counts in its second sector; see testdata/counter.S.
//
//go:embed testdata/counter.bin
var counter []byte

const (
	volume    = "iqn.2026-01.org.example:boot"
	initiator = "iqn.2026-01.org.example:host-web1"
	// diskSize is more than one cylinder of 255 heads with 63 sectors: iPXE reads nothing off less.
	diskSize = 32 << 20
)

// san is a real tgtd with one volume, and the way to it from the machines' network: each machine comes from an
// address of its own, which the array's access list knows it by, whatever address its workload has.
type san struct {
	array  *tgt.Array
	daemon *maskingtest.Tgtd
	disk   string

	mu    sync.Mutex
	dials map[string]int // by machine
}

func (s *site) san(disk string) *san {
	t := s.t
	t.Helper()
	d := maskingtest.StartTgtd(t)
	v := &san{dials: map[string]int{}, disk: disk, daemon: d}
	d.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.New, TID: 1, Params: "targetname=" + volume})
	d.Must(tgtadm.Request{Mode: tgtadm.Device, Op: tgtadm.New, TID: 1, LUN: 1, Params: "path=" + v.disk})
	var err error
	v.array, err = tgt.New(tgt.Config{Socket: d.Socket, LoginWindow: 10 * time.Millisecond})
	must(t, err)
	l, err := s.host.Listen(netip.AddrPortFrom(s.self, 3260))
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		gateway.ServeTCP(ctx, l, func(ctx context.Context, from net.Addr) (net.Conn, error) {
			mac, ok := s.host.EthernetOf(from.(*net.TCPAddr).AddrPort().Addr())
			if !ok {
				return nil, &fault.Error{Kind: fault.NotFound, Where: from.String(), What: "find its machine"}
			}
			source := storageAddress(mac)
			v.mu.Lock()
			v.dials[source]++
			v.mu.Unlock()
			n := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
			return n.DialContext(ctx, "tcp4", d.Portal)
		}, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		cancel()
		must(t, l.Close())
		<-done
	})
	return v
}

func storageAddress(mac vswitch.MAC) string { return fmt.Sprintf("127.9.0.%d", mac[5]) }

// login makes the target ask for a CHAP user and secret, these and no others.
func (v *san) login(user, secret string) {
	_, _ = v.daemon.Try(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.Delete, Params: "user=" + user}) // there may be none
	v.daemon.Must(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.New, Params: "user=" + user + ",password=" + secret})
	v.daemon.Must(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.Bind, TID: 1, Params: "user=" + user})
}

// mask gives the volume to the machines named and to nobody else, whose sessions it ends.
func (v *san) mask(t *testing.T, epoch uint64, hosts ...string) {
	t.Helper()
	_, err := v.array.Apply(t.Context(), driver.MaskChange{Owner: "r/1", Masks: []driver.Mask{{Volume: volume, Initiators: hosts, Epoch: epoch}}})
	must(t, err)
}

// dialed is how often a machine has connected.
func (v *san) dialed(host string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.dials[host]
}

// count is what stands on the disk.
func (v *san) count(t *testing.T) uint16 {
	t.Helper()
	b, err := os.ReadFile(v.disk)
	must(t, err)
	return binary.LittleEndian.Uint16(b[512:])
}

// TestBootFromSANMoves boots two machines from one volume, one after the other, with the same initiator name and
// address. The first is never turned off: its BMC might lie. The mask alone keeps it from writing.
func TestBootFromSANMoves(t *testing.T) {
	s := newSite(t)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, counter, 0o600))
	must(t, os.Truncate(disk, diskSize))
	v := s.san(disk)
	boot := s.serve()
	target := &ipxe.Target{Portal: netip.AddrPortFrom(s.self, 3260), Name: volume, LUN: 1, Initiator: initiator}
	start := func(i int, epoch uint64) *running {
		in := boot.Intent(i, &pxe.Boot{ISCSI: target})
		in.Epoch = epoch
		in.NICs[0].Address = netip.MustParsePrefix("10.1.0.50/16") // the workload's
		in.NICs[0].Gateway = s.self
		boot.Set(in)
		return s.on(i, machine.BIOS, machine.Boot{Device: machine.Network})
	}

	v.mask(t, 1, "127.9.0.1")
	a := start(1, 1)
	s.says(a, "disk: 0003")

	// Fenced by the mask alone: it runs, it has its address, and it tries again.
	v.mask(t, 2)
	fenced, dials := v.count(t), v.dialed("127.9.0.1")
	if fenced < 3 {
		t.Fatalf("the disk says %d", fenced)
	}
	for end := time.Now().Add(patience); v.dialed("127.9.0.1") < dials+2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the fenced machine does not try to come back")
		}
	}
	if n := v.count(t); n != fenced {
		t.Errorf("the disk says %d; when it was masked it said %d", n, fenced)
	}
	must(t, a.port.Set(vswitch.Settings{})) // its address moves

	b := start(2, 2)
	s.says(b, "http://ipxe.org/2c0d603b") // masked: the target shows it no volume
	b.off()
	if n := v.count(t); n != fenced {
		t.Errorf("the disk says %d; when it was masked it said %d", n, fenced)
	}

	v.mask(t, 3, "127.9.0.3")
	c := start(3, 3)
	s.says(c, fmt.Sprintf("disk: %04x", fenced+1)) // nobody wrote in between
	must(t, a.port.Set(vswitch.Settings{Access: vlan + 1}))
	s.says(c, fmt.Sprintf("disk: %04x", fenced+6))
	c.off()
	last := v.count(t)
	sessions, err := v.array.Sessions(t.Context())
	must(t, err)
	for _, x := range sessions {
		if x.Initiator == "127.9.0.1" {
			t.Errorf("the fenced machine has a session: %+v", x)
		}
	}
	select {
	case err := <-a.ended:
		t.Fatalf("the old machine is not on any more: %v", err)
	default:
	}
	if n := v.count(t); n != last {
		t.Errorf("the disk says %d and said %d, and everyone who may write is off", n, last)
	}
}
