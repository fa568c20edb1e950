// Package redfish drives a BMC over Redfish (DMTF DSP0266) on HTTPS.
//
// It speaks the few requests it needs itself, on one held session: a power read is one GET of one
// resource. gofish supplies the schema's vocabulary. Its client is not used, because it ties a context to
// a connection, follows links without a bound, and fails a whole resource on one odd field.
package redfish

import (
	"net"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/internal/fault"
)

// Config of one BMC.
type Config struct {
	Address     string // host:port
	User        string
	Password    bmc.Secret
	CA          string // PEM; empty means the system's certificate pool
	Fingerprint string // SHA-256 of the BMC's certificate; when set it alone decides
	// UUID and Serial choose the system on a BMC that manages several.
	UUID, Serial string
	DialTimeout  time.Duration // default 5 s
	MaxBody      int64         // bytes of one answer; default 1 MiB
	MaxRequests  int           // HTTP requests in one driver call; default 256
	// ClockSkew tolerates a CA-signed certificate that is this far outside its dates (hazard H17: BMC
	// clocks are wrong). A pinned fingerprint never looks at dates.
	ClockSkew time.Duration
}

// Validate fills in the defaults and names the first key that is wrong.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fault.Newf(fault.Invalid, "redfish config: address: %q is not host:port", c.Address)
	}
	if c.DialTimeout <= 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.MaxBody <= 0 {
		c.MaxBody = 1 << 20
	}
	if c.MaxRequests <= 0 {
		c.MaxRequests = 256
	}
	if c.ClockSkew < 0 {
		return fault.Newf(fault.Invalid, "redfish config: clockSkew: %s is negative", c.ClockSkew)
	}
	return nil
}
