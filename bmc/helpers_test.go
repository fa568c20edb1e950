package bmc_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/amt"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/ipmi"
	"rerack.dev/rerack/bmc/redfish"
	"rerack.dev/rerack/internal/fault"
)

// jumpClock is a clock on which sleeping takes no time.
type jumpClock struct {
	mu    sync.Mutex
	now   time.Time
	onNap func(slept time.Duration)
}

func newClock() *jumpClock { return &jumpClock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *jumpClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *jumpClock) Sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	c.now = c.now.Add(d)
	nap := c.onNap
	c.mu.Unlock()
	if nap != nil {
		nap(d)
	}
	return ctx.Err()
}

// rig is a fleet with one simulated machine.
type rig struct {
	t     *testing.T
	clock *jumpClock
	m     *bmcsim.Machine
	b     *bmcsim.BMC
	fleet *bmc.Fleet
	ep    bmc.Endpoint

	mu    sync.Mutex
	creds bmc.Credential
}

func (r *rig) setPassword(pw string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.creds.Password = bmc.NewSecret(pw)
}

const password = "correct horse"

func openers() map[bmc.Protocol]bmc.Opener {
	return map[bmc.Protocol]bmc.Opener{
		bmc.Redfish: redfish.Opener{},
		bmc.AMT:     amt.Opener{},
		bmc.IPMI:    ipmi.Opener{Config: ipmi.Config{AttemptTimeout: 150 * time.Millisecond, Attempts: 3}},
	}
}

// newRig starts it. shape changes the simulator's and the fleet's configuration before.
func newRig(t *testing.T, p bmc.Protocol, on bool, shape func(*bmcsim.Config, *bmc.Config)) *rig {
	t.Helper()
	r := &rig{t: t, clock: newClock(), creds: bmc.Credential{User: "admin", Password: bmc.NewSecret(password)}}
	ca, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	r.m = bmcsim.NewMachine(bmctest.SimIdentity(), bmcsim.WithPower(on), bmcsim.WithTransition(4*time.Second), bmcsim.WithClock(r.clock.Now))
	sim := bmcsim.Config{Name: "a07", Backend: r.m, Users: []bmc.Credential{r.creds}}
	cfg := bmc.Config{Openers: openers(), Clock: r.clock, CallTimeout: 2 * time.Second, PollTimeout: time.Second,
		Credentials: func(_ context.Context, ref string) (bmc.Credential, error) {
			if ref != "vault/a07" {
				return bmc.Credential{}, fault.Newf(fault.NotFound, "no credential %q", ref)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.creds, nil
		}}
	if p == bmc.AMT {
		sim.Profile = bmcsim.AMT()
	}
	if shape != nil {
		shape(&sim, &cfg)
	}
	if r.b, err = bmcsim.New(sim, ca); err != nil {
		t.Fatal(err)
	}
	if r.fleet, err = bmc.NewFleet(cfg); err != nil {
		t.Fatal(err)
	}
	r.ep = r.b.Endpoint(p, "vault/a07")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = r.fleet.Close(ctx) // fails where the test made the BMC silent
		if err := r.b.Close(); err != nil {
			t.Errorf("close simulator: %v", err)
		}
	})
	return r
}

func (r *rig) client() *bmc.Client { return r.fleet.Client(r.ep) }

func (r *rig) faults(fn func(*bmcsim.Faults)) { r.b.SetFaults(fn) }

func bg(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// overAll runs a test over all protocols.
func overAll(t *testing.T, fn func(t *testing.T, p bmc.Protocol)) {
	for _, p := range []bmc.Protocol{bmc.Redfish, bmc.IPMI, bmc.AMT} {
		t.Run(string(p), func(t *testing.T) { fn(t, p) })
	}
}

func wantKind(t *testing.T, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Fatalf("error is %v (%v), want %s", err, fault.KindOf(err), k)
	}
}

func wantPresses(t *testing.T, m *bmcsim.Machine, want ...bmcsim.Button) {
	t.Helper()
	if got := m.Presses(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the machine was pressed %v, want %v", got, want)
	}
}

func wantState(t *testing.T, r driver.Reading, err error, want driver.PowerState) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if r.State != want {
		t.Errorf("reads %s, want %s", r.State, want)
	}
}
