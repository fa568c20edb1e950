package gateway_test

import (
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/workflows/gateway"
)

// A host from the gateway is the one of the recorded boot, is kept, and does not believe its agent.
func TestHost(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	g := gateway.New(gateway.Config{AgentCert: c.Certificate, AgentCA: c.CA})
	open := func(rec state.Host) driver.Host {
		t.Helper()
		h, err := g.Host(t.Context(), "b01", rec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Close() })
		return h
	}
	rec := state.Host{AgentURL: c.URL, Epoch: c.Epoch}
	h := open(rec)
	if open(rec) != h {
		t.Error("opened twice")
	}
	spec := hypervisortest.Spec("db1", 1, 5)
	if err := h.Define(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	s.SetFaults(func(f *hypersim.Faults) { f.Idle = true })
	if err := h.Start(t.Context(), "db1", 5); !fault.Is(err, fault.Unverified) {
		t.Errorf("an agent that does nothing: %v", err)
	}
	rec.Epoch++
	later := open(rec)
	if later == h {
		t.Error("another boot, and the same host")
	}
	if vms, err := later.VMs(t.Context()); !fault.Is(err, fault.Unauthorized) || vms != nil {
		t.Errorf("the agent of an earlier boot: %v, %v", vms, err)
	}
	rec.AgentURL = "http://" + c.URL[len("https://"):]
	if _, err := g.Host(t.Context(), "b01", rec); !fault.Is(err, fault.Invalid) {
		t.Errorf("an agent without TLS: %v", err)
	}
}
