package amt_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/amt"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/bmctest"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

func ctxFor(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// open logs in to a healthy simulator.
func open(t *testing.T, profile bmcsim.Profile, on bool) (*bmctest.Sim, driver.BMC) {
	t.Helper()
	s := bmctest.NewSim(t, profile, on, amt.Opener{}.Open)
	d, err := s.Open(ctxFor(t), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(ctxFor(t)); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s, d
}

func wantKind(t *testing.T, err error, k fault.Kind, words ...string) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Fatalf("%v is %s, want %s", err, fault.KindOf(err), k)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not say %q", err, w)
		}
	}
}

var pxeOnce = driver.BootOverride{Device: driver.BootPXE, Once: true}

// The override is used up by the boot it was made for, and not by an earlier one.
func TestOverrideLastsOneBoot(t *testing.T) {
	ctx := ctxFor(t)
	s, d := open(t, bmcsim.AMT(), false)
	if err := d.SetBoot(ctx, pxeOnce); err != nil {
		t.Fatal(err)
	}
	if got := s.Machine.Boot(); got != pxeOnce {
		t.Errorf("the machine will boot %+v", got)
	}
	if err := d.SetPower(ctx, driver.On); err != nil {
		t.Fatal(err)
	}
	got, err := d.Boot(ctx)
	if err != nil || got.Device != driver.BootDefault {
		t.Errorf("after the boot: %+v, %v", got, err)
	}
	if booted := s.Machine.Boots(); len(booted) != 1 || booted[0] != pxeOnce {
		t.Errorf("booted %+v", booted)
	}
}

// What another console left for the next boot is seen, and goes when an override is made.
func TestLeftOptionsAreSeenAndCleared(t *testing.T) {
	ctx := ctxFor(t)
	for _, option := range []string{"BIOSSetup", "UseIDER", "SecureErase"} {
		s, d := open(t, bmcsim.AMT(), false)
		if err := d.SetBoot(ctx, pxeOnce); err != nil {
			t.Fatal(err)
		}
		if n := s.BMC.Count("options.put"); n != 0 {
			t.Errorf("options that were clear were written %d times", n)
		}
		s.BMC.SetAMTOption(option, "true")
		got, err := d.Boot(ctx)
		if err != nil || got.Device != driver.BootDevice("amt "+option) {
			t.Errorf("with %s left: %+v, %v", option, got, err)
		}
		if err := d.SetBoot(ctx, pxeOnce); err != nil {
			t.Fatalf("with %s left: %v", option, err)
		}
		if got, err = d.Boot(ctx); err != nil || got != pxeOnce {
			t.Errorf("after clearing %s: %+v, %v", option, got, err)
		}
		if n := s.BMC.Count("options.put"); n != 1 {
			t.Errorf("options written %d times", n)
		}
	}
}

func TestUnsupportedIsNamed(t *testing.T) {
	ctx := ctxFor(t)
	_, d := open(t, bmcsim.AMT(), true)
	wantKind(t, d.SetBoot(ctx, driver.BootOverride{Device: driver.BootPXE}), fault.Unsupported, "for good")
	wantKind(t, d.SetBoot(ctx, driver.BootOverride{Device: driver.BootHTTP, Once: true}), fault.Unsupported, "HTTP")
	if _, ok := d.(driver.PowerRestorer); ok {
		t.Error("AMT has no power restore policy to set")
	}

	hidden := bmcsim.AMT()
	hidden.NoBootOrder = true
	_, d = open(t, hidden, false)
	if err := d.SetBoot(ctx, pxeOnce); err != nil {
		t.Fatal(err)
	}
	_, err := d.Boot(ctx)
	wantKind(t, err, fault.Unsupported, "does not show its boot order")

	agentless := bmcsim.AMT()
	agentless.NoGraceful = true
	s, d := open(t, agentless, true)
	wantKind(t, d.SetPower(ctx, driver.ShutDown), fault.Unsupported, "AMT offers")
	if n := len(s.Machine.Presses()); n != 0 {
		t.Errorf("pressed %d times", n)
	}
}

// H05: a refusal because the machine is there already is success only by reading.
func TestRefusalIsCheckedByReading(t *testing.T) {
	ctx := ctxFor(t)
	s, d := open(t, bmcsim.AMT(), true)
	s.Machine.Mains(false)
	if err := d.SetPower(ctx, driver.Off); err != nil {
		t.Errorf("a machine without mains is off: %v", err)
	}
	wantKind(t, d.SetPower(ctx, driver.On), fault.Busy, "return value 4097")
}

// H13: the press took effect and its answer was lost.
func TestLostReply(t *testing.T) {
	ctx := ctxFor(t)
	s, d := open(t, bmcsim.AMT(), true)
	s.BMC.SetFaults(func(f *bmcsim.Faults) { f.LosePressReply = 1 })
	wantKind(t, d.SetPower(ctx, driver.Off), fault.Timeout)
	if got := s.Machine.Presses(); fmt.Sprint(got) != "[off]" {
		t.Errorf("pressed %v", got)
	}
	r, err := d.Power(ctx)
	if err != nil || r.State != driver.PowerOff {
		t.Errorf("reads %s, %v", r.State, err)
	}
	if err := d.SetPower(ctx, driver.Off); err != nil || len(s.Machine.Presses()) != 1 {
		t.Errorf("again: %v, pressed %v", err, s.Machine.Presses())
	}
}

func TestFullSessionTableIsBusy(t *testing.T) {
	one := bmcsim.AMT()
	one.MaxSessions = 1
	s, _ := open(t, one, true)
	_, err := s.Open(ctxFor(t), false)
	wantKind(t, err, fault.Busy, "503")
}

func TestRefusedLoginIsSentOnce(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.AMT(), true, amt.Opener{}.Open)
	const canary = "s3cr3t-canary"
	_, err := s.Opener(ctxFor(t), s.BMC.Endpoint(bmc.AMT, ""), bmc.Credential{User: "admin", Password: bmc.NewSecret(canary)})
	wantKind(t, err, fault.Unauthorized)
	if n := s.BMC.Count("login.refused"); n != 1 {
		t.Errorf("the wrong password was sent %d times", n)
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), canary) {
		t.Errorf("the password is in %v", err)
	}
}

// AMT forgets its nonces at times and says so as it says that a password is wrong.
func TestNonceResetIsALostSession(t *testing.T) {
	ctx := ctxFor(t)
	s, d := open(t, bmcsim.AMT(), true)
	s.BMC.EndSessions()
	_, err := d.Power(ctx)
	if !errors.Is(err, driver.ErrSessionLost) || fault.Is(err, fault.Unauthorized) {
		t.Errorf("%v", err)
	}
	if n := s.BMC.Count("login.refused"); n != 0 {
		t.Errorf("%d logins refused", n)
	}
}

func TestTrust(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.AMT(), true, nil)
	good := s.BMC.Endpoint(bmc.AMT, "")
	pin, err := s.BMC.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*bmc.Endpoint)
		ok     bool
	}{
		"right CA":                    {func(*bmc.Endpoint) {}, true},
		"by scheme":                   {func(e *bmc.Endpoint) { e.Address = "amt://" + e.Address }, true},
		"system CAs":                  {func(e *bmc.Endpoint) { e.CA = "" }, false},
		"another CA":                  {func(e *bmc.Endpoint) { e.CA = foreign.PEM() }, false},
		"pinned":                      {func(e *bmc.Endpoint) { e.CA, e.Fingerprint = "", pin }, true},
		"another pin":                 {func(e *bmc.Endpoint) { e.Fingerprint = strings.Repeat("00", 32) }, false},
		"name not in the certificate": {func(e *bmc.Endpoint) { e.Address = fmt.Sprintf("localhost:%d", s.BMC.Port()) }, false},
	} {
		ep := good
		c.change(&ep)
		before := s.BMC.Count("post")
		d, err := amt.Opener{}.Open(ctxFor(t), ep, bmctest.SimCredential())
		switch {
		case c.ok && err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.ok && !fault.Is(err, fault.Unsafe):
			t.Errorf("%s: %v is %s, want unsafe", name, err, fault.KindOf(err))
		case !c.ok && s.BMC.Count("post") != before:
			t.Errorf("%s: something was sent", name)
		}
		if d != nil {
			if err := d.Close(ctxFor(t)); err != nil {
				t.Error(err)
			}
		}
	}
}

// A server's BMC on another port is not disturbed, and one on AMT's port is not taken for AMT.
func TestProbe(t *testing.T) {
	ctx := ctxFor(t)
	ws := bmctest.NewSim(t, bmcsim.AMT(), true, nil)
	server := bmctest.NewSim(t, bmcsim.Generic(), true, nil)
	at := func(s *bmctest.Sim) amt.Opener { return amt.Opener{ProbePort: fmt.Sprint(s.BMC.Port())} }

	if err := at(ws).Probe(ctx, ws.BMC.Endpoint(bmc.Auto, "")); err != nil {
		t.Error(err)
	}
	wantKind(t, at(server).Probe(ctx, server.BMC.Endpoint(bmc.Auto, "")), fault.Unsupported, "is not AMT")
	before := server.BMC.Count("connect")
	wantKind(t, amt.Opener{}.Probe(ctx, server.BMC.Endpoint(bmc.Auto, "")), fault.Unsupported, "16993")
	if n := server.BMC.Count("connect"); n != before {
		t.Error("a BMC on another port was asked")
	}
	ws.BMC.SetFaults(func(f *bmcsim.Faults) { f.Drop = true })
	if err := at(ws).Probe(ctx, ws.BMC.Endpoint(bmc.Auto, "")); !fault.Is(err, fault.Unreachable) && !fault.Is(err, fault.Timeout) {
		t.Errorf("a dead AMT: %v", err)
	}
	for _, s := range []*bmctest.Sim{ws, server} {
		if n := s.BMC.Count("login"); n != 0 {
			t.Errorf("a probe logged in %d times", n)
		}
	}
}

func TestConfigValidate(t *testing.T) {
	if _, err := amt.Open(ctxFor(t), amt.Config{Address: "ws7"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "address") {
		t.Errorf("%v", err)
	}
}
