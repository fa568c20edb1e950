package bmc

import (
	"context"
	"time"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

// Client is one machine's BMC. It is safe for concurrent use: calls to one box run one after another.
type Client struct {
	ep  Endpoint
	box *box
	cfg Config
}

// Endpoint returns what the client was made for.
func (c *Client) Endpoint() Endpoint { return c.ep }

func (c *Client) call(ctx context.Context, what string, changes bool, fn func(context.Context, driver.BMC) error) error {
	return c.box.do(ctx, c.ep, call{what: what, budget: c.cfg.CallTimeout, changes: changes, fn: fn})
}

// Power reads the power state from the BMC now. On error the state is unknown, which never means off.
func (c *Client) Power(ctx context.Context) (driver.Reading, error) {
	return c.power(ctx, c.cfg.CallTimeout)
}

func (c *Client) power(ctx context.Context, budget time.Duration) (driver.Reading, error) {
	r := driver.Reading{State: driver.PowerUnknown}
	err := c.box.do(ctx, c.ep, call{what: "read power state", budget: budget, fn: func(ctx context.Context, drv driver.BMC) error {
		got, err := drv.Power(ctx)
		if err != nil {
			return err
		}
		if got.At.IsZero() {
			got.At = c.cfg.Clock.Now()
		}
		r = got
		return nil
	}})
	if err == nil {
		c.box.mu.Lock()
		c.box.last = r
		c.box.mu.Unlock()
	}
	return r, err
}

// Last returns the last reading and its age without asking the BMC; ok is false when there is none.
func (c *Client) Last() (r driver.Reading, age time.Duration, ok bool) {
	c.box.mu.Lock()
	r = c.box.last
	c.box.mu.Unlock()
	if r.At.IsZero() {
		return driver.Reading{State: driver.PowerUnknown}, 0, false
	}
	return r, c.cfg.Clock.Now().Sub(r.At), true
}

// SetPower verifies the machine's identity, asks for an end state and returns when the BMC has accepted
// it. That proves nothing yet: use EnsurePower, or ReadOff, to know.
func (c *Client) SetPower(ctx context.Context, t driver.Target) error {
	switch t {
	case driver.On, driver.Off, driver.ShutDown:
	default:
		return fault.Newf(fault.Invalid, "power target %q is none of on, off, shutdown", t)
	}
	return c.call(ctx, "set power "+string(t), true, func(ctx context.Context, drv driver.BMC) error {
		return drv.SetPower(ctx, t)
	})
}

// Boot reads the pending boot override.
func (c *Client) Boot(ctx context.Context) (driver.BootOverride, error) {
	var b driver.BootOverride
	err := c.call(ctx, "read boot override", false, func(ctx context.Context, drv driver.BMC) (err error) {
		b, err = drv.Boot(ctx)
		return err
	})
	return b, err
}

// EnsureBoot makes want the pending boot override: it reads, writes when they differ, and reads back.
// changed tells whether it wrote. A BMC that accepted and then shows something else is Unverified
// (hazard H15).
func (c *Client) EnsureBoot(ctx context.Context, want driver.BootOverride) (got driver.BootOverride, changed bool, err error) {
	err = c.call(ctx, "set boot override", true, func(ctx context.Context, drv driver.BMC) error {
		var err error
		if got, err = drv.Boot(ctx); err == nil && sameBoot(want, got) {
			return nil
		}
		if err := drv.SetBoot(ctx, want); err != nil {
			return err
		}
		changed = true
		if got, err = drv.Boot(ctx); err != nil {
			return fault.Wrap(err, "read back", "")
		}
		if !sameBoot(want, got) {
			return &fault.Error{Kind: fault.Unverified, What: "boot override reverted", Evidence: "asked for " + bootWords(want) + ", reads " + bootWords(got),
				Next: "set network boot first permanently in the firmware, and let the boot server decide"}
		}
		return nil
	})
	return got, changed, err
}

// sameBoot compares what was asked for with what is read. A reading without a mode is of a BMC that has
// no say in it (AMT, old Redfish): the firmware's own setting holds, and cannot be compared.
func sameBoot(want, got driver.BootOverride) bool {
	if want.Device == driver.BootDefault || got.Device == driver.BootDefault {
		return want.Device == got.Device
	}
	return want.Device == got.Device && want.Once == got.Once &&
		(want.Mode == driver.FirmwareAny || got.Mode == driver.FirmwareAny || want.Mode == got.Mode)
}

func bootWords(b driver.BootOverride) string {
	s := string(b.Device)
	if b.Device == driver.BootDefault {
		return s
	}
	if b.Mode != driver.FirmwareAny {
		s += " " + string(b.Mode)
	}
	if b.Once {
		return s + " once"
	}
	return s + " for good"
}

// SetPowerRestore sets and reads back what the machine does when mains power returns (rule F4).
func (c *Client) SetPowerRestore(ctx context.Context, stayOff bool) error {
	return c.call(ctx, "set power restore policy", true, func(ctx context.Context, drv driver.BMC) error {
		p, ok := drv.(driver.PowerRestorer)
		if !ok {
			return fault.New(fault.Unsupported, "this BMC's driver has no power restore policy")
		}
		return p.SetPowerRestore(ctx, stayOff)
	})
}

// Inventory reads what the BMC knows of its machine.
func (c *Client) Inventory(ctx context.Context) (driver.Inventory, error) {
	var inv driver.Inventory
	err := c.call(ctx, "read inventory", false, func(ctx context.Context, drv driver.BMC) (err error) {
		inv, err = drv.Inventory(ctx)
		return err
	})
	return inv, err
}

// VerifyIdentity compares the machine behind the BMC with the endpoint's ExpectUUID and ExpectSerial.
// Every changing call does so by itself.
func (c *Client) VerifyIdentity(ctx context.Context) error {
	return c.call(ctx, "verify identity", true, func(context.Context, driver.BMC) error { return nil })
}

// ResetLogin lets the next call try a login that was refused before. It is a person's decision.
func (c *Client) ResetLogin() {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	c.box.refused = nil
}

// Status tells what is known of the box without asking it.
func (c *Client) Status() Status {
	c.box.mu.Lock()
	defer c.box.mu.Unlock()
	s := c.box.status
	s.LoginRefused = c.box.refused != nil
	return s
}
