// Package bmctest is the contract of driver.BMC as tests. Every driver passes it against bmcsim, and
// against a third-party peer where there is one.
package bmctest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Peer is one BMC that the suite has for itself, with the truth behind it.
type Peer interface {
	// Open logs in with the right credentials, or with a wrong password.
	Open(ctx context.Context, wrongPassword bool) (driver.BMC, error)
	// Truth is the machine's real power state.
	Truth(t testing.TB) driver.PowerState
	// Presses counts the button presses that reached the machine.
	Presses(t testing.TB) int
}

// The rest is implemented by peers that can.
type (
	// SessionEnder forgets all sessions, as a reboot of the BMC does.
	SessionEnder interface{ EndSessions() }
	// Silencer makes the BMC answer nothing more.
	Silencer interface{ Silence() }
	// Stucker makes the BMC neither on nor off.
	Stucker interface{ Stick() }
	// SessionCounter counts open sessions on the BMC.
	SessionCounter interface{ Sessions() int }
)

// Harness describes a driver and its peer.
type Harness struct {
	// New starts a peer whose machine is on or off. It ends with t.
	New func(t *testing.T, on bool) Peer
	// Identity is what the peer's machine has; empty fields are not compared.
	Identity driver.Inventory
	// What the peer or the protocol cannot do.
	NoMode, NoPersistent, NoHTTPBoot, NoShutDown, NoRestore, NoIdentity bool
	// NoBoot: the peer's boot override does nothing by nature.
	NoBoot bool
}

// Run runs the contract.
func Run(t *testing.T, h Harness) {
	t.Run("reads the truth", h.readsTruth)
	t.Run("states an end and not a gesture", h.idempotent)
	t.Run("switches on and off", h.switches)
	t.Run("boot override", h.boot)
	t.Run("power restore", h.restore)
	t.Run("identity", h.identity)
	t.Run("refuses nonsense", h.nonsense)
	t.Run("wrong password is unauthorized", h.wrongPassword)
	t.Run("honours a context that is done", h.cancelled)
	t.Run("lost session is told", h.lostSession)
	t.Run("silence is never off", h.silence)
	t.Run("in between is changing or on", h.stuck)
	t.Run("close frees the session", h.closes)
}

// patience is how long any one thing may take on a loaded machine.
const patience = 60 * time.Second

func (h Harness) open(t *testing.T, on bool) (context.Context, Peer, driver.BMC) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	p := h.New(t, on)
	d, err := p.Open(ctx, false)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		bg, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = d.Close(bg) // a second close, or a peer that was made silent, may fail
	})
	return ctx, p, d
}

// wait polls until the truth is want.
func wait(t *testing.T, ctx context.Context, p Peer, want driver.PowerState) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for p.Truth(t) != want {
		select {
		case <-ctx.Done():
			t.Fatalf("machine is %s, want %s", p.Truth(t), want)
		case <-tick.C:
		}
	}
}

func (h Harness) readsTruth(t *testing.T) {
	for _, on := range []bool{false, true} {
		ctx, p, d := h.open(t, on)
		before := time.Now()
		r, err := d.Power(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if r.State != p.Truth(t) {
			t.Errorf("reads %s, machine is %s", r.State, p.Truth(t))
		}
		if r.At.Before(before) || r.At.After(time.Now()) || r.Source == "" {
			t.Errorf("reading without its time or source: %+v", r)
		}
	}
}

func (h Harness) idempotent(t *testing.T) {
	for _, c := range []struct {
		on     bool
		target driver.Target
	}{{true, driver.On}, {false, driver.Off}, {false, driver.ShutDown}} {
		ctx, p, d := h.open(t, c.on)
		if err := d.SetPower(ctx, c.target); err != nil {
			t.Errorf("%s on a machine that is there: %v", c.target, err)
		}
		if n := p.Presses(t); n != 0 {
			t.Errorf("%s on a machine that is there pressed %d times", c.target, n)
		}
	}
}

func (h Harness) switches(t *testing.T) {
	for _, c := range []struct {
		from   bool
		target driver.Target
		want   driver.PowerState
		skip   bool
	}{{false, driver.On, driver.PowerOn, false}, {true, driver.Off, driver.PowerOff, false}, {true, driver.ShutDown, driver.PowerOff, h.NoShutDown}} {
		if c.skip {
			continue
		}
		ctx, p, d := h.open(t, c.from)
		if err := d.SetPower(ctx, c.target); err != nil {
			t.Fatalf("%s: %v", c.target, err)
		}
		wait(t, ctx, p, c.want)
		if r, err := d.Power(ctx); err != nil || r.State != c.want {
			t.Errorf("after %s reads %s, %v", c.target, r.State, err)
		}
	}
}

func (h Harness) boot(t *testing.T) {
	if h.NoBoot {
		t.Skip("the peer ignores boot overrides by nature")
	}
	ctx, _, d := h.open(t, false)
	for _, want := range []driver.BootOverride{
		{Device: driver.BootPXE, Mode: driver.FirmwareUEFI, Once: true},
		{Device: driver.BootDefault},
		{Device: driver.BootDisk, Mode: driver.FirmwareBIOS, Once: false},
		{Device: driver.BootHTTP, Mode: driver.FirmwareUEFI, Once: true},
		{Device: driver.BootPXE, Once: true},
		{Device: driver.BootPXE, Once: true}, // again: writes are safe to repeat
		{Device: driver.BootDefault},
	} {
		if (h.NoMode && want.Mode == driver.FirmwareUEFI) || (h.NoPersistent && !want.Once && want.Device != driver.BootDefault) {
			want.Mode, want.Once = driver.FirmwareAny, true
		}
		err := d.SetBoot(ctx, want)
		if h.NoHTTPBoot && want.Device == driver.BootHTTP {
			if !fault.Is(err, fault.Unsupported) {
				t.Errorf("HTTP boot: %v, want unsupported", err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("set %+v: %v", want, err)
		}
		got, err := d.Boot(ctx)
		if err != nil {
			t.Fatalf("read after %+v: %v", want, err)
		}
		if want.Mode == driver.FirmwareAny || h.NoMode {
			got.Mode = want.Mode
		}
		if got != want {
			t.Errorf("set %+v, reads %+v", want, got)
		}
	}
}

func (h Harness) restore(t *testing.T) {
	ctx, _, d := h.open(t, false)
	p, ok := d.(driver.PowerRestorer)
	if !ok {
		t.Skip("the driver has no power restore policy")
	}
	refused := 0
	for _, off := range []bool{true, true, false} {
		err := p.SetPowerRestore(ctx, off)
		if h.NoRestore && (fault.Is(err, fault.Unsupported) || fault.Is(err, fault.Unverified)) {
			refused++
			continue
		}
		if err != nil {
			t.Errorf("stay off %t: %v", off, err)
		}
	}
	if h.NoRestore && refused == 0 {
		t.Error("a policy that the peer does not have was set")
	}
}

func (h Harness) identity(t *testing.T) {
	if h.NoIdentity {
		t.Skip("the peer has no identity to read")
	}
	ctx, _, d := h.open(t, false)
	inv, err := d.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := d.(driver.Identifier); ok {
		quick, err := id.Identity(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if quick.UUID != inv.UUID || quick.Serial != inv.Serial {
			t.Errorf("identity %+v differs from inventory %+v", quick, inv)
		}
	}
	want := h.Identity
	if inv.UUID != want.UUID || inv.UUID != strings.ToLower(inv.UUID) {
		t.Errorf("UUID %q, want %q", inv.UUID, want.UUID)
	}
	if want.Serial != "" && inv.Serial != want.Serial {
		t.Errorf("serial %q, want %q", inv.Serial, want.Serial)
	}
	if len(inv.NICs) != len(want.NICs) || len(inv.HBAs) != len(want.HBAs) {
		t.Fatalf("%d NICs and %d HBAs, want %d and %d", len(inv.NICs), len(inv.HBAs), len(want.NICs), len(want.HBAs))
	}
	for i, n := range want.NICs {
		if inv.NICs[i].MAC.String() != n.MAC.String() {
			t.Errorf("NIC %d: %s, want %s", i, inv.NICs[i].MAC, n.MAC)
		}
	}
	for i, w := range want.HBAs {
		if inv.HBAs[i].WWPN != w.WWPN {
			t.Errorf("HBA %d: %s, want %s", i, inv.HBAs[i].WWPN, w.WWPN)
		}
	}
}

func (h Harness) nonsense(t *testing.T) {
	ctx, p, d := h.open(t, true)
	if err := d.SetPower(ctx, "cycle"); !fault.Is(err, fault.Invalid) {
		t.Errorf("target cycle: %v, want invalid", err)
	}
	if err := d.SetBoot(ctx, driver.BootOverride{Device: "floppy", Once: true}); !fault.Is(err, fault.Invalid) {
		t.Errorf("device floppy: %v, want invalid", err)
	}
	if p.Presses(t) != 0 || p.Truth(t) != driver.PowerOn {
		t.Error("nonsense reached the machine")
	}
}

func (h Harness) wrongPassword(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p := h.New(t, true)
	d, err := p.Open(ctx, true)
	if err == nil {
		t.Fatal("logged in with a wrong password", d.Close(ctx))
	}
	if !fault.Is(err, fault.Unauthorized) {
		t.Errorf("%v is %s, want unauthorized", err, fault.KindOf(err))
	}
}

func (h Harness) cancelled(t *testing.T) {
	_, p, d := h.open(t, true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if r, err := d.Power(ctx); err == nil || r.State == driver.PowerOff {
		t.Errorf("power with a done context: %+v, %v", r, err)
	}
	if err := d.SetPower(ctx, driver.Off); err == nil {
		t.Error("power off with a done context succeeded")
	}
	if p.Truth(t) != driver.PowerOn {
		t.Error("a call with a done context switched the machine")
	}
}

func (h Harness) lostSession(t *testing.T) {
	ctx, p, d := h.open(t, true)
	e, ok := p.(SessionEnder)
	if !ok {
		t.Skip("the peer cannot forget sessions")
	}
	e.EndSessions()
	if _, err := d.Power(ctx); !errors.Is(err, driver.ErrSessionLost) {
		t.Errorf("%v, want a lost session", err)
	}
	if d2, err := p.Open(ctx, false); err != nil {
		t.Errorf("log in again: %v", err)
	} else if err := d2.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

func (h Harness) silence(t *testing.T) {
	ctx, p, d := h.open(t, true)
	s, ok := p.(Silencer)
	if !ok {
		t.Skip("the peer cannot be silenced")
	}
	s.Silence()
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	r, err := d.Power(short)
	if !fault.Is(err, fault.Timeout) && !fault.Is(err, fault.Unreachable) {
		t.Errorf("%v, want timeout or unreachable", err)
	}
	if r.State == driver.PowerOff || r.State == driver.PowerOn {
		t.Errorf("a silent BMC reads %s", r.State)
	}
}

func (h Harness) stuck(t *testing.T) {
	ctx, p, d := h.open(t, true)
	s, ok := p.(Stucker)
	if !ok {
		t.Skip("the peer cannot get stuck")
	}
	s.Stick()
	r, err := d.Power(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r.State != driver.PowerChanging && r.State != driver.PowerOn {
		t.Errorf("a machine in between reads %s", r.State)
	}
}

func (h Harness) closes(t *testing.T) {
	ctx, p, d := h.open(t, true)
	if err := d.Close(ctx); err != nil {
		t.Fatalf("close: %v", err)
	}
	c, ok := p.(SessionCounter)
	if !ok {
		return
	}
	// Where closing the connection is the logout, the BMC notices in its own time.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for c.Sessions() != 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("%d sessions left on the BMC", c.Sessions())
		case <-tick.C:
		}
	}
}
