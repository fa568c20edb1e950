package ovs

import (
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// DefaultQuarantineVLAN is the highest VLAN id of IEEE 802.1Q that ports may use (4095 is reserved).
const DefaultQuarantineVLAN = 4094

// Config says where an Open vSwitch is and how it is used.
type Config struct {
	// Endpoint of its database server in the notation of ovsdb(7): tcp:host:port, ssl:host:port or
	// unix:path. tcp has no authentication at all: only for loopback and locked-down management networks.
	Endpoint string
	// Bridge whose ports are managed.
	Bridge string
	// QuarantineVLAN is where shut ports are put; DefaultQuarantineVLAN when 0. Nothing else may use it,
	// and uplinks should not carry it.
	QuarantineVLAN int
	// TLS verifies an ssl: endpoint and carries the client's certificate.
	TLS *tls.Config
	// Settle is how long the switch daemon may take to act on what the database says; 5 s when 0.
	Settle time.Duration
	// MaxBytes bounds what one call reads from the switch; 16 MiB when 0.
	MaxBytes int64
	// Logger gets warnings; discarded when nil.
	Logger *slog.Logger
}

// Validate names the first wrong key.
func (c Config) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, What: "Open vSwitch config " + key, Evidence: why}
	}
	network, address, ok := c.dialTarget()
	switch {
	case !ok:
		return bad("endpoint", "\""+c.Endpoint+"\" is none of tcp:host:port, ssl:host:port, unix:path")
	case network == "tcp":
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
			return bad("endpoint", "\""+address+"\" is not host:port")
		}
	}
	switch {
	case c.Bridge == "":
		return bad("bridge", "missing")
	case c.QuarantineVLAN < 0 || c.QuarantineVLAN > 4094:
		return bad("quarantineVLAN", "not in 1..4094")
	case c.secure() && c.TLS == nil:
		return bad("tls", "an ssl: endpoint needs certificates to verify it with")
	case c.TLS != nil && c.TLS.InsecureSkipVerify && c.TLS.VerifyConnection == nil && c.TLS.VerifyPeerCertificate == nil:
		return bad("tls", "verifies nothing")
	case c.Settle < 0:
		return bad("settle", "negative")
	case c.MaxBytes < 0:
		return bad("maxBytes", "negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.QuarantineVLAN == 0 {
		c.QuarantineVLAN = DefaultQuarantineVLAN
	}
	if c.Settle == 0 {
		c.Settle = 5 * time.Second
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 16 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) secure() bool { return strings.HasPrefix(c.Endpoint, "ssl:") }

// dialTarget splits the endpoint into what net.Dial wants.
func (c Config) dialTarget() (network, address string, ok bool) {
	scheme, rest, found := strings.Cut(c.Endpoint, ":")
	if !found || rest == "" {
		return "", "", false
	}
	switch scheme {
	case "tcp", "ssl":
		return "tcp", rest, true
	case "unix":
		return "unix", rest, true
	}
	return "", "", false
}
