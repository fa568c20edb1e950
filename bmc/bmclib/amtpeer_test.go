package bmclib_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers/intelamt"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
)

// bmclib's own AMT client, which takes any certificate and is therefore not used on machines, drives the
// simulated AMT: what package amt is tested against is what others understand by AMT.
func TestAForeignClientDrivesTheSimulatedAMT(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := bmctest.NewSim(t, bmcsim.AMT(), false, nil)
	host, _, err := net.SplitHostPort(s.BMC.Addr())
	if err != nil {
		t.Fatal(err)
	}
	cred := bmctest.SimCredential()
	peer := intelamt.New(host, cred.User, cred.Password.Reveal(), intelamt.WithHostScheme("https"), intelamt.WithPort(uint32(s.BMC.Port())))
	if err := peer.Open(ctx); err != nil {
		t.Fatal(err)
	}
	power := func(want string) {
		t.Helper()
		got, err := peer.PowerStateGet(ctx)
		if err != nil || got != want {
			t.Errorf("reads %q, %v, want %s", got, err, want)
		}
	}
	power("off")
	if ok, err := peer.BootDeviceSet(ctx, "pxe", false, false); !ok || err != nil {
		t.Errorf("boot from PXE: %t, %v", ok, err)
	}
	want := driver.BootOverride{Device: driver.BootPXE, Once: true}
	if got := s.Machine.Boot(); got != want {
		t.Errorf("the machine will boot %+v", got)
	}
	if ok, err := peer.PowerSet(ctx, "on"); !ok || err != nil {
		t.Errorf("on: %t, %v", ok, err)
	}
	power("on")
	if booted := s.Machine.Boots(); len(booted) != 1 || booted[0] != want {
		t.Errorf("booted %+v", booted)
	}
	if ok, err := peer.PowerSet(ctx, "off"); !ok || err != nil {
		t.Errorf("off: %t, %v", ok, err)
	}
	power("off")
	if err := peer.Close(ctx); err != nil {
		t.Error(err)
	}
}
