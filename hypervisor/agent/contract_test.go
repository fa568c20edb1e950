package agent_test

import (
	"testing"

	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
)

func dial(t *testing.T, c agent.ClientConfig) *agent.Client {
	t.Helper()
	d, err := agent.Dial(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// The agent's server and client, over TLS on a socket, are a driver like any other.
func TestContract(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Rig {
		s := hypervisortest.NewSim(t)
		c := s.Serve(t)
		return s.Rig(func(t *testing.T) driver.Host { return dial(t, c) })
	})
}
