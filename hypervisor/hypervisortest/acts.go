package hypervisortest

import (
	"context"
	"reflect"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

func testLife(t *testing.T, b *bench) {
	if vms := b.vms(t); len(vms) != 0 {
		t.Fatalf("an empty host has %+v", vms)
	}
	whole := b.room(t)
	if whole.CPUs < 8 || whole.MemoryMiB < 8192 || whole.FreeCPUs != whole.CPUs || whole.FreeMemory != whole.MemoryMiB || whole.Draining {
		t.Fatalf("an empty host has %+v", whole)
	}
	s := Spec("db1", 1, 7)
	s.CPUs, s.MemoryMiB = 2, 1024
	taken := whole
	taken.FreeCPUs, taken.FreeMemory = whole.CPUs-2, whole.MemoryMiB-1024
	for range 2 {
		must(t, b.drv.Define(b.ctx(t), s))
		b.expect(t, s, 7, driver.StateDefined)
		for range 2 {
			must(t, b.drv.Start(b.ctx(t), "db1", 7))
			b.expect(t, s, 7, driver.StateRunning)
			if got := b.room(t); got != taken {
				t.Fatalf("room %+v, want %+v", got, taken)
			}
			must(t, b.drv.Stop(b.ctx(t), "db1", 7))
			b.expect(t, s, 7, driver.StateDefined)
		}
		if got := b.room(t); got != taken {
			t.Fatalf("room %+v, want %+v", got, taken)
		}
		must(t, b.drv.Undefine(b.ctx(t), "db1", 7))
		if vms := b.vms(t); len(vms) != 0 {
			t.Fatalf("after all is gone: %+v", vms)
		}
		if got := b.room(t); got != whole {
			t.Fatalf("room %+v, want %+v", got, whole)
		}
	}
	if n := b.Starts(); n != 4 {
		t.Fatalf("started %d times, want 4", n)
	}
}

func testWhole(t *testing.T, b *bench) {
	s := Spec("everything-1", 1, 1<<63+5)
	s.Arch, s.Firmware = "arm64", "bios"
	s.NICs = []driver.NIC{{MAC: "02:00:00:00:00:02", VLAN: 4094}, {MAC: "02:00:00:00:00:01", VLAN: 1}, {MAC: "fe:ff:ff:ff:ff:ff", VLAN: 120}}
	s.Disks = []driver.Disk{{Volume: "data", FC: &driver.FC{WWPN: "50:06:01:60:3b:20:11:aa", LUN: 16383}},
		{Volume: "root", Boot: true, ISCSI: &driver.ISCSI{Portal: "[2001:db8::1]:3260", Target: "iqn.2026-01.org.example:db1", LUN: 0}},
		{Volume: "log", ISCSI: &driver.ISCSI{Portal: "san.example:3260", Target: "iqn.2026-01.org.example:db1", LUN: 1}}}
	if b.Whole != nil {
		s = b.Whole(t)
	}
	b.up(t, s)
	b.expect(t, s, s.Epoch, driver.StateRunning)
	bare := Spec("bare", 9, 1)
	bare.NICs = nil
	b.up(t, bare)
	b.expect(t, bare, 1, driver.StateRunning)
	b.expect(t, s, s.Epoch, driver.StateRunning)
}

// A host is told the secret of a target and tells nobody.
func testSecret(t *testing.T, b *bench) {
	s := Spec("db1", 1, 7)
	s.Disks = []driver.Disk{{Volume: "root", ISCSI: &driver.ISCSI{Portal: "192.0.2.1:3260", Target: "iqn.2026-01.org.example:db1", LUN: 1,
		Initiator: "iqn.2026-01.org.example:host-db1", CHAP: &driver.CHAP{Name: "san/db1", User: "db1", Secret: "canary-of-the-target"}}}}
	must(t, b.drv.Define(b.ctx(t), s))
	for _, vm := range b.vms(t) {
		c := vm.Spec.Disks[0].ISCSI.CHAP
		if c == nil || *c != (driver.CHAP{Name: "san/db1"}) {
			t.Errorf("the secret reads back as user %q with a secret of %d bytes", c.User, len(c.Secret))
		}
	}
	b.expect(t, s, 7, driver.StateDefined)
	must(t, b.drv.Define(b.ctx(t), s))
	must(t, b.drv.Undefine(b.ctx(t), "db1", 7))
}

func testRepeat(t *testing.T, b *bench) {
	s := Spec("db1", 1, 7)
	for range 3 {
		must(t, b.drv.Define(b.ctx(t), s))
	}
	for range 3 {
		must(t, b.drv.Start(b.ctx(t), "db1", 7))
		must(t, b.drv.Define(b.ctx(t), s)) // as it is, also while it runs
	}
	b.expect(t, s, 7, driver.StateRunning)
	if n := b.Starts(); n != 1 {
		t.Fatalf("started %d times", n)
	}
	for range 3 {
		must(t, b.drv.Stop(b.ctx(t), "db1", 7))
	}
	for range 3 {
		must(t, b.drv.Undefine(b.ctx(t), "db1", 7))
	}
}

func testInvalid(t *testing.T, b *bench) {
	for what, spoil := range map[string]func(*driver.Spec){
		"no epoch":    func(s *driver.Spec) { s.Epoch = 0 },
		"no name":     func(s *driver.Spec) { s.Name = "" },
		"a path":      func(s *driver.Spec) { s.Name = "../db1" },
		"no UUID":     func(s *driver.Spec) { s.UUID = "" },
		"no CPU":      func(s *driver.Spec) { s.CPUs = 0 },
		"no memory":   func(s *driver.Spec) { s.MemoryMiB = -1 },
		"group MAC":   func(s *driver.Spec) { s.NICs[0].MAC = "01:00:00:00:00:01" },
		"VLAN 0":      func(s *driver.Spec) { s.NICs[0].VLAN = 0 },
		"no disk way": func(s *driver.Spec) { s.Disks = []driver.Disk{{Volume: "root"}} },
		"both disk ways": func(s *driver.Spec) {
			s.Disks = []driver.Disk{{Volume: "root", FC: &driver.FC{WWPN: "50:06:01:60:3b:20:11:aa"},
				ISCSI: &driver.ISCSI{Portal: "192.0.2.1:3260", Target: "iqn.2026-01.org.example:db1"}}}
		},
	} {
		s := Spec("db1", 1, 7)
		spoil(&s)
		b.refuse(t, fault.Invalid, what, b.define(s))
	}
	b.up(t, Spec("db1", 1, 7))
	b.refuse(t, fault.Invalid, "stop without an epoch", b.stop("db1", 0))
	b.refuse(t, fault.Invalid, "undefine without an epoch", b.undefine("db1", 0))
	b.refuse(t, fault.Invalid, "start without an epoch", b.start("db1", 0))
}

func testStale(t *testing.T, b *bench) {
	s := Spec("db1", 1, 7)
	must(t, b.drv.Define(b.ctx(t), s))
	old := Spec("db1", 1, 6)
	b.refuse(t, fault.Stale, "define", b.define(old))
	b.refuse(t, fault.Stale, "start", b.start("db1", 6))
	b.refuse(t, fault.Stale, "undefine", b.undefine("db1", 6))
	b.refuse(t, fault.Stale, "stop of a VM that is off", b.stop("db1", 6))
	must(t, b.drv.Start(b.ctx(t), "db1", 7))
	b.refuse(t, fault.Stale, "define while it runs", b.define(old))
	b.refuse(t, fault.Stale, "stop", b.stop("db1", 6))
	b.refuse(t, fault.Stale, "start while it runs", b.start("db1", 6))
	b.refuse(t, fault.Stale, "undefine while it runs", b.undefine("db1", 6))
}

// testEpochStays is about acts that arrive late: their run has been overtaken, and the VM is gone.
func testEpochStays(t *testing.T, b *bench) {
	b.up(t, Spec("db1", 1, 5))
	must(t, b.drv.Stop(b.ctx(t), "db1", 9))
	b.expect(t, Spec("db1", 1, 5), 9, driver.StateDefined)
	b.refuse(t, fault.Stale, "start of what a newer run stopped", b.start("db1", 5))
	b.refuse(t, fault.Conflict, "start of an older definition", b.start("db1", 9))
	must(t, b.drv.Undefine(b.ctx(t), "db1", 9))
	b.refuse(t, fault.Stale, "define of what a newer run removed", b.define(Spec("db1", 1, 5)))
	b.refuse(t, fault.Stale, "stop of what a newer run removed", b.stop("db1", 5))
	must(t, b.drv.Stop(b.ctx(t), "db2", 9))
	b.refuse(t, fault.Stale, "define of what a newer run stopped before it was there", b.define(Spec("db2", 2, 8)))
	must(t, b.drv.Undefine(b.ctx(t), "db3", 9))
	b.refuse(t, fault.Stale, "define of what a newer run removed before it was there", b.define(Spec("db3", 3, 8)))
	for i, name := range []string{"db1", "db2", "db3"} {
		b.up(t, Spec(name, byte(i+1), 9))
	}
}

func testNewer(t *testing.T, b *bench) {
	must(t, b.drv.Define(b.ctx(t), Spec("db1", 1, 5)))
	b.refuse(t, fault.Conflict, "start with an epoch it was not defined with", b.start("db1", 6))
	s := Spec("db1", 1, 6)
	s.CPUs, s.NICs[0].VLAN = 3, 121
	must(t, b.drv.Define(b.ctx(t), s))
	b.expect(t, s, 6, driver.StateDefined)
	must(t, b.drv.Start(b.ctx(t), "db1", 6))
	must(t, b.drv.Stop(b.ctx(t), "db1", 7))
	must(t, b.drv.Undefine(b.ctx(t), "db1", 8))
	if vms := b.vms(t); len(vms) != 0 {
		t.Fatalf("left %+v", vms)
	}
	s.Epoch = 8
	must(t, b.drv.Define(b.ctx(t), s))
	s.MemoryMiB = 700 // another definition of the same epoch: nothing ran with the first
	must(t, b.drv.Define(b.ctx(t), s))
	b.expect(t, s, 8, driver.StateDefined)
}

func testRunning(t *testing.T, b *bench) {
	b.up(t, Spec("db1", 1, 5))
	for what, change := range map[string]func(*driver.Spec){
		"epoch": func(s *driver.Spec) { s.Epoch = 6 },
		"cpus":  func(s *driver.Spec) { s.CPUs = 2 },
		"vlan":  func(s *driver.Spec) { s.NICs[0].VLAN = 121 },
		"nics":  func(s *driver.Spec) { s.NICs = nil },
		"disks": func(s *driver.Spec) {
			s.Disks = []driver.Disk{{Volume: "root", FC: &driver.FC{WWPN: "50:06:01:60:3b:20:11:aa"}}}
		},
	} {
		s := Spec("db1", 1, 5)
		change(&s)
		b.refuse(t, fault.Conflict, "define with another "+what, b.define(s))
	}
	b.refuse(t, fault.Conflict, "undefine", b.undefine("db1", 5))
	b.refuse(t, fault.Conflict, "undefine by a newer run", b.undefine("db1", 6))
}

func testAbsent(t *testing.T, b *bench) {
	b.refuse(t, fault.NotFound, "start", b.start("nobody", 5))
	must(t, b.drv.Stop(b.ctx(t), "nobody", 5))
	must(t, b.drv.Undefine(b.ctx(t), "nobody", 5))
	if vms := b.vms(t); len(vms) != 0 {
		t.Fatalf("made %+v", vms)
	}
}

func testIdentity(t *testing.T, b *bench) {
	must(t, b.drv.Define(b.ctx(t), Spec("db1", 1, 5)))
	for what, change := range map[string]func(*driver.Spec){
		"UUID": func(s *driver.Spec) { s.UUID = Spec("", 1, 0).UUID },
		"MAC":  func(s *driver.Spec) { s.NICs = append(s.NICs, Spec("", 1, 0).NICs...) },
	} {
		s := Spec("db2", 2, 6)
		change(&s)
		b.refuse(t, fault.Conflict, "define with the same "+what, b.define(s))
	}
	b.up(t, Spec("db2", 2, 6))
}

func testRoom(t *testing.T, b *bench) {
	whole := b.room(t)
	big := Spec("big", 1, 5)
	big.CPUs, big.MemoryMiB = whole.CPUs+1, 1
	b.refuse(t, fault.Conflict, "more CPUs than there are", b.define(big))
	big.CPUs, big.MemoryMiB = 1, whole.MemoryMiB+1
	b.refuse(t, fault.Conflict, "more memory than there is", b.define(big))
	big.CPUs, big.MemoryMiB = whole.CPUs, whole.MemoryMiB
	must(t, b.drv.Define(b.ctx(t), big))
	b.refuse(t, fault.Conflict, "one on a full host", b.define(Spec("small", 2, 5)))
	big.CPUs--
	big.MemoryMiB -= 512
	must(t, b.drv.Define(b.ctx(t), big)) // its own room counts once
	must(t, b.drv.Define(b.ctx(t), Spec("small", 2, 5)))
	big.MemoryMiB++
	b.refuse(t, fault.Conflict, "growing beyond what is left", b.define(big))
	if c := b.room(t); c.FreeCPUs != 0 || c.FreeMemory != 0 {
		t.Fatalf("a full host has %+v", c)
	}
	must(t, b.drv.Undefine(b.ctx(t), "big", 5))
	b.up(t, Spec("third", 3, 5))
}

func testDrain(t *testing.T, b *bench) {
	for i, name := range []string{"runs", "defined"} {
		must(t, b.drv.Define(b.ctx(t), Spec(name, byte(i+1), 5)))
	}
	must(t, b.drv.Start(b.ctx(t), "runs", 5))
	for range 2 {
		must(t, b.drv.Drain(b.ctx(t)))
	}
	if !b.room(t).Draining {
		t.Fatal("it does not say that it drains")
	}
	b.refuse(t, fault.Conflict, "define", b.define(Spec("late", 3, 5)))
	b.refuse(t, fault.Conflict, "redefine", b.define(Spec("defined", 2, 6)))
	b.refuse(t, fault.Conflict, "start", b.start("defined", 5))
	b.expect(t, Spec("runs", 1, 5), 5, driver.StateRunning)
	must(t, b.drv.Stop(b.ctx(t), "runs", 5))
	b.refuse(t, fault.Conflict, "start again", b.start("runs", 5))
	must(t, b.drv.Undefine(b.ctx(t), "runs", 5))
	b.expect(t, Spec("defined", 2, 5), 5, driver.StateDefined)
}

func testForeign(t *testing.T, b *bench) {
	for i, running := range []bool{true, false} {
		name := []string{"theirs", "theirs-too"}[i]
		theirs := Spec(name, byte(i+1), 0)
		b.Foreign(t, theirs, running)
		state := driver.StateDefined
		if running {
			state = driver.StateRunning
		}
		check := func() {
			t.Helper()
			b.expectForeign(t, theirs, state)
		}
		check()
		ours := Spec(name, byte(i+1), 5)
		b.refuse(t, fault.Unsafe, "define", b.define(ours))
		b.refuse(t, fault.Unsafe, "start", b.start(name, 5))
		b.refuse(t, fault.Unsafe, "stop", b.stop(name, 5))
		b.refuse(t, fault.Unsafe, "undefine", b.undefine(name, 5))
		ours.Name = "ours"
		b.refuse(t, fault.Conflict, "define with their identity", b.define(ours))
		check()
	}
	if c := b.room(t); c.FreeCPUs != c.CPUs-2 || c.FreeMemory != c.MemoryMiB-1024 {
		t.Fatalf("they take no room: %+v", c)
	}
	theirs := b.vms(t)
	b.up(t, Spec("ours", 3, 5))
	must(t, b.drv.Stop(b.ctx(t), "ours", 5))
	must(t, b.drv.Undefine(b.ctx(t), "ours", 5))
	must(t, b.drv.Drain(b.ctx(t)))
	if after := b.vms(t); !reflect.DeepEqual(theirs, after) {
		t.Fatalf("theirs changed:\nbefore %+v\nafter  %+v", theirs, after)
	}
	huge := Spec("huge", 4, 0)
	huge.CPUs, huge.MemoryMiB = b.room(t).CPUs+1, 1<<40
	b.Foreign(t, huge, true)
	if c := b.room(t); c.FreeCPUs != 0 || c.FreeMemory != 0 {
		t.Fatalf("an overcommitted host has %+v", c)
	}
}

// expectForeign checks a VM that is not ours: what it takes, and what of an identity nobody else may have.
func (b *bench) expectForeign(t *testing.T, s driver.Spec, state driver.State) {
	t.Helper()
	for _, vm := range b.vms(t) {
		if vm.Name != s.Name {
			continue
		}
		if vm.State != state || vm.Epoch != 0 || vm.UUID != s.UUID || vm.Spec.CPUs != s.CPUs || vm.Spec.MemoryMiB != s.MemoryMiB || s.Shares(driver.VM{Spec: driver.Spec{NICs: vm.Spec.NICs}}) == "" {
			t.Fatalf("listed %+v, want %s: %+v", vm, state, s)
		}
		return
	}
	t.Fatalf("VM %s is not listed", s.Name)
}

func testContext(t *testing.T, b *bench) {
	b.up(t, Spec("runs", 1, 5))
	must(t, b.drv.Define(b.ctx(t), Spec("defined", 2, 5)))
	before, room := b.vms(t), b.room(t)
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	for what, act := range map[string]func(context.Context) error{
		"define": b.define(Spec("new", 3, 5)), "redefine": b.define(Spec("defined", 2, 6)), "start": b.start("defined", 5),
		"stop": b.stop("runs", 5), "undefine": b.undefine("defined", 5), "drain": b.drv.Drain,
		"list": func(ctx context.Context) error { _, err := b.drv.VMs(ctx); return err },
		"room": func(ctx context.Context) error { _, err := b.drv.Capacity(ctx); return err },
	} {
		if act(dead) == nil {
			t.Errorf("%s: success on a cancelled context", what)
		}
	}
	if after := b.vms(t); !reflect.DeepEqual(before, after) || b.room(t) != room {
		t.Fatalf("changed:\nbefore %+v\nafter  %+v", before, after)
	}
}
