package sitetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/tgt"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
	"rerack.dev/rerack/test/qemu/gateway"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// Volume is the array's only one.
const Volume = "iqn.2026-01.org.example:boot"

// SAN is a real tgtd with one volume, and the way to it from the machines' network: each machine comes from an
// address of its own, which the array's access list knows it by, whatever address its workload has.
type SAN struct {
	Array  *tgt.Array
	daemon *maskingtest.Tgtd
	Disk   string // the volume's file

	mu    sync.Mutex
	dials map[string]int // by machine
}

// SAN starts an array whose volume is on this disk, masked to nobody.
func (s *Site) SAN(disk string) *SAN {
	t := s.t
	t.Helper()
	d := maskingtest.StartTgtd(t)
	v := &SAN{dials: map[string]int{}, Disk: disk, daemon: d}
	d.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.New, TID: 1, Params: "targetname=" + Volume})
	d.Must(tgtadm.Request{Mode: tgtadm.Device, Op: tgtadm.New, TID: 1, LUN: 1, Params: "path=" + v.Disk})
	var err error
	v.Array, err = tgt.New(tgt.Config{Socket: d.Socket, LoginWindow: 10 * time.Millisecond})
	must(t, err)
	l, err := s.Host.Listen(netip.AddrPortFrom(s.Self, 3260))
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		gateway.ServeTCP(ctx, l, func(ctx context.Context, from net.Addr) (net.Conn, error) {
			mac, ok := s.Host.EthernetOf(from.(*net.TCPAddr).AddrPort().Addr())
			if !ok {
				return nil, &fault.Error{Kind: fault.NotFound, Where: from.String(), What: "find its machine"}
			}
			source := StorageAddress(mac)
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

// StorageAddress is where the array sees a machine come from.
func StorageAddress(mac vswitch.MAC) string { return fmt.Sprintf("127.9.0.%d", mac[5]) }

// Login makes the target ask for a CHAP user and secret, these and no others.
func (v *SAN) Login(user, secret string) {
	_, _ = v.daemon.Try(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.Delete, Params: "user=" + user}) // there may be none
	v.daemon.Must(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.New, Params: "user=" + user + ",password=" + secret})
	v.daemon.Must(tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.Bind, TID: 1, Params: "user=" + user})
}

// Mask gives the volume to the machines named and to nobody else, whose sessions it ends.
func (v *SAN) Mask(t testing.TB, epoch uint64, hosts ...string) {
	t.Helper()
	_, err := v.Array.Apply(t.Context(), driver.MaskChange{Owner: "r/1", Masks: []driver.Mask{{Volume: Volume, Initiators: hosts, Epoch: epoch}}})
	must(t, err)
}

// Dialed is how often a machine has connected.
func (v *SAN) Dialed(host string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.dials[host]
}

// Count is what stands on a disk with testdata/counter.S of package machine.
func (v *SAN) Count(t testing.TB) uint16 {
	t.Helper()
	b, err := os.ReadFile(v.Disk)
	must(t, err)
	return binary.LittleEndian.Uint16(b[512:])
}
