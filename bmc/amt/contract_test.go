package amt_test

import (
	"testing"

	"rerack.dev/rerack/bmc/amt"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
)

func TestContract(t *testing.T) {
	id := bmctest.SimIdentity()
	id.NICs, id.HBAs = id.NICs[:1], nil // AMT knows its own port only
	bmctest.Run(t, bmctest.Harness{
		New: func(t *testing.T, on bool) bmctest.Peer {
			return bmctest.NewSim(t, bmcsim.AMT(), on, amt.Opener{}.Open)
		},
		Identity:     id,
		NoMode:       true,
		NoPersistent: true,
		NoHTTPBoot:   true,
	})
}
