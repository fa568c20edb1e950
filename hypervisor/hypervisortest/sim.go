package hypervisortest

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/internal/pki"
)

// Sim is a simulated host with 8 CPUs and 16 GiB for tests.
type Sim struct {
	*hypersim.Host
	CA    *pki.CA // signs for its agent and for the agent's caller; made by Serve
	CADir string  // where that keeps its key
}

// NewSim returns a simulated host without an agent.
func NewSim(t testing.TB) *Sim {
	t.Helper()
	h, err := hypersim.New(hypersim.Config{Name: "b01", CPUs: 8, MemoryMiB: 16384})
	if err != nil {
		t.Fatal(err)
	}
	return &Sim{Host: h}
}

// Rig tries the drivers that open returns on the simulated host.
func (s *Sim) Rig(open func(*testing.T) driver.Host) Rig {
	return Rig{
		Open:    open,
		Foreign: func(_ *testing.T, spec driver.Spec, running bool) { s.Foreign(spec, running) },
		Running: s.Running,
		Starts:  func() int { return s.Counters().Starts },
		Fail: func(n int, how Failure) {
			s.SetFaults(func(f *hypersim.Faults) { f.FailAt = &hypersim.FailPoint{N: n, How: hypersim.Failure(how)} })
		},
		Heal: func() bool {
			broke := s.Faults().FailAt == nil
			s.SetFaults(func(f *hypersim.Faults) { *f = hypersim.Faults{} })
			return broke
		},
	}
}

// Serve puts the simulated host behind an agent, on a socket of its own until the test ends, and returns
// what its caller needs.
func (s *Sim) Serve(t testing.TB) agent.ClientConfig {
	t.Helper()
	var err error
	s.CADir = t.TempDir()
	if s.CA, err = pki.Open(s.CADir); err != nil {
		t.Fatal(err)
	}
	caller, err := s.CA.Client("rerack")
	if err != nil {
		t.Fatal(err)
	}
	return agent.ClientConfig{URL: s.ServeAs(t, AgentCertificate(t, s.CA, "b01", 3)), Certificate: caller, CA: s.CA.Pool(), Machine: "b01", Epoch: 3}
}

// ServeAs puts another agent before the simulated host, which shows this certificate, and returns its URL.
func (s *Sim) ServeAs(t testing.TB, cert tls.Certificate) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	c := agent.ServerConfig{Listener: s.Listener(l), Certificate: cert, CA: s.CA.Pool(), Client: "rerack", Host: s.Host}
	go func() { done <- agent.Serve(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
	})
	return "https://" + l.Addr().String()
}

// Impostor is an agent with the right certificate that answers everything in one way, and no host behind
// it. Serve has to come first.
func (s *Sim) Impostor(t testing.TB, answer http.HandlerFunc) (url string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(answer)
	srv.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{AgentCertificate(t, s.CA, "b01", 3)}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL
}

// AgentCertificate is what an agent gets when it joins.
func AgentCertificate(t testing.TB, ca *pki.CA, machine string, epoch uint64) tls.Certificate {
	t.Helper()
	key, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := ca.SignAgent(csr, machine, epoch)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(signed)
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}
}
