package ipmi_test

import (
	"testing"
	"time"

	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/ipmi"
)

func TestContract(t *testing.T) {
	id := bmctest.SimIdentity()
	id.NICs, id.HBAs = nil, nil // IPMI cannot tell them
	opener := ipmi.Opener{Config: ipmi.Config{AttemptTimeout: 200 * time.Millisecond, Attempts: 5}}
	for _, p := range bmcsim.Profiles() {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			bmctest.Run(t, bmctest.Harness{
				New:        func(t *testing.T, on bool) bmctest.Peer { return bmctest.NewSim(t, p, on, opener.Open) },
				Identity:   id,
				NoHTTPBoot: true,
				NoBoot:     p.NoIPMIBoot,
			})
		})
	}
}
