package hypervisor_test

import (
	"testing"

	"rerack.dev/rerack/hypervisor"
	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
)

func over(t *testing.T, drv driver.Host, c hypervisor.Config) *hypervisor.Host {
	t.Helper()
	c.Machine = "b01"
	h, err := hypervisor.New(drv, c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestContract(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Rig {
		s := hypervisortest.NewSim(t)
		return s.Rig(func(t *testing.T) driver.Host { return over(t, s.Host, hypervisor.Config{}) })
	})
}

func TestContractOverAgent(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Rig {
		s := hypervisortest.NewSim(t)
		c := s.Serve(t)
		return s.Rig(func(t *testing.T) driver.Host {
			drv, err := agent.Dial(c)
			if err != nil {
				t.Fatal(err)
			}
			return over(t, drv, hypervisor.Config{})
		})
	})
}
