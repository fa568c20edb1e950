package gateway_test

import (
	"crypto/tls"
	"strings"
	"testing"
	"time"

	bmcdriver "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/workflows/gateway"
)

// A hypervisor that exists already is opened with its own driver, is kept, and is not believed.
func TestExistingHost(t *testing.T) {
	s := hypervisortest.NewSim(t)
	opened, ours := 0, tls.Certificate{Certificate: [][]byte{{1}}}
	g := gateway.New(gateway.Config{AgentCert: ours, Hypervisors: map[topology.HypervisorDriver]gateway.OpenHypervisor{
		topology.Libvirt: func(machine string, h topology.Hypervisor, cert tls.Certificate) (driver.Host, error) {
			if machine != "k1" || h.Address != "tls://k1" || len(cert.Certificate) != 1 {
				t.Errorf("opened %s at %s", machine, h.Address)
			}
			opened++
			return s.Host, nil
		}}})
	open := func(h topology.Hypervisor) (driver.Host, error) {
		return g.Host(t.Context(), "k1", state.Host{Existing: &h})
	}
	declared := topology.Hypervisor{Driver: topology.Libvirt, Address: "tls://k1", Bridge: "br%d"}
	h, err := open(declared)
	check(t, err)
	if again, err := open(declared); err != nil || again != h || opened != 1 {
		t.Errorf("opened %d times, %v", opened, err)
	}
	check(t, h.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)))
	s.SetFaults(func(f *hypersim.Faults) { f.Idle = true })
	if err := h.Start(t.Context(), "db1", 5); !fault.Is(err, fault.Unverified) {
		t.Errorf("a host that does nothing: %v", err)
	}
	other := declared
	other.ReserveMiB = 1024
	if again, err := open(other); err != nil || again == h {
		t.Errorf("declared differently, and the same: %v", err)
	}
	declared.Driver = topology.VSphere
	if _, err := open(declared); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "k1") {
		t.Errorf("no driver: %v", err)
	}
}

// Nothing turns a machine on or off whose hypervisor is not ours; its BMC may be asked.
func TestExistingHostKeepsItsPower(t *testing.T) {
	r := newRack(t)
	check(t, press(t, r))
	r.topo.Spec.Hypervisor = topology.Hypervisor{Driver: topology.Libvirt, Address: "tls://k1"}
	m, err := r.Machine(t.Context(), r.topo)
	check(t, err)
	presses := len(r.machine.Presses())
	_, off := m.Off(t.Context(), 1, time.Millisecond)
	on := m.On(t.Context(), bmcdriver.BootOverride{Device: bmcdriver.BootPXE, Mode: bmcdriver.FirmwareUEFI, Once: true}, time.Second)
	for i, err := range []error{off, on, m.StayOff(t.Context())} {
		if !fault.Is(err, fault.Unsafe) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if p, err := m.Power(t.Context()); err != nil || p.State != bmcdriver.PowerOn || len(r.machine.Presses()) != presses {
		t.Errorf("%+v, %v", p, err)
	}
}

// press turns the rack's machine on while it is still ours.
func press(t *testing.T, r *rack) error {
	t.Helper()
	m, err := r.Machine(t.Context(), r.topo)
	check(t, err)
	return m.On(t.Context(), bmcdriver.BootOverride{Device: bmcdriver.BootPXE, Mode: bmcdriver.FirmwareUEFI, Once: true}, time.Second)
}
