package bmctest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"testing"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/driver"
)

// SimIdentity is the machine that NewSim simulates.
func SimIdentity() driver.Inventory {
	return driver.Inventory{UUID: "4c4c4544-0051-4810-8052-b4c04f4d3732", Serial: "5QHR4M2",
		NICs: []driver.NIC{{Name: "nic1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}, {Name: "nic2", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}},
		HBAs: []driver.HBA{{Name: "fc1", WWPN: "20:00:00:25:b5:00:00:01"}, {Name: "fc2", WWPN: "20:00:00:25:b5:00:00:02"}}}
}

// Sim is a Peer over bmcsim.
type Sim struct {
	BMC     *bmcsim.BMC
	Machine *bmcsim.Machine
	CA      *bmcsim.CA
	Opener  func(ctx context.Context, ep bmc.Endpoint, cred bmc.Credential) (driver.BMC, error)
}

// SimCredential is the one login of a Sim.
func SimCredential() bmc.Credential {
	return bmc.Credential{User: "admin", Password: bmc.NewSecret("correct horse")}
}

// NewSim starts a simulated BMC of a vendor. open is the driver under test.
func NewSim(t testing.TB, profile bmcsim.Profile, on bool, open func(context.Context, bmc.Endpoint, bmc.Credential) (driver.BMC, error)) *Sim {
	t.Helper()
	ca, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	m := bmcsim.NewMachine(SimIdentity(), bmcsim.WithPower(on))
	b, err := bmcsim.New(bmcsim.Config{Name: "m1", Backend: m, Profile: profile, Users: []bmc.Credential{SimCredential()}}, ca)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close simulator: %v", err)
		}
	})
	return &Sim{BMC: b, Machine: m, CA: ca, Opener: open}
}

// Open implements Peer.
func (s *Sim) Open(ctx context.Context, wrongPassword bool) (driver.BMC, error) {
	cred := SimCredential()
	if wrongPassword {
		cred.Password = bmc.NewSecret("wrong")
	}
	return s.Opener(ctx, s.BMC.Endpoint(bmc.Auto, "m1"), cred)
}

// Truth implements Peer.
func (s *Sim) Truth(testing.TB) driver.PowerState { return s.Machine.Power() }

// Presses implements Peer.
func (s *Sim) Presses(testing.TB) int { return len(s.Machine.Presses()) }

// EndSessions, Silence, Stick and Sessions implement the optional interfaces.
func (s *Sim) EndSessions()  { s.BMC.EndSessions() }
func (s *Sim) Silence()      { s.BMC.SetFaults(func(f *bmcsim.Faults) { f.Hang = true }) }
func (s *Sim) Stick()        { s.BMC.SetFaults(func(f *bmcsim.Faults) { f.StuckChanging = true }) }
func (s *Sim) Sessions() int { return s.BMC.Sessions() }

// Fingerprint is the SHA-256 of a DER certificate in hex, as bmc.Endpoint wants it.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}
