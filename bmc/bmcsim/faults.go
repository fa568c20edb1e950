package bmcsim

import (
	"context"
	"time"

	"rerack.dev/rerack/bmc/driver"
)

// Faults are what is wrong with a BMC right now. The zero value is a healthy one.
type Faults struct {
	Delay          time.Duration // before every answer
	Hang           bool          // takes connections and datagrams and never answers
	HangAfterPress bool          // becomes Hang with the next button press (hazard H01)
	Drop           bool          // closes connections, ignores datagrams
	Refuse503      int           // that many answers are 503, or IPMI "node busy"
	ResetConn      int           // that many answers are lost after the request took effect (H13)
	LosePressReply int           // like ResetConn, for button presses only: HTTP clients repeat reads by themselves

	LieOff            bool // says off, whatever the machine does (H02)
	StuckChanging     bool // says PoweringOff for ever; IPMI says on (H03)
	DropOnInOffWindow int  // that many power-ons are accepted and forgotten (H04)
	IgnoreGraceful    bool // the operating system does not listen (H06)
	RefuseSame        bool // a press for the state that is there is 409 (H05)
	RevertBoot        bool // a boot override is accepted and dropped (H15)
	AuthFail          bool // refuses every new login

	// SwapIdentity makes the BMC that of another machine (H10, H11). Setting it ends all sessions.
	SwapIdentity *driver.Inventory

	RedirectTo string // answers every GET with a redirect to this URL (H14)
	LoopLinks  bool   // every collection page links to a next one (H14)
	Flood      int64  // every answer is padded to this many bytes (H14)
}

// Faults returns the present faults.
func (b *BMC) Faults() Faults {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.faults
}

// SetFaults changes faults while the BMC runs: fn gets the present ones. Requests that hang notice.
func (b *BMC) SetFaults(fn func(*Faults)) {
	b.mu.Lock()
	before := b.faults
	fn(&b.faults)
	after := b.faults
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()

	if after.SwapIdentity != before.SwapIdentity {
		b.EndSessions()
	}
	if after.Drop {
		b.closeConns()
	}
	if after.AuthFail != before.AuthFail && b.ipmi != nil {
		b.ipmi.refuseLogins(after.AuthFail)
	}
}

// take uses up one of a counted fault.
func (b *BMC) take(counter func(*Faults) *int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := counter(&b.faults)
	if *n <= 0 {
		return false
	}
	*n--
	return true
}

// stall holds a request back for Delay, and for as long as Hang is set. It is false when ctx
// or the BMC ended first.
func (b *BMC) stall(ctx context.Context) bool {
	if d := b.Faults().Delay; d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-b.done:
			return false
		case <-t.C:
		}
	}
	for {
		b.mu.Lock()
		hang, changed := b.faults.Hang, b.changed
		b.mu.Unlock()
		if !hang {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-b.done:
			return false
		case <-changed:
		}
	}
}

// power, press, boot, setBoot and identity are the machine as this BMC shows and controls it.

func (b *BMC) power() driver.PowerState {
	b.count("power.read")
	switch f := b.Faults(); {
	case f.LieOff:
		return driver.PowerOff
	case f.StuckChanging:
		return driver.PowerChanging
	}
	return b.cfg.Backend.Power()
}

func (b *BMC) press(button Button) error {
	b.count("press." + string(button))
	f := b.Faults()
	if f.RefuseSame {
		state := b.cfg.Backend.Power()
		if (button == PressOn && state == driver.PowerOn) || (button != PressOn && state == driver.PowerOff) {
			return ErrRefused
		}
	}
	if button == PressOn && b.take(func(f *Faults) *int { return &f.DropOnInOffWindow }) {
		return nil
	}
	if button == PressGraceful && f.IgnoreGraceful {
		return nil
	}
	err := b.cfg.Backend.Press(button)
	if b.take(func(f *Faults) *int { return &f.LosePressReply }) {
		b.SetFaults(func(f *Faults) { f.ResetConn++ })
	}
	if f.HangAfterPress {
		b.SetFaults(func(f *Faults) { f.Hang, f.HangAfterPress = true, false })
	}
	return err
}

func (b *BMC) boot() driver.BootOverride {
	b.count("boot.read")
	return b.cfg.Backend.Boot()
}

func (b *BMC) setBoot(o driver.BootOverride) error {
	b.count("boot.set")
	if b.Faults().RevertBoot {
		return nil
	}
	return b.cfg.Backend.SetBoot(o)
}

func (b *BMC) setRestore(p RestorePolicy) error {
	b.count("restore.set")
	return b.cfg.Backend.SetPowerRestore(p)
}

func (b *BMC) identity() driver.Inventory {
	if id := b.Faults().SwapIdentity; id != nil {
		return *id
	}
	return b.cfg.Backend.Identity()
}
