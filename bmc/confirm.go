package bmc

import (
	"time"

	"rerack.dev/rerack/bmc/driver"
)

// ConfirmOff is the pure half of rule F3: it reports whether the readings, in time order, end in n
// counted readings of Off that are each at least gap after the one counted before.
//
// An Off closer than gap to the last counted one neither counts nor harms. Any other state, a reading
// without a time and a time that runs backwards start the count again: unknown is never off.
func ConfirmOff(readings []driver.Reading, n int, gap time.Duration) bool {
	if n < 1 || gap < 0 {
		return false
	}
	count := 0
	var counted, seen time.Time
	for _, r := range readings {
		backwards := r.At.Before(seen)
		seen = r.At
		switch {
		case r.State != driver.PowerOff || r.At.IsZero() || backwards:
			count = 0
		case count == 0 || r.At.Sub(counted) >= gap:
			count, counted = count+1, r.At
		}
	}
	return count >= n
}
