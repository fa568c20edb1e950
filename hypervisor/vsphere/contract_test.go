package vsphere_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/simulator"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
)

func must(t testing.TB) func(string) *url.URL {
	return func(s string) *url.URL {
		u, err := url.Parse(s)
		check(t, err)
		return u
	}
}

// The whole contract on a host of vCenter.
func TestContract(t *testing.T) { contract(t, simulator.VPX, true) }

// And on a host by itself, where the calls are the same.
func TestContractOfESX(t *testing.T) { contract(t, simulator.ESX, false) }

func contract(t *testing.T, model func() *simulator.Model, breaks bool) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Rig {
		c := newCenter(t, model())
		cfg := c.config(t)
		if strings.HasSuffix(t.Name(), "repeated") { // it loses locks, and they are broken in their time
			cfg.ChangeTimeout, cfg.LockBroken = 1500*time.Millisecond, 1600*time.Millisecond
		}
		r := hypervisortest.Rig{
			Open:    func(t *testing.T) driver.Host { return open(t, cfg) },
			Foreign: c.foreign,
			Running: func() []string { return c.running(t) },
			Starts:  func() int { return c.countStarts() },
			Whole:   whole,
		}
		if breaks {
			r.Fail, r.Heal = c.fail, c.heal
		}
		return r
	})
}

// whole is everything that the simulated host has.
func whole(*testing.T) driver.Spec {
	s := hypervisortest.Spec("everything-1", 1, 1<<63+5)
	s.Firmware = "bios"
	s.NICs = []driver.NIC{{MAC: "02:00:00:00:00:02", VLAN: 4094}, {MAC: "02:00:00:00:00:01", VLAN: 1}, {MAC: "fe:ff:ff:ff:ff:ff", VLAN: 120}}
	iscsi := func(lun int) *driver.ISCSI {
		return &driver.ISCSI{Portal: "[2001:db8::1]:3260", Target: "iqn.2026-01.org.example:db1", LUN: lun}
	}
	s.Disks = []driver.Disk{{Volume: "data", FC: &driver.FC{WWPN: "50:06:01:60:3b:20:11:aa", LUN: 16383}},
		{Volume: "root", Boot: true, ISCSI: iscsi(0)}, {Volume: "log", ISCSI: iscsi(1)}}
	return s
}
