package bmc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

func TestEnsurePowerTouchesNothingWhenThere(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, nil)
		got, err := r.client().EnsurePower(bg(t), driver.On, bmc.PollPolicy{})
		wantState(t, got, err, driver.PowerOn)
		wantPresses(t, r.m)
		if n := r.b.Count("press.on") + r.b.Count("press.cycle") + r.b.Count("press.reset"); n != 0 {
			t.Errorf("the BMC was asked %d times to press something", n)
		}
	})
}

func TestEnsurePowerWaitsForTheState(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, false, nil)
		got, err := r.client().EnsurePower(bg(t), driver.On, bmc.PollPolicy{})
		wantState(t, got, err, driver.PowerOn)
		got, err = r.client().EnsurePower(bg(t), driver.Off, bmc.PollPolicy{})
		wantState(t, got, err, driver.PowerOff)
		wantPresses(t, r.m, bmcsim.PressOn, bmcsim.PressOff)
	})
}

// H04: power-ons in the off window are accepted and dropped.
func TestEnsurePowerSendsADroppedOnAgain(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, false, nil)
		r.faults(func(f *bmcsim.Faults) { f.DropOnInOffWindow = 3 })
		start := r.clock.Now()
		got, err := r.client().EnsurePower(bg(t), driver.On, bmc.PollPolicy{})
		wantState(t, got, err, driver.PowerOn)
		if n := r.b.Count("press.on"); n != 4 {
			t.Errorf("on was sent %d times, want 4", n)
		}
		if d := r.clock.Now().Sub(start); d < 90*time.Second || d > 110*time.Second {
			t.Errorf("took %s, want three times 30 s and a little", d)
		}
	})
}

// H03: PoweringOff for ever is not off.
func TestEnsurePowerDoesNotTakeChangingForOff(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	r.faults(func(f *bmcsim.Faults) { f.StuckChanging = true })
	got, err := r.client().EnsurePower(bg(t), driver.Off, bmc.PollPolicy{})
	wantKind(t, err, fault.Unverified)
	if got.State != driver.PowerChanging {
		t.Errorf("last reading is %s", got.State)
	}
	// And a power-on is not thrown at a machine in between.
	before := r.b.Count("press.on")
	_, err = r.client().EnsurePower(bg(t), driver.On, bmc.PollPolicy{})
	wantKind(t, err, fault.Unverified)
	if n := r.b.Count("press.on") - before; n != 0 {
		t.Errorf("on was sent %d times to a machine that is changing", n)
	}
}

// Complaint 1 and I19: unknown is never off, and nothing is sent on it.
func TestEnsurePowerSendsNothingOnUnknown(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, func(_ *bmcsim.Config, c *bmc.Config) { c.CallTimeout = 300 * time.Millisecond })
		if _, err := r.client().Power(bg(t)); err != nil {
			t.Fatal(err)
		}
		r.faults(func(f *bmcsim.Faults) { f.Hang = true })
		got, err := r.client().EnsurePower(bg(t), driver.On, bmc.PollPolicy{})
		wantKind(t, err, fault.Timeout)
		if got.State != driver.PowerUnknown {
			t.Errorf("a silent BMC reads %s", got.State)
		}
		r.faults(func(f *bmcsim.Faults) { f.Hang = false })
		wantPresses(t, r.m)
	})
}

// H01: accepts off, then answers nothing.
func TestEnsurePowerAcceptAloneIsNotOff(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, func(_ *bmcsim.Config, c *bmc.Config) { c.CallTimeout = 300 * time.Millisecond })
		r.faults(func(f *bmcsim.Faults) { f.HangAfterPress = true })
		got, err := r.client().EnsurePower(bg(t), driver.Off, bmc.PollPolicy{})
		wantKind(t, err, fault.Timeout)
		if got.State == driver.PowerOff {
			t.Error("reported off without having read it")
		}
	})
}

// H06: the operating system ignores the button.
func TestEnsurePowerForcesAfterAnIgnoredShutdown(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, nil)
		r.faults(func(f *bmcsim.Faults) { f.IgnoreGraceful = true })
		_, err := r.client().EnsurePower(bg(t), driver.ShutDown, bmc.PollPolicy{Timeout: time.Minute})
		wantKind(t, err, fault.Unverified)
		if n := r.b.Count("press.graceful"); n != 1 {
			t.Errorf("the button was pressed %d times", n)
		}
		wantPresses(t, r.m)
		got, err := r.client().EnsurePower(bg(t), driver.ShutDown, bmc.PollPolicy{ForceAfter: 90 * time.Second})
		wantState(t, got, err, driver.PowerOff)
		wantPresses(t, r.m, bmcsim.PressOff)
	})
}

// H05 is covered by the driver: refused because it is there already is success by reading only.
func TestSetPowerRefusedBecauseThere(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, nil)
		r.faults(func(f *bmcsim.Faults) { f.RefuseSame, f.LieOff = true, false })
		got, err := r.client().EnsurePower(bg(t), driver.Off, bmc.PollPolicy{})
		wantState(t, got, err, driver.PowerOff)
		if err := r.client().SetPower(bg(t), driver.Off); err != nil {
			t.Errorf("off on an off machine: %v", err)
		}
	})
}

// H13: the answer to off is lost after it took effect.
func TestEnsurePowerLostReply(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	c := r.client()
	r.faults(func(f *bmcsim.Faults) { f.LosePressReply = 1 })
	got, err := c.EnsurePower(bg(t), driver.Off, bmc.PollPolicy{})
	wantState(t, got, err, driver.PowerOff)
	wantPresses(t, r.m, bmcsim.PressOff)
	r.faults(func(f *bmcsim.Faults) { f.LosePressReply = 1 })
	wantKind(t, c.SetPower(bg(t), driver.On), fault.Timeout) // the effect is unknown, and says so
}

// H12: a burst of 503.
func TestEnsurePowerRidesOutBusy(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, false, nil)
		if _, err := r.client().Power(bg(t)); err != nil {
			t.Fatal(err)
		}
		r.faults(func(f *bmcsim.Faults) { f.Refuse503 = 5 })
		_, err := r.client().Power(bg(t))
		wantKind(t, err, fault.Busy)
		got, err := r.client().EnsurePower(bg(t), driver.On, bmc.PollPolicy{})
		wantState(t, got, err, driver.PowerOn)
		wantPresses(t, r.m, bmcsim.PressOn)
	})
}

func TestEnsurePowerStopsWithTheCaller(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	r.faults(func(f *bmcsim.Faults) { f.StuckChanging = true })
	ctx, cancel := context.WithCancel(bg(t))
	r.clock.onNap = func(time.Duration) { cancel() }
	_, err := r.client().EnsurePower(ctx, driver.Off, bmc.PollPolicy{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want cancelled", err)
	}
}

// H15 and complaint 4.
func TestEnsureBoot(t *testing.T) {
	want := driver.BootOverride{Device: driver.BootPXE, Mode: driver.FirmwareUEFI, Once: true}
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, false, nil)
		got, changed, err := r.client().EnsureBoot(bg(t), want)
		if p == bmc.AMT && got.Mode == driver.FirmwareAny {
			got.Mode = want.Mode // AMT has no say in it
		}
		if err != nil || !changed || got != want {
			t.Fatalf("%+v, changed %t, %v", got, changed, err)
		}
		_, changed, err = r.client().EnsureBoot(bg(t), want)
		if err != nil || changed {
			t.Errorf("again: changed %t, %v", changed, err)
		}
		if n := r.b.Count("boot.set"); n != 1 {
			t.Errorf("written %d times, want 1", n)
		}
		r.faults(func(f *bmcsim.Faults) { f.RevertBoot = true })
		_, _, err = r.client().EnsureBoot(bg(t), driver.BootOverride{Device: driver.BootDisk, Once: true})
		wantKind(t, err, fault.Unverified)
	})
}

// iDRAC 10 says success over IPMI, without effect.
func TestEnsureBootSeesAWriteWithoutEffect(t *testing.T) {
	r := newRig(t, bmc.IPMI, false, func(s *bmcsim.Config, _ *bmc.Config) { s.Profile = bmcsim.Dell() })
	_, _, err := r.client().EnsureBoot(bg(t), driver.BootOverride{Device: driver.BootPXE, Once: true})
	wantKind(t, err, fault.Unverified)
}

func TestReadOff(t *testing.T) {
	overAll(t, func(t *testing.T, p bmc.Protocol) {
		r := newRig(t, p, true, nil)
		naps := 0
		r.clock.onNap = func(time.Duration) {
			naps++
			switch naps { // lies off twice, shows the truth, and then goes off
			case 1:
				r.faults(func(f *bmcsim.Faults) { f.LieOff = true })
			case 3:
				r.faults(func(f *bmcsim.Faults) { f.LieOff = false })
			case 5:
				if err := r.m.Press(bmcsim.PressOff); err != nil {
					t.Error(err)
				}
			}
		}
		// The drivers stamp readings with the machine's own clock, so the gap is real and small here.
		got, err := r.client().ReadOff(bg(t), 3, time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if !bmc.ConfirmOff(got, 3, time.Millisecond) {
			t.Errorf("returned readings do not confirm: %+v", got)
		}
		if naps < 7 || r.m.Power() != driver.PowerOff {
			t.Errorf("confirmed after %d waits, machine is %s", naps, r.m.Power())
		}
	})
}

func TestReadOffGivesUp(t *testing.T) {
	r := newRig(t, bmc.Redfish, true, nil)
	_, err := r.client().ReadOff(bg(t), 3, 5*time.Second)
	wantKind(t, err, fault.Unverified)
}

func TestConfirmOff(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s int, st driver.PowerState) driver.Reading {
		return driver.Reading{State: st, At: t0.Add(time.Duration(s) * time.Second)}
	}
	off, on, ch, un := driver.PowerOff, driver.PowerOn, driver.PowerChanging, driver.PowerUnknown
	for _, c := range []struct {
		name string
		in   []driver.Reading
		want bool
	}{
		{"none", nil, false},
		{"three apart", []driver.Reading{at(0, off), at(5, off), at(10, off)}, true},
		{"too close", []driver.Reading{at(0, off), at(4, off), at(8, off)}, false},
		{"close ones between do not harm", []driver.Reading{at(0, off), at(2, off), at(5, off), at(7, off), at(10, off)}, true},
		{"on between", []driver.Reading{at(0, off), at(5, off), at(7, on), at(10, off)}, false},
		{"on at the end", []driver.Reading{at(0, off), at(5, off), at(10, off), at(11, on)}, false},
		{"changing resets", []driver.Reading{at(0, off), at(5, ch), at(10, off), at(15, off)}, false},
		{"unknown resets", []driver.Reading{at(0, off), at(5, un), at(10, off), at(15, off)}, false},
		{"anew after on", []driver.Reading{at(0, on), at(5, off), at(10, off), at(15, off)}, true},
		{"time runs backwards", []driver.Reading{at(0, off), at(5, off), at(4, off), at(10, off)}, false},
		{"no time", []driver.Reading{{State: off}, {State: off}, {State: off}}, false},
	} {
		if got := bmc.ConfirmOff(c.in, 3, 5*time.Second); got != c.want {
			t.Errorf("%s: %t, want %t", c.name, got, c.want)
		}
	}
	if bmc.ConfirmOff([]driver.Reading{at(0, off)}, 0, 0) || bmc.ConfirmOff([]driver.Reading{at(0, off)}, 1, -1) {
		t.Error("nonsense confirms")
	}
}

// Whatever the history, a confirmation means n Offs apart at the end with nothing else among them.
func TestConfirmOffProperty(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "n")
		gap := time.Duration(rapid.IntRange(0, 5).Draw(t, "gap")) * time.Second
		var in []driver.Reading
		now := t0
		for range rapid.IntRange(0, 20).Draw(t, "len") {
			now = now.Add(time.Duration(rapid.IntRange(-1, 6).Draw(t, "step")) * time.Second)
			in = append(in, driver.Reading{At: now, State: rapid.SampledFrom([]driver.PowerState{driver.PowerOff, driver.PowerOff, driver.PowerOff, driver.PowerOn, driver.PowerChanging, driver.PowerUnknown}).Draw(t, "state")})
		}
		if !bmc.ConfirmOff(in, n, gap) {
			return
		}
		first := len(in)
		for first > 0 && in[first-1].State == driver.PowerOff {
			first--
		}
		streak := in[first:]
		if len(streak) < n {
			t.Fatalf("confirmed with %d Offs at the end, want %d", len(streak), n)
		}
		if span := streak[len(streak)-1].At.Sub(streak[0].At); span < time.Duration(n-1)*gap && !backwards(streak) {
			t.Fatalf("confirmed over %s, want %s", span, time.Duration(n-1)*gap)
		}
	})
}

func backwards(rs []driver.Reading) bool {
	for i := 1; i < len(rs); i++ {
		if rs[i].At.Before(rs[i-1].At) {
			return true
		}
	}
	return false
}
