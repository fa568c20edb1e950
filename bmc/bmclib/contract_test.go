package bmclib_test

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmclib"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/internal/fault"
)

func TestMain(m *testing.M) {
	// Nothing here may depend on a binary: not ipmitool, not any other.
	if err := os.Setenv("PATH", ""); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestASRockRack(t *testing.T) {
	bmctest.Run(t, bmctest.Harness{
		New: func(t *testing.T, on bool) bmctest.Peer {
			return bmctest.NewSim(t, bmcsim.AMI(), on, bmclib.Opener{}.Open)
		},
		Identity: driver.Inventory{Serial: bmctest.SimIdentity().Serial},
		NoBoot:   true,
	})
}

func TestOwnIPMIProvider(t *testing.T) {
	id := bmctest.SimIdentity()
	id.NICs, id.HBAs = nil, nil
	bmctest.Run(t, bmctest.Harness{
		New: func(t *testing.T, on bool) bmctest.Peer {
			s := bmctest.NewSim(t, bmcsim.Generic(), on, nil)
			s.Opener = bmclib.Opener{IPMIPort: strconv.Itoa(s.BMC.Port()), IPMI: ipmi.Config{AttemptTimeout: 200 * time.Millisecond, Attempts: 5}}.Open
			return s
		},
		Identity:   id,
		NoHTTPBoot: true,
	})
}

func TestForeignCertificateGetsNoPassword(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.AMI(), true, nil)
	other, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	ep := s.BMC.Endpoint(bmc.BMCLib, "")
	ep.CA = other.PEM()
	_, err = bmclib.Opener{}.Open(context.Background(), ep, bmctest.SimCredential())
	if !fault.Is(err, fault.Unsafe) {
		t.Errorf("%v is %s, want unsafe", err, fault.KindOf(err))
	}
	if n := s.BMC.Count("login"); n != 0 {
		t.Errorf("%d logins sent", n)
	}
}
