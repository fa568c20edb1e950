package bmclib

import (
	"context"
	"io"
	"log"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bmc-toolbox/bmclib/v2/providers/asrockrack"
	"rerack.dev/rerack/bmc"
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

// One provider in the registry, so that nothing falls back; and over IPMI it is ours.
func TestRegistryHoldsOneProvider(t *testing.T) {
	for _, c := range []struct {
		profile bmcsim.Profile
		ipmi    bool
		want    string
	}{{bmcsim.AMI(), false, asrockrack.ProviderName}, {bmcsim.Generic(), true, (&Provider{}).Name()}} {
		s := bmctest.NewSim(t, c.profile, true, nil)
		o := Opener{}
		if c.ipmi {
			o.IPMIPort = strconv.Itoa(s.BMC.Port())
		}
		d, err := o.Open(ctxFor(t), s.BMC.Endpoint(bmc.BMCLib, ""), bmctest.SimCredential())
		if err != nil {
			t.Fatal(err)
		}
		reg := d.(*Driver).c.Registry.Drivers
		if len(reg) != 1 || reg[0].Name != c.want {
			t.Errorf("registry %v, want %s alone", reg, c.want)
		}
		if _, ours := reg[0].DriverInterface.(*Provider); ours != c.ipmi {
			t.Errorf("%s is ours: %t", reg[0].Name, ours)
		}
		if err := d.Close(ctxFor(t)); err != nil {
			t.Error(err)
		}
	}
}

func TestTLSIsVerified(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.AMI(), true, nil)
	good := s.BMC.Endpoint(bmc.BMCLib, "")
	pin, err := s.BMC.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*bmc.Endpoint)
		ok     bool
	}{
		"right CA":    {func(*bmc.Endpoint) {}, true},
		"system CAs":  {func(e *bmc.Endpoint) { e.CA = "" }, false},
		"pinned":      {func(e *bmc.Endpoint) { e.CA, e.Fingerprint = "", pin }, true},
		"another pin": {func(e *bmc.Endpoint) { e.Fingerprint = strings.Repeat("00", 32) }, false},
		"wrong name":  {func(e *bmc.Endpoint) { e.Address = "localhost:" + strconv.Itoa(s.BMC.Port()) }, false},
	} {
		ep := good
		c.change(&ep)
		before := s.BMC.Count("post")
		d, err := Opener{}.Open(ctxFor(t), ep, bmctest.SimCredential())
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

// Neither what goes wrong nor the library's own debugging puts a password where people read.
func TestNoSecretIsPrinted(t *testing.T) {
	const canary = "s3cr3t/canary"
	t.Setenv("DEBUG_BMCLIB", "true")
	t.Setenv("BMCLIB_LOG_LEVEL", "trace")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	printed := make(chan string)
	go func() {
		raw, _ := io.ReadAll(r)
		printed <- string(raw)
	}()
	stdout, stderr, logged := os.Stdout, os.Stderr, slog.Default()
	os.Stdout, os.Stderr = w, w
	log.SetOutput(w)
	slog.SetDefault(slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer func() {
		os.Stdout, os.Stderr = stdout, stderr
		slog.SetDefault(logged)
		log.SetOutput(stderr)
	}()

	cred := bmc.Credential{User: "admin", Password: bmc.NewSecret(canary)}
	var errs []string
	note := func(err error) {
		if err != nil {
			errs = append(errs, err.Error())
		}
	}
	for _, fault := range []func(*bmcsim.Faults){
		func(*bmcsim.Faults) {},
		func(f *bmcsim.Faults) { f.AuthFail = true },
		func(f *bmcsim.Faults) { f.Refuse503 = 1 },
		func(f *bmcsim.Faults) { f.ResetConn = 1 },
		func(f *bmcsim.Faults) { f.Drop = true },
	} {
		s := bmctest.NewSim(t, bmcsim.AMI(), true, nil)
		s.BMC.SetFaults(fault)
		ep := s.BMC.Endpoint(bmc.BMCLib, "")
		for _, o := range []Opener{{}, {IPMIPort: strconv.Itoa(s.BMC.Port())}} {
			ctx, cancel := context.WithTimeout(ctxFor(t), 500*time.Millisecond)
			d, err := o.Open(ctx, ep, cred)
			note(err)
			if d != nil {
				_, err = d.Power(ctx)
				note(err)
				note(d.Close(ctx))
			}
			cancel()
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := <-printed + strings.Join(errs, "\n")
	if len(errs) < 6 {
		t.Errorf("only %d things went wrong: %v", len(errs), errs)
	}
	if strings.Contains(out, canary) || strings.Contains(out, "s3cr3t%2Fcanary") {
		t.Errorf("the password is in %s", out)
	}
}

// A login on a board that the provider does not know is undone, and says so.
func TestUnknownBoardLeavesNoSession(t *testing.T) {
	ca, err := bmcsim.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	id := bmctest.SimIdentity()
	id.Model = "X570D4U"
	b, err := bmcsim.New(bmcsim.Config{Backend: bmcsim.NewMachine(id), Profile: bmcsim.AMI(), Users: []bmc.Credential{bmctest.SimCredential()}}, ca)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for range 3 {
		_, err = Opener{}.Open(ctxFor(t), b.Endpoint(bmc.BMCLib, ""), bmctest.SimCredential())
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "X570D4U") {
			t.Errorf("%v is %s, want unsupported with the board's name", err, fault.KindOf(err))
		}
	}
	if n := b.Sessions(); n != 0 {
		t.Errorf("%d sessions left", n)
	}
}

// ASRock Rack's API has no boot override, and says so instead of doing nothing.
func TestBootOverHTTPSIsUnsupported(t *testing.T) {
	s := bmctest.NewSim(t, bmcsim.AMI(), true, Opener{}.Open)
	d, err := s.Open(ctxFor(t), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetBoot(ctxFor(t), driver.BootOverride{Device: driver.BootPXE, Once: true}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("set: %v", err)
	}
	if _, err := d.Boot(ctxFor(t)); !fault.Is(err, fault.Unsupported) {
		t.Errorf("read: %v", err)
	}
	if err := d.Close(ctxFor(t)); err != nil {
		t.Error(err)
	}
}
