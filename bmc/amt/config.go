package amt

import (
	"net"
	"time"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/internal/fault"
)

// Port is where AMT speaks WS-Management over TLS. Its plain HTTP port, 16992, is never used: firmware
// from CSME 16.1 on does not even have it (Intel AMT Implementation and Reference Guide, "Intel AMT and
// Security Considerations").
const Port = "16993"

// Config of one AMT endpoint.
type Config struct {
	Address     string // host:port
	User        string // a digest user; "admin" always is one
	Password    bmc.Secret
	CA          string        // PEM; empty means the system's certificate pool
	Fingerprint string        // SHA-256 of the certificate; when set it alone decides. Self-signed ones need it
	DialTimeout time.Duration // default 5 s
	MaxBody     int64         // bytes of one answer; default 1 MiB
	MaxRequests int           // HTTP requests in one driver call; default 64
}

// Validate fills in the defaults and names the first key that is wrong.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		return fault.Newf(fault.Invalid, "amt config: address: %q is not host:port", c.Address)
	}
	if c.DialTimeout <= 0 {
		c.DialTimeout = 5 * time.Second
	}
	if c.MaxBody <= 0 {
		c.MaxBody = 1 << 20
	}
	if c.MaxRequests <= 0 {
		c.MaxRequests = 64
	}
	return nil
}
