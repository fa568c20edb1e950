package bmc_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

func TestSecretIsNotPrinted(t *testing.T) {
	const canary = "s3cr3t-canary"
	cred := bmc.Credential{User: "admin", Password: bmc.NewSecret(canary)}
	raw, err := json.Marshal(cred)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "cred", cred, "secret", cred.Password, "ptr", &cred)
	out := fmt.Sprintf("%v %+v %#v %s %q %x %d %v", cred, cred, cred, cred.Password, cred.Password, cred.Password, cred.Password, &cred) + string(raw) + log.String()
	if strings.Contains(out, canary) || strings.Contains(out, fmt.Sprintf("%x", canary)) {
		t.Errorf("the secret is in %s", out)
	}
	if !strings.Contains(out, "[redacted]") {
		t.Error("no [redacted] printed")
	}
	if cred.Password.Reveal() != canary {
		t.Error("Reveal does not")
	}
}

// Errors that go to people and histories hold no password, whatever fails.
func TestErrorsHoldNoSecret(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, func(_ *bmcsim.Config, c *bmc.Config) { c.CallTimeout = 300 * time.Millisecond })
		const canary = "s3cr3t-canary"
		r.setPassword(canary)
		_, err := r.client().Power(bg(t))
		wantKind(t, err, fault.Unauthorized)
		if strings.Contains(err.Error(), canary) || strings.Contains(fmt.Sprintf("%+v %#v", err, err), canary) {
			t.Errorf("the password is in %v", err)
		}
	})
}

func TestEndpointValidate(t *testing.T) {
	ok := bmc.Endpoint{Address: "10.0.0.7"}
	for _, c := range []struct {
		change func(*bmc.Endpoint)
		want   string // "" is valid
	}{
		{func(*bmc.Endpoint) {}, ""},
		{func(e *bmc.Endpoint) { e.Address = "https://bmc7.example:8443/" }, ""},
		{func(e *bmc.Endpoint) { e.Address = "[fe80::1]:443" }, ""},
		{func(e *bmc.Endpoint) { e.Address = "amt://ws7.example" }, ""},
		{func(e *bmc.Endpoint) { e.Address, e.Protocol = "amt://ws7.example:16993", bmc.AMT }, ""},
		{func(e *bmc.Endpoint) { e.Address, e.Protocol = "amt://ws7.example", bmc.Redfish }, "protocol"},
		{func(e *bmc.Endpoint) { e.Address = "amt://u:p@ws7.example" }, "address"},
		{func(e *bmc.Endpoint) { e.Address = "" }, "address"},
		{func(e *bmc.Endpoint) { e.Address = "http://bmc7" }, "address"},
		{func(e *bmc.Endpoint) { e.Address = "https://u:p@bmc7" }, "address"},
		{func(e *bmc.Endpoint) { e.Address = "https://bmc7/redfish" }, "address"},
		{func(e *bmc.Endpoint) { e.Address = "bmc7/../x" }, "address"},
		{func(e *bmc.Endpoint) { e.Protocol = "telnet" }, "protocol"},
		{func(e *bmc.Endpoint) { e.Fingerprint = "abcd" }, "fingerprint"},
		{func(e *bmc.Endpoint) { e.Fingerprint = strings.Repeat("AB:", 31) + "AB" }, ""},
	} {
		e := ok
		c.change(&e)
		err := e.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%+v: %v", e, err)
		case c.want != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%+v: %v, want it to name %s", e, err, c.want)
		}
	}
	r := newRig(t, bmc.Redfish, true, nil)
	r.ep.Address = "ftp://x"
	_, err := r.client().Power(bg(t))
	wantKind(t, err, fault.Invalid)
}

func TestConfigValidate(t *testing.T) {
	creds := func(context.Context, string) (bmc.Credential, error) { return bmc.Credential{}, nil }
	for key, c := range map[string]bmc.Config{
		"openers":          {Credentials: creds},
		"credentials":      {Openers: openers()},
		"callTimeout":      {Openers: openers(), Credentials: creds, CallTimeout: -1},
		"breakerThreshold": {Openers: openers(), Credentials: creds, BreakerThreshold: -1},
	} {
		if _, err := bmc.NewFleet(c); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// The scheme of an address says the protocol.
func TestAddressSaysAMT(t *testing.T) {
	r := newRig(t, bmc.AMT, true, nil)
	r.ep.Address, r.ep.Protocol = "amt://"+r.ep.Address, bmc.Auto
	got, err := r.client().Power(bg(t))
	wantState(t, got, err, driver.PowerOn)
	if got.Source != "amt" {
		t.Errorf("source %s", got.Source)
	}
	if again := r.client(); again != r.fleet.Client(bmc.Endpoint{Machine: r.ep.Machine, Address: r.ep.Address, Protocol: bmc.AMT, CredentialRef: r.ep.CredentialRef,
		CA: r.ep.CA, ExpectUUID: r.ep.ExpectUUID, ExpectSerial: r.ep.ExpectSerial}) {
		t.Error("the same endpoint has two clients")
	}
}
