package redfish_test

import (
	"testing"

	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/redfish"
)

func TestContract(t *testing.T) {
	for _, p := range bmcsim.Profiles() {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			bmctest.Run(t, bmctest.Harness{
				New:       func(t *testing.T, on bool) bmctest.Peer { return bmctest.NewSim(t, p, on, redfish.Opener{}.Open) },
				Identity:  bmctest.SimIdentity(),
				NoMode:    p.RejectMode,
				NoRestore: p.NoRestore,
			})
		})
	}
}
