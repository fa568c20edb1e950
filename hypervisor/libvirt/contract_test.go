package libvirt_test

import (
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
)

// The whole contract on a real libvirtd, whose QEMU emulates.
func TestContract(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Rig {
		d := start(t, setup{volumes: true})
		p := serve(t, d.socket)
		c := d.config()
		c.Address = "unix://" + p.socket
		return hypervisortest.Rig{
			Open:    func(t *testing.T) driver.Host { return open(t, c) },
			Foreign: d.foreign,
			Running: func() []string { return d.running(t) },
			Starts:  func() int { return d.starts(t) },
			Fail:    p.fail,
			Heal:    p.heal,
			Whole:   whole,
		}
	})
}

// whole is everything that the daemon's host has.
func whole(*testing.T) driver.Spec {
	s := hypervisortest.Spec("everything-1", 1, 1<<63+5)
	s.CPUs = 3
	s.NICs = []driver.NIC{{MAC: "02:00:00:00:00:02", VLAN: 4094}, {MAC: "02:00:00:00:00:01", VLAN: 1}, {MAC: "fe:ff:ff:ff:ff:fe", VLAN: 120}}
	login := func() *driver.CHAP { return &driver.CHAP{Name: "san/db1", User: "db1", Secret: "correct-horse"} }
	iscsi := func(lun int) *driver.ISCSI {
		return &driver.ISCSI{Portal: "127.0.0.1:3260", Target: "iqn.2026-01.org.example:db1", LUN: lun,
			Initiator: "iqn.2026-01.org.example:host-db1", CHAP: login()}
	}
	s.Disks = []driver.Disk{{Volume: "data", FC: &driver.FC{WWPN: "50:06:01:60:3b:20:11:aa", LUN: 3}},
		{Volume: "root", Boot: true, ISCSI: iscsi(1)}, {Volume: "log", ISCSI: iscsi(2)}}
	return s
}
