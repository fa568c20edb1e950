package hypersim_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/internal/fault"
)

func TestContract(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Rig {
		s := hypervisortest.NewSim(t)
		return s.Rig(func(*testing.T) driver.Host { return s.Host })
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConfig(t *testing.T) {
	for key, c := range map[string]hypersim.Config{
		"name":      {CPUs: 1, MemoryMiB: 1},
		"cpus":      {Name: "b01", MemoryMiB: 1},
		"memoryMiB": {Name: "b01", CPUs: 1, MemoryMiB: -1},
	} {
		if _, err := hypersim.New(c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// rack is a backend that writes down what it is told.
type rack struct {
	mu     sync.Mutex
	on     []driver.Spec
	refuse error // the next Power
	stuck  bool  // a VM does not turn off before its context ends
}

func (r *rack) Power(s driver.Spec) (func(context.Context) error, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.refuse; err != nil {
		r.refuse = nil
		return nil, err
	}
	r.on = append(r.on, s)
	return func(ctx context.Context) error {
		r.mu.Lock()
		stuck := r.stuck
		r.stuck = false
		r.mu.Unlock()
		if stuck {
			<-ctx.Done()
			return ctx.Err()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.on = slices.DeleteFunc(r.on, func(o driver.Spec) bool { return o.Name == s.Name })
		return nil
	}, nil
}

func TestBackend(t *testing.T) {
	r := &rack{}
	h, err := hypersim.New(hypersim.Config{Name: "b01", CPUs: 8, MemoryMiB: 8192, Backend: r})
	must(t, err)
	ctx := t.Context()
	s := hypervisortest.Spec("db1", 1, 5)
	must(t, h.Define(ctx, s))
	r.refuse = fault.New(fault.Conflict, "the cable is out")
	if err := h.Start(ctx, "db1", 5); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "cable") || len(h.Running()) != 0 {
		t.Fatalf("%v, running %v", err, h.Running())
	}
	must(t, h.Start(ctx, "db1", 5))
	must(t, h.Start(ctx, "db1", 5))
	if len(r.on) != 1 || !r.on[0].Equal(s) {
		t.Fatalf("powered %+v", r.on)
	}
	r.on[0].NICs[0].VLAN = 9 // what the backend does with it is its own
	r.stuck = true
	short, cancel := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- h.Stop(short, "db1", 5) }()
	for r.isStuck() {
		time.Sleep(time.Millisecond)
	}
	vms, err := h.VMs(ctx) // is answered while the VM turns off
	if err != nil || len(vms) != 1 || vms[0].State != driver.StateRunning || !vms[0].Spec.Equal(s) {
		t.Fatalf("%+v, %v", vms, err)
	}
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) || !slices.Equal(h.Running(), []string{"db1"}) {
		t.Fatalf("%v, running %v", err, h.Running())
	}
	must(t, h.Stop(ctx, "db1", 5))
	if len(r.on) != 0 || len(h.Running()) != 0 {
		t.Fatalf("on %v, running %v", r.on, h.Running())
	}
}

func (r *rack) isStuck() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stuck
}

func TestFaults(t *testing.T) {
	s := hypervisortest.NewSim(t)
	ctx := t.Context()
	one, two := hypervisortest.Spec("db1", 1, 5), hypervisortest.Spec("db2", 2, 5)

	s.SetFaults(func(f *hypersim.Faults) { f.Refuse = 2 })
	for range 2 {
		if err := s.Define(ctx, one); !fault.Is(err, fault.Busy) {
			t.Errorf("refused: %v", err)
		}
	}
	must(t, s.Define(ctx, one))

	s.SetFaults(func(f *hypersim.Faults) { f.LoseReply = 1 })
	if _, err := s.VMs(ctx); err != nil {
		t.Errorf("a read is no change: %v", err)
	}
	if err := s.Start(ctx, "db1", 5); !fault.Is(err, fault.Unreachable) || !slices.Equal(s.Running(), []string{"db1"}) {
		t.Errorf("reply lost: %v, running %v", err, s.Running())
	}

	s.SetFaults(func(f *hypersim.Faults) { f.Full = true })
	if err := s.Define(ctx, two); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("full: %v", err)
	}
	if c, err := s.Capacity(ctx); err != nil || c.FreeCPUs != 0 || c.FreeMemory != 0 || c.CPUs != 8 {
		t.Errorf("full: %+v, %v", c, err)
	}

	s.SetFaults(func(f *hypersim.Faults) { *f = hypersim.Faults{Lie: hypersim.Nothing} })
	if vms, err := s.VMs(ctx); err != nil || len(vms) != 0 {
		t.Errorf("lie: %+v, %v", vms, err)
	}
	s.SetFaults(func(f *hypersim.Faults) { f.Lie = hypersim.AllOff })
	if vms, err := s.VMs(ctx); err != nil || vms[0].State != driver.StateDefined || len(s.Running()) != 1 {
		t.Errorf("lie: %+v, %v", vms, err)
	}

	s.SetFaults(func(f *hypersim.Faults) { *f = hypersim.Faults{Lax: true} })
	one.CPUs, one.Epoch = 2, 4
	must(t, s.Define(ctx, one)) // stale, and of a running VM
	if vms, err := s.VMs(ctx); err != nil || !vms[0].Spec.Equal(one) || vms[0].State != driver.StateRunning {
		t.Errorf("lax: %+v, %v", vms, err)
	}

	s.SetFaults(func(f *hypersim.Faults) { *f = hypersim.Faults{Delay: time.Hour} })
	short, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	if err := s.Stop(short, "db1", 5); !fault.Is(err, fault.Timeout) || len(s.Running()) != 1 {
		t.Errorf("delay: %v", err)
	}

	s.SetFaults(func(f *hypersim.Faults) { *f = hypersim.Faults{Hang: true} })
	before := s.Counters()
	done := make(chan error, 1)
	go func() { done <- s.Define(ctx, two) }()
	for s.Counters().Calls == before.Calls {
		time.Sleep(time.Millisecond)
	}
	s.SetFaults(func(f *hypersim.Faults) { f.Hang = false })
	must(t, <-done)
	if c := s.Counters(); c.Changes != 4 || c.Starts != 1 || c.Failed != 5 {
		t.Errorf("counters %+v", c)
	}
}
