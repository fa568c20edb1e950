package hypersim_test

import (
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypervisortest"
)

func TestContract(t *testing.T) {
	hypervisortest.Run(t, func(t *testing.T) hypervisortest.Rig {
		s := hypervisortest.NewSim(t)
		return s.Rig(func(*testing.T) driver.Host { return s.Host })
	})
}
