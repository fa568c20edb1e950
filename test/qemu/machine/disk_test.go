package machine_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"rerack.dev/rerack/internal/secret"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/bootserver"
	"rerack.dev/rerack/pxe/ipxe"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/qemu/qemutest"
	"rerack.dev/rerack/test/qemu/sitetest"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// installed makes a disk with a system of its own.
func installed(t *testing.T, workload string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk")
	kernel, initrd, err := image.BuildForDisk(qemutest.Sources(t))
	must(t, err)
	loader, err := image.FindLoader(qemutest.Roots(t)...)
	must(t, err)
	must(t, loader.WriteDisk(t.Context(), path, kernel, initrd, quietly+"lab.disk=yes rerack.workload="+workload))
	t.Logf("kernel %d KiB, initial RAM disk %d KiB", len(kernel)>>10, len(initrd)>>10)
	return path
}

// last is the newest record on a disk.
func last(t *testing.T, path string) (int, string) {
	t.Helper()
	n, by, err := image.LastRecord(path)
	must(t, err)
	return n, by
}

// TestASystemOnALUNMoves boots Linux from a LUN on one machine, with CHAP, fences that by the mask alone while it
// runs on, and boots it on another with the same initiator name and address. Then the target gets another secret.
func TestASystemOnALUNMoves(t *testing.T) {
	s := sitetest.New(t)
	disk := installed(t, "db1")
	v := s.SAN(disk)
	const user, password = "db1", "0123456789abcdef"
	v.Login(user, password)
	boot := s.Serve(func(c *bootserver.Config) {
		c.CHAP = func(context.Context, string) (ipxe.Login, error) {
			return ipxe.Login{User: user, Secret: secret.New(password)}, nil
		}
	})
	target := &ipxe.Target{Portal: netip.AddrPortFrom(s.Self, 3260), Name: sitetest.Volume, LUN: 1, Initiator: initiator}
	start := func(i int, epoch uint64) *sitetest.Running {
		in := boot.Intent(i, &pxe.Boot{ISCSI: target, CHAP: "san/db1"})
		in.Epoch = epoch
		in.NICs[0].Address = netip.MustParsePrefix("10.1.0.50/16") // the workload's
		in.NICs[0].Gateway = s.Self
		boot.Set(in)
		return s.On(i, machine.BIOS, machine.Boot{Device: machine.Network})
	}
	addressOf := func(i int) string { return sitetest.StorageAddress(vswitch.MAC(pxetest.MAC(i))) }

	v.Mask(t, 1, addressOf(1))
	a := start(1, 1)
	s.Says(a, "rerack: disk /dev/sda: found record 0")
	s.Says(a, "rerack: serving")
	v.Mask(t, 2)
	fenced, by := last(t, disk)
	if want := "db1 " + pxetest.MAC(1).String(); fenced < 1 || by != want {
		t.Fatalf("record %d by %s", fenced, by)
	}
	must(t, a.Port.Set(vswitch.Settings{})) // its address moves; it runs on

	b := start(2, 2)
	s.Says(b, "http://ipxe.org/2c0d603b") // masked: the target shows it no volume
	b.Off()
	v.Mask(t, 3, addressOf(3))
	c := start(3, 3)
	s.Says(c, fmt.Sprintf("rerack: disk /dev/sda: found record %d", fenced))
	s.Says(c, "rerack: serving")
	must(t, a.Port.Set(vswitch.Settings{Access: sitetest.VLAN + 1}))
	c.Off()
	n, by := last(t, disk)
	if want := "db1 " + pxetest.MAC(3).String(); n <= fenced || by != want {
		t.Errorf("record %d by %s, and %d was the last of the one before", n, by, fenced)
	}
	select {
	case <-a.Ended:
		t.Fatal("the old machine is not on any more")
	default:
	}

	v.Login(user, "another-secret-16")
	v.Mask(t, 4, addressOf(4))
	d := start(4, 4)
	s.Says(d, "http://ipxe.org/410d613c") // CHAP refused
	d.Off()
	if now, _ := last(t, disk); now != n {
		t.Errorf("record %d, and everyone who may write is off since %d", now, n)
	}
}

// TestTheSystemOnADiskOfItsOwn boots the same kind of disk from a machine's own controller.
func TestTheSystemOnADiskOfItsOwn(t *testing.T) {
	s := sitetest.New(t)
	disk := installed(t, "db1")
	boot := s.Serve()
	boot.Set(boot.Intent(1, nil))
	r := s.On(1, machine.BIOS, machine.Boot{Device: machine.Disk}, disk)
	s.Says(r, "found record 0")
	s.Says(r, "rerack: serving")
	r.Off()
	if n, _ := last(t, disk); n < 1 {
		t.Errorf("record %d", n)
	}
}
