// Package bmcsim is a data centre's worth of simulated BMCs: Redfish over HTTPS, IPMI 2.0 over UDP and
// Intel AMT over HTTPS on real sockets, with the habits of their vendors and with faults that can be set while they run.
//
// What a BMC controls is behind the small Backend interface: a Machine in memory, or the lab's world.
package bmcsim

import (
	"errors"
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/bmc/driver"
)

// Button is what a BMC can press on its machine.
type Button string

const (
	PressOn       Button = "on"
	PressOff      Button = "off"      // at once
	PressGraceful Button = "graceful" // ask the operating system
	PressReset    Button = "reset"
	PressCycle    Button = "cycle"
)

// RestorePolicy is what the machine does when mains power returns, in Redfish's words.
type RestorePolicy string

const (
	AlwaysOff RestorePolicy = "AlwaysOff"
	AlwaysOn  RestorePolicy = "AlwaysOn"
	LastState RestorePolicy = "LastState"
)

// ErrRefused is returned by a Backend that will not do it now; the BMC passes it on as 409 or D5h.
var ErrRefused = errors.New("refused in the present state")

// Backend is the machine behind a BMC. It is called by several goroutines.
type Backend interface {
	Identity() driver.Inventory
	Power() driver.PowerState // on, off or changing
	Press(Button) error       // returns when accepted
	Boot() driver.BootOverride
	SetBoot(driver.BootOverride) error
	PowerRestore() RestorePolicy
	SetPowerRestore(RestorePolicy) error
}

// Machine is a Backend in memory. It needs no goroutine: a transition ends when somebody looks after its
// time.
type Machine struct {
	id    driver.Inventory
	delay time.Duration
	now   func() time.Time

	mu      sync.Mutex
	on      bool
	turning bool // until which it is changing, towards on
	until   time.Time
	mains   bool
	boot    driver.BootOverride
	booted  []driver.BootOverride
	restore RestorePolicy
	presses []Button
}

// MachineOption changes a Machine at construction.
type MachineOption func(*Machine)

// WithTransition makes every power change take d, during which the state is changing.
func WithTransition(d time.Duration) MachineOption { return func(m *Machine) { m.delay = d } }

// WithClock replaces time.Now for transitions.
func WithClock(now func() time.Time) MachineOption { return func(m *Machine) { m.now = now } }

// WithPower starts the machine on.
func WithPower(on bool) MachineOption { return func(m *Machine) { m.on = on } }

// NewMachine returns a machine that is off, with mains power.
func NewMachine(id driver.Inventory, opts ...MachineOption) *Machine {
	m := &Machine{id: id, now: time.Now, mains: true, restore: LastState, boot: driver.BootOverride{Device: driver.BootDefault}}
	for _, o := range opts {
		o(m)
	}
	return m
}

// Identity implements Backend.
func (m *Machine) Identity() driver.Inventory { return m.id }

// Power implements Backend.
func (m *Machine) Power() driver.PowerState {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.power()
}

func (m *Machine) power() driver.PowerState {
	if !m.until.IsZero() && !m.now().Before(m.until) {
		m.on, m.until = m.turning, time.Time{}
	}
	switch {
	case !m.until.IsZero():
		return driver.PowerChanging
	case m.on:
		return driver.PowerOn
	}
	return driver.PowerOff
}

// Press implements Backend. Like the real thing, a machine that is still going down ignores PressOn.
func (m *Machine) Press(b Button) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.mains {
		return ErrRefused
	}
	m.presses = append(m.presses, b)
	state := m.power()
	switch b {
	case PressOn:
		if state == driver.PowerOff {
			m.turn(true)
		}
	case PressOff, PressGraceful:
		if state != driver.PowerOff {
			m.turn(false)
		}
	case PressReset, PressCycle:
		if state != driver.PowerOn {
			return ErrRefused
		}
		m.turn(true)
	}
	return nil
}

func (m *Machine) turn(on bool) {
	m.turning = on
	if m.delay > 0 {
		m.until = m.now().Add(m.delay)
	} else {
		m.on, m.until = on, time.Time{}
	}
	if !on {
		return
	}
	m.booted = append(m.booted, m.boot)
	if m.boot.Once {
		m.boot = driver.BootOverride{Device: driver.BootDefault}
	}
}

// Boot implements Backend.
func (m *Machine) Boot() driver.BootOverride {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boot
}

// SetBoot implements Backend.
func (m *Machine) SetBoot(b driver.BootOverride) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boot = b
	return nil
}

// PowerRestore implements Backend.
func (m *Machine) PowerRestore() RestorePolicy {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.restore
}

// SetPowerRestore implements Backend.
func (m *Machine) SetPowerRestore(p RestorePolicy) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restore = p
	return nil
}

// Mains takes away or gives back mains power; on return the restore policy decides.
func (m *Machine) Mains(present bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.power() != driver.PowerOff
	switch {
	case !present:
		m.mains, m.turning = false, was
		m.on, m.until = false, time.Time{}
	case !m.mains:
		m.mains = true
		if m.restore == AlwaysOn || (m.restore == LastState && m.turning) {
			m.turn(true)
		}
	}
}

// Presses returns every button that reached the machine.
func (m *Machine) Presses() []Button {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.presses)
}

// Boots returns the override that each start of the machine used.
func (m *Machine) Boots() []driver.BootOverride {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.booted)
}
