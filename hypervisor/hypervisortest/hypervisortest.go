// Package hypervisortest is the contract that every driver of hosts passes.
package hypervisortest

import (
	"context"
	"reflect"
	"slices"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Rig is one host to try a driver on. Nothing is on it, and it has room for eight CPUs and 8192 MiB at
// least.
type Rig struct {
	// Open returns a new driver of the same host.
	Open func(t *testing.T) driver.Host
	// Foreign puts a VM on the host that is not ours.
	Foreign func(t *testing.T, s driver.Spec, running bool)
	// Running names the VMs that are truly powered on, sorted.
	Running func() []string
	// Starts counts how often a VM was powered on.
	Starts func() int
	// Fail breaks the nth call that reaches the host from now. nil: the rig cannot.
	Fail func(n int, how Failure)
	// Whole is the fullest definition that the host runs, with three NICs and three disks at least. nil: it
	// runs whatever makes sense.
	Whole func(t *testing.T) driver.Spec
	// Heal takes back what Fail has not broken yet, and reports whether it has broken something.
	Heal func() bool
}

// Failure is a way in which one call goes wrong.
type Failure string

const (
	Refused Failure = "refused"    // answered with an error, not applied
	Dropped Failure = "dropped"    // not applied, not answered
	Lost    Failure = "reply lost" // applied, not answered
)

// Run runs the contract; every test gets its own rig.
func Run(t *testing.T, newRig func(t *testing.T) Rig) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"a VM's life", testLife},
		{"definitions read back whole", testWhole},
		{"a secret is not read back", testSecret},
		{"repeating changes nothing", testRepeat},
		{"a definition that makes no sense is refused", testInvalid},
		{"a stale act is refused", testStale},
		{"an epoch outlives its VM", testEpochStays},
		{"a newer run takes a VM over", testNewer},
		{"a running VM is not redefined", testRunning},
		{"what is not there", testAbsent},
		{"no two VMs share an identity", testIdentity},
		{"room", testRoom},
		{"a draining host", testDrain},
		{"VMs that are not ours", testForeign},
		{"a dead context changes nothing", testContext},
		{"epochs never go back under contention", testContention},
		{"a VM starts once", testStartOnce},
		{"room is given out once", testRoomOnce},
		{"every call that fails can be repeated", testFailEach},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newBench(t, newRig(t))) })
	}
}

type bench struct {
	Rig
	drv driver.Host
}

func newBench(t *testing.T, r Rig) *bench {
	b := &bench{Rig: r, drv: r.Open(t)}
	t.Cleanup(func() {
		if err := b.drv.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

func (b *bench) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Spec is a small definition; n tells it from others.
func Spec(name string, n byte, epoch uint64) driver.Spec {
	hex := []byte("0123456789abcdef")
	id := string(hex[n>>4]) + string(hex[n&15])
	return driver.Spec{Name: name, UUID: "8fbf43ac-18d1-4480-82ce-5095cffe10" + id, CPUs: 1, MemoryMiB: 512, Arch: "x86_64", Firmware: "uefi", Epoch: epoch,
		NICs: []driver.NIC{{MAC: "02:00:00:00:00:" + id, VLAN: 120}}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (b *bench) vms(t *testing.T) []driver.VM {
	t.Helper()
	vms, err := b.drv.VMs(b.ctx(t))
	must(t, err)
	return vms
}

func (b *bench) room(t *testing.T) driver.Capacity {
	t.Helper()
	c, err := b.drv.Capacity(b.ctx(t))
	must(t, err)
	return c
}

// up defines a VM and starts it.
func (b *bench) up(t *testing.T, s driver.Spec) {
	t.Helper()
	must(t, b.drv.Define(b.ctx(t), s))
	must(t, b.drv.Start(b.ctx(t), s.Name, s.Epoch))
}

// expect checks one VM, as it is listed and as it is.
func (b *bench) expect(t *testing.T, s driver.Spec, epoch uint64, state driver.State) {
	t.Helper()
	vms := b.vms(t)
	i := slices.IndexFunc(vms, func(vm driver.VM) bool { return vm.Name == s.Name })
	if i < 0 {
		t.Fatalf("VM %s is not listed: %+v", s.Name, vms)
	}
	if vm := vms[i]; vm.State != state || vm.Epoch != epoch || vm.UUID != s.UUID || !vm.Spec.Equal(s) {
		t.Fatalf("listed %+v, want %s in epoch %d: %+v", vm, state, epoch, s)
	}
	if on := slices.Contains(b.Running(), s.Name); on != (state == driver.StateRunning) {
		t.Fatalf("VM %s is listed as %s, and that it is on is %t", s.Name, state, on)
	}
}

// refuse checks that an act is refused and leaves no traces.
func (b *bench) refuse(t *testing.T, kind fault.Kind, what string, act func(context.Context) error) {
	t.Helper()
	before, room, running := b.vms(t), b.room(t), b.Running()
	if err := act(b.ctx(t)); !fault.Is(err, kind) {
		t.Fatalf("%s: error %v, want kind %s", what, err, kind)
	}
	if after := b.vms(t); !reflect.DeepEqual(before, after) || b.room(t) != room || !slices.Equal(running, b.Running()) {
		t.Fatalf("%s was refused and left traces:\nbefore %+v\nafter  %+v", what, before, after)
	}
}

func (b *bench) define(s driver.Spec) func(context.Context) error {
	return func(ctx context.Context) error { return b.drv.Define(ctx, s) }
}

func (b *bench) start(name string, epoch uint64) func(context.Context) error {
	return func(ctx context.Context) error { return b.drv.Start(ctx, name, epoch) }
}

func (b *bench) stop(name string, epoch uint64) func(context.Context) error {
	return func(ctx context.Context) error { return b.drv.Stop(ctx, name, epoch) }
}

func (b *bench) undefine(name string, epoch uint64) func(context.Context) error {
	return func(ctx context.Context) error { return b.drv.Undefine(ctx, name, epoch) }
}
