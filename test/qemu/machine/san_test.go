package machine_test

import (
	_ "embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/sitetest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// counter is a disk which counts in its second sector; see testdata/counter.S.
//
//go:embed testdata/counter.bin
var counter []byte

const (
	initiator = "iqn.2026-01.org.example:host-web1"
	// diskSize is more than one cylinder of 255 heads with 63 sectors: iPXE reads nothing off less.
	diskSize = 32 << 20
)

// TestBootFromSANMoves boots two machines from one volume, one after the other, with the same initiator name and
// address. The first is never turned off: its BMC might lie. The mask alone keeps it from writing.
func TestBootFromSANMoves(t *testing.T) {
	s := sitetest.New(t)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, counter, 0o600))
	must(t, os.Truncate(disk, diskSize))
	v := s.SAN(disk)
	boot := s.Serve()
	target := &ipxe.Target{Portal: netip.AddrPortFrom(s.Self, 3260), Name: sitetest.Volume, LUN: 1, Initiator: initiator}
	start := func(i int, epoch uint64) *sitetest.Running {
		in := boot.Intent(i, &pxe.Boot{ISCSI: target})
		in.Epoch = epoch
		in.NICs[0].Address = netip.MustParsePrefix("10.1.0.50/16") // the workload's
		in.NICs[0].Gateway = s.Self
		boot.Set(in)
		return s.On(i, machine.BIOS, machine.Boot{Device: machine.Network})
	}

	v.Mask(t, 1, "127.9.0.1")
	a := start(1, 1)
	s.Says(a, "disk: 0003")

	// Fenced by the mask alone: it runs, it has its address, and it tries again.
	v.Mask(t, 2)
	fenced, dials := v.Count(t), v.Dialed("127.9.0.1")
	if fenced < 3 {
		t.Fatalf("the disk says %d", fenced)
	}
	for end := time.Now().Add(sitetest.Patience); v.Dialed("127.9.0.1") < dials+2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the fenced machine does not try to come back")
		}
	}
	if n := v.Count(t); n != fenced {
		t.Errorf("the disk says %d; when it was masked it said %d", n, fenced)
	}
	must(t, a.Port.Set(vswitch.Settings{})) // its address moves

	b := start(2, 2)
	s.Says(b, "http://ipxe.org/2c0d603b") // masked: the target shows it no volume
	b.Off()
	if n := v.Count(t); n != fenced {
		t.Errorf("the disk says %d; when it was masked it said %d", n, fenced)
	}

	v.Mask(t, 3, "127.9.0.3")
	c := start(3, 3)
	s.Says(c, fmt.Sprintf("disk: %04x", fenced+1)) // nobody wrote in between
	must(t, a.Port.Set(vswitch.Settings{Access: sitetest.VLAN + 1}))
	s.Says(c, fmt.Sprintf("disk: %04x", fenced+6))
	c.Off()
	last := v.Count(t)
	sessions, err := v.Array.Sessions(t.Context())
	must(t, err)
	for _, x := range sessions {
		if x.Initiator == "127.9.0.1" {
			t.Errorf("the fenced machine has a session: %+v", x)
		}
	}
	select {
	case <-a.Ended:
		t.Fatal("the old machine is not on any more")
	default:
	}
	if n := v.Count(t); n != last {
		t.Errorf("the disk says %d and said %d, and everyone who may write is off", n, last)
	}
}
