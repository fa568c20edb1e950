package qemu_test

import (
	"os"
	"path/filepath"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/sanzoning/maskingtest"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

const target = "iqn.2026-01.org.example:db1"

// Every machine is a real QEMU.
func TestContract(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Rig { return newRig(t).contract() })
}

// whole has everything that there can be: it has to, for QEMU logs in to each volume before it runs.
func (r *rig) whole(t *testing.T) driver.Spec {
	san := maskingtest.StartTgtd(t)
	san.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.New, TID: 1, Params: "targetname=" + target})
	san.Must(tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: 1, Params: "initiator-address=ALL"})
	s := hypervisortest.Spec("everything-1", 1, 1<<63+5)
	s.NICs = []driver.NIC{{MAC: "02:00:00:00:00:02", VLAN: 4094}, {MAC: "02:00:00:00:00:01", VLAN: 1}, {MAC: "fe:ff:ff:ff:ff:ff", VLAN: 120}}
	for i, name := range []string{"root", "data", "log", "more", "still-more", "much", "last"} {
		disk := filepath.Join(t.TempDir(), name)
		must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
		san.Must(tgtadm.Request{Mode: tgtadm.Device, Op: tgtadm.New, TID: 1, LUN: uint64(i) + 1, Params: "path=" + disk})
		s.Disks = append(s.Disks, driver.Disk{Volume: name, Boot: i == 0,
			ISCSI: &driver.ISCSI{Portal: san.Portal, Target: target, LUN: i + 1, Initiator: "iqn.2026-01.org.example:host-db1"}})
	}
	return s
}
