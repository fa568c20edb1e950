package bmc_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/amt"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/bmc/redfish"
	"rerack.dev/rerack/internal/fault"
)

// Complaint 11: one failed login stops all callers of that BMC.
func TestOneRefusedLoginStopsAll(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, nil)
		r.setPassword("wrong")
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := r.client().Power(bg(t)); !fault.Is(err, fault.Unauthorized) {
					t.Errorf("%v, want unauthorized", err)
				}
			})
		}
		wg.Wait()
		if n := r.b.Count("login"); n != 1 {
			t.Errorf("%d logins with a wrong password, want 1", n)
		}
		if !r.client().Status().LoginRefused {
			t.Error("the status does not tell")
		}
		r.setPassword(password) // credentials change: on it goes
		if _, err := r.client().Power(bg(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestRefusedLoginIsResetByAPerson(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	r.faults(func(f *bmcsim.Faults) { f.AuthFail = true })
	_, err := r.client().Power(bg(t))
	wantKind(t, err, fault.Unauthorized)
	r.faults(func(f *bmcsim.Faults) { f.AuthFail = false })
	_, err = r.client().Power(bg(t))
	wantKind(t, err, fault.Unauthorized)
	r.client().ResetLogin()
	if _, err := r.client().Power(bg(t)); err != nil {
		t.Error(err)
	}
	if n := r.b.Count("login"); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}

func TestBreaker(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, func(_ *bmcsim.Config, c *bmc.Config) {
		c.CallTimeout, c.BreakerThreshold, c.BreakerOpen = 200*time.Millisecond, 3, 10*time.Second
	})
	r.faults(func(f *bmcsim.Faults) { f.Hang = true })
	for range 3 {
		_, err := r.client().Power(bg(t))
		wantKind(t, err, fault.Timeout)
	}
	before := r.b.Count("connect")
	for range 100 {
		_, err := r.client().Power(bg(t))
		wantKind(t, err, fault.Unreachable)
	}
	if n := r.b.Count("connect") - before; n != 0 {
		t.Errorf("%d connections while the breaker is open", n)
	}
	if st := r.client().Status(); st.OpenUntil.IsZero() || st.SilentCalls != 3 {
		t.Errorf("status %+v", st)
	}
	// Half-open: one probe, which fails, and the time doubles.
	_ = r.clock.Sleep(bg(t), 10*time.Second)
	_, err := r.client().Power(bg(t))
	wantKind(t, err, fault.Timeout)
	_ = r.clock.Sleep(bg(t), 19*time.Second)
	_, err = r.client().Power(bg(t))
	wantKind(t, err, fault.Unreachable)
	// It comes back.
	r.faults(func(f *bmcsim.Faults) { f.Hang = false })
	_ = r.clock.Sleep(bg(t), time.Second)
	got, err := r.client().Power(bg(t))
	wantState(t, got, err, driver.PowerOn)
	if st := r.client().Status(); !st.OpenUntil.IsZero() || st.SilentCalls != 0 {
		t.Errorf("status %+v after recovery", st)
	}
}

func TestBreakerIgnoresImpatientCallers(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	r.faults(func(f *bmcsim.Faults) { f.Hang = true })
	for range 10 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		_, _ = r.client().Power(ctx)
		cancel()
	}
	r.faults(func(f *bmcsim.Faults) { f.Hang = false })
	if _, err := r.client().Power(bg(t)); err != nil {
		t.Errorf("callers that gave up opened the breaker: %v", err)
	}
}

// H10, H11: another machine answers at the address.
func TestWrongMachineIsNotTouched(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, nil)
		if err := r.client().VerifyIdentity(bg(t)); err != nil {
			t.Fatal(err)
		}
		other := bmctest.SimIdentity()
		other.UUID, other.Serial = "11111111-2222-4333-8444-555555555555", "OTHER"
		r.faults(func(f *bmcsim.Faults) { f.SwapIdentity = &other })
		for _, act := range []func() error{
			func() error { return r.client().SetPower(bg(t), driver.Off) },
			func() error { _, err := r.client().EnsurePower(bg(t), driver.Off, bmc.PollPolicy{}); return err },
			func() error {
				_, _, err := r.client().EnsureBoot(bg(t), driver.BootOverride{Device: driver.BootPXE, Once: true})
				return err
			},
			func() error { return r.client().SetPowerRestore(bg(t), true) },
			func() error { return r.client().VerifyIdentity(bg(t)) },
		} {
			wantKind(t, act(), fault.Unsafe)
		}
		wantPresses(t, r.m)
		if n := r.b.Count("boot.set") + r.b.Count("restore.set"); n != 0 {
			t.Errorf("%d writes to a wrong machine", n)
		}
	})
}

func TestUndeclaredIdentityIsUnsafe(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	r.ep.ExpectUUID, r.ep.ExpectSerial = "", ""
	wantKind(t, r.client().SetPower(bg(t), driver.Off), fault.Unsafe)
	if _, err := r.client().Power(bg(t)); err != nil {
		t.Errorf("reading needs no identity: %v", err)
	}
	wantPresses(t, r.m)
}

func TestIdentityIsReadOncePerSession(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	if err := r.client().VerifyIdentity(bg(t)); err != nil {
		t.Fatal(err)
	}
	before := r.b.Count("get")
	for range 5 {
		if err := r.client().VerifyIdentity(bg(t)); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.b.Count("get") - before; n != 0 {
		t.Errorf("%d more reads", n)
	}
	r.b.EndSessions()
	if err := r.client().SetPower(bg(t), driver.Off); err != nil {
		t.Fatal(err)
	}
	if n := r.b.Count("login"); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
	wantPresses(t, r.m, bmcsim.PressOff)
}

func TestLostSessionIsOpenedAgain(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, nil)
		for range 3 {
			got, err := r.client().Power(bg(t))
			wantState(t, got, err, driver.PowerOn)
			r.b.EndSessions()
		}
		if n := r.b.Count("login"); n != 3 {
			t.Errorf("%d logins, want 3", n)
		}
	})
}

// One queue per BMC: callers never overlap, and share one connection and one session.
func TestOneCallAtATime(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	other := r.ep
	other.Machine = "same box, another name"
	var wg sync.WaitGroup
	for i := range 40 {
		ep := r.ep
		if i%2 == 0 {
			ep = other
		}
		wg.Go(func() {
			if _, err := r.fleet.Client(ep).Power(bg(t)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if c, l, s := r.b.Count("connect"), r.b.Count("login"), r.b.Sessions(); c != 1 || l != 1 || s != 1 {
		t.Errorf("%d connections, %d logins, %d sessions; want one each", c, l, s)
	}
	if err := r.fleet.Close(bg(t)); err != nil {
		t.Error(err)
	}
	if n := r.b.Sessions(); n != 0 {
		t.Errorf("%d sessions left after Close", n)
	}
}

func TestProtocolIsProbed(t *testing.T) {
	t.Run("redfish is preferred", func(t *testing.T) {
		r := newRig(t, bmc.Auto, true, nil)
		got, err := r.client().Power(bg(t))
		wantState(t, got, err, driver.PowerOn)
		if got.Source != "redfish" || r.client().Status().Protocol != bmc.Redfish {
			t.Errorf("source %s, status %+v", got.Source, r.client().Status())
		}
	})
	t.Run("ipmi where there is no redfish", func(t *testing.T) {
		r := newRig(t, bmc.Auto, true, func(s *bmcsim.Config, _ *bmc.Config) { s.NoRedfish = true })
		got, err := r.client().Power(bg(t))
		wantState(t, got, err, driver.PowerOn)
		if got.Source != "ipmi" {
			t.Errorf("source %s", got.Source)
		}
	})
	// AMT is asked on its own port only; the simulator's stands for it here.
	t.Run("amt where there is nothing else", func(t *testing.T) {
		r := newRig(t, bmc.Auto, true, func(s *bmcsim.Config, c *bmc.Config) {
			s.Profile = bmcsim.AMT()
			c.Openers = openers()
			c.Openers[bmc.AMT] = anyPort{}
		})
		got, err := r.client().Power(bg(t))
		wantState(t, got, err, driver.PowerOn)
		if got.Source != "amt" || r.client().Status().Protocol != bmc.AMT {
			t.Errorf("source %s, status %+v", got.Source, r.client().Status())
		}
	})
	t.Run("an amt that is not trusted gets no login", func(t *testing.T) {
		r := newRig(t, bmc.Auto, true, func(s *bmcsim.Config, c *bmc.Config) {
			s.Profile = bmcsim.AMT()
			c.Openers = openers()
			c.Openers[bmc.AMT] = anyPort{}
			delete(c.Openers, bmc.Redfish) // it is asked at the same address here, and would complain first
		})
		r.ep.Fingerprint = strings.Repeat("ab", 32)
		_, err := r.client().Power(bg(t))
		wantKind(t, err, fault.Unsafe)
		if n := r.b.Count("login"); n != 0 {
			t.Errorf("%d logins at an untrusted AMT", n)
		}
	})
	t.Run("nobody waits for amt", func(t *testing.T) {
		silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		for _, p := range []bmc.Protocol{bmc.Redfish, bmc.IPMI} {
			r := newRig(t, bmc.Auto, true, func(s *bmcsim.Config, c *bmc.Config) {
				s.NoRedfish = p == bmc.IPMI
				c.Openers = openers()
				c.Openers[bmc.AMT] = elsewhere{address: silent.Addr().String()}
			})
			got, err := r.client().Power(bg(t))
			wantState(t, got, err, driver.PowerOn)
			if got.Source != string(p) {
				t.Errorf("source %s, want %s", got.Source, p)
			}
		}
	})
	t.Run("a wrong certificate does not lead to ipmi", func(t *testing.T) {
		r := newRig(t, bmc.Auto, true, nil)
		r.ep.Fingerprint = strings.Repeat("ab", 32)
		_, err := r.client().Power(bg(t))
		wantKind(t, err, fault.Unsafe)
		if n := r.b.Count("login"); n != 0 {
			t.Errorf("%d logins at an untrusted BMC", n)
		}
	})
	t.Run("nothing there", func(t *testing.T) {
		r := newRig(t, bmc.Auto, true, nil)
		r.faults(func(f *bmcsim.Faults) { f.Drop = true })
		_, err := r.client().Power(bg(t))
		wantKind(t, err, fault.Unreachable)
	})
}

// anyPort is AMT asked for on whatever port the endpoint names.
type anyPort struct{ amt.Opener }

func (anyPort) Probe(ctx context.Context, ep bmc.Endpoint) error {
	_, port, err := net.SplitHostPort(ep.Address)
	if err != nil {
		return err
	}
	return amt.Opener{ProbePort: port}.Probe(ctx, ep)
}

// elsewhere asks for AMT at an address of its own.
type elsewhere struct {
	amt.Opener
	address string
}

func (e elsewhere) Probe(ctx context.Context, ep bmc.Endpoint) error {
	ep.Address = e.address
	return anyPort{}.Probe(ctx, ep)
}

// A probed protocol is remembered; when it has changed after the memory expired, an act that can hurt is
// refused, and a reading learns.
func TestProtocolChangeIsNotFollowedUnasked(t *testing.T) {
	deaf := &switchable{Opener: openers()[bmc.Redfish]}
	r := newRig(t, bmc.Auto, true, func(_ *bmcsim.Config, c *bmc.Config) {
		c.Openers = openers()
		c.Openers[bmc.Redfish] = deaf
		c.ProtocolTTL = time.Minute
	})
	if _, err := r.client().Power(bg(t)); err != nil {
		t.Fatal(err)
	}
	deaf.off.Store(true)
	r.b.EndSessions()
	_ = r.clock.Sleep(bg(t), 2*time.Minute)
	wantKind(t, r.client().SetPower(bg(t), driver.Off), fault.Unsafe)
	wantPresses(t, r.m)
	got, err := r.client().Power(bg(t))
	wantState(t, got, err, driver.PowerOn)
	if got.Source != "ipmi" {
		t.Errorf("source %s", got.Source)
	}
	if err := r.client().SetPower(bg(t), driver.Off); err != nil {
		t.Error(err)
	}
}

type switchable struct {
	bmc.Opener
	off atomic.Bool
}

func (s *switchable) Probe(ctx context.Context, ep bmc.Endpoint) error {
	if s.off.Load() {
		return fault.New(fault.Unreachable, "connection refused")
	}
	return s.Opener.Probe(ctx, ep)
}

func TestLastReading(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	if got, _, ok := r.client().Last(); ok || got.State != driver.PowerUnknown {
		t.Errorf("a reading before the first: %+v", got)
	}
	if _, err := r.client().Power(bg(t)); err != nil {
		t.Fatal(err)
	}
	before := r.b.Count("get")
	if got, _, ok := r.client().Last(); !ok || got.State != driver.PowerOn {
		t.Errorf("last %+v, %t", got, ok)
	}
	if r.b.Count("get") != before {
		t.Error("Last asked the BMC")
	}
}

// A hundred BMCs of which many hang, the first ones, so that they take all places: the rest is read while
// they hang. They are let go only when all others are in, so that the test depends on no time.
func TestPollIsNotHeldUpByHangingBoxes(t *testing.T) {
	const n, hang = 100, 40
	ca, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	farm := bmcsim.NewFarm(ca)
	defer func() {
		if err := farm.Close(); err != nil {
			t.Error(err)
		}
	}()
	cred := bmc.Credential{User: "admin", Password: bmc.NewSecret(password)}
	const poll = time.Minute
	fleet, err := bmc.NewFleet(bmc.Config{PollTimeout: poll, CallTimeout: poll,
		Openers:     map[bmc.Protocol]bmc.Opener{bmc.Redfish: redfish.Opener{Config: redfish.Config{DialTimeout: poll}}},
		Credentials: func(context.Context, string) (bmc.Credential, error) { return cred, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = fleet.Close(ctx) // on failure some still hang
	}()
	var (
		eps   []bmc.Endpoint
		stuck []*bmcsim.BMC
	)
	for i := range n {
		m := bmcsim.NewMachine(driver.Inventory{UUID: fmt.Sprintf("00000000-0000-4000-8000-%012d", i)}, bmcsim.WithPower(i%2 == 0))
		b, err := farm.Add(bmcsim.Config{Name: fmt.Sprintf("m%d", i), Backend: m, Users: []bmc.Credential{cred}})
		if err != nil {
			t.Fatal(err)
		}
		if i < hang {
			b.SetFaults(func(f *bmcsim.Faults) { f.Hang = true })
			stuck = append(stuck, b)
		}
		eps = append(eps, b.Endpoint(bmc.Redfish, "all"))
	}
	good, hanging := 0, true
	fleet.Poll(context.Background(), eps, 8, func(r bmc.PollResult) {
		if r.Err != nil {
			t.Errorf("%s after %d good readings: %v", r.Endpoint.Machine, good, r.Err)
			return
		}
		if good++; good == n-hang && hanging {
			hanging = false
			for _, b := range stuck {
				b.SetFaults(func(f *bmcsim.Faults) { f.Hang = false })
			}
		}
	})
	if good != n {
		t.Errorf("%d of %d read", good, n)
	}
}

func TestUnreachableIsTold(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, nil)
		r.ep.Address = addr
		got, err := r.client().Power(bg(t))
		wantKind(t, err, fault.Unreachable)
		var fe *fault.Error
		if !errors.As(err, &fe) || !strings.Contains(fe.Where, "a07") || got.State != driver.PowerUnknown {
			t.Errorf("%+v, %v", got, err)
		}
	})
}
