package bmc

import (
	"testing"
	"time"

	"rerack.dev/rerack/bmc/driver"
)

func TestDue(t *testing.T) {
	const again = 30 * time.Second
	for _, c := range []struct {
		target driver.Target
		state  driver.PowerState
		sends  int
		since  time.Duration
		want   bool
	}{
		{driver.On, driver.PowerOff, 0, 0, true},
		{driver.On, driver.PowerOff, 1, again - 1, false},
		{driver.On, driver.PowerOff, 1, again, true},
		{driver.On, driver.PowerChanging, 0, 0, false}, // it would be dropped, or be a cycle
		{driver.Off, driver.PowerOn, 0, 0, true},
		{driver.Off, driver.PowerChanging, 0, 0, true},
		{driver.Off, driver.PowerOn, 1, again, true},
		{driver.ShutDown, driver.PowerOn, 0, 0, true},
		{driver.ShutDown, driver.PowerOn, 1, time.Hour, false},
		// Unknown is never taken for anything, by no target.
		{driver.On, driver.PowerUnknown, 0, 0, false},
		{driver.Off, driver.PowerUnknown, 0, 0, false},
		{driver.ShutDown, driver.PowerUnknown, 0, 0, false},
		{driver.Off, driver.PowerUnknown, 3, time.Hour, false},
	} {
		if got := due(c.target, c.state, c.sends, c.since, again); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}
