package brocade

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Config says how one fabric is reached through one of its switches.
type Config struct {
	// URL of the switch, https://host[:port].
	URL string
	// VirtualFabric is the vf-id of every request; none when 0.
	VirtualFabric int
	// TLS verifies the switch: a pool of CAs, or a pinned certificate in VerifyConnection. The system's
	// CAs when nil.
	TLS *tls.Config
	// Login is asked for the account at every login. The account must be Rerack's own: a transaction that
	// it left open is taken for ours.
	Login func(ctx context.Context) (user, password string, err error)
	// BusyWait is the pause before a request that was answered 503 is sent once more; 4 s when 0, as in
	// the vendor's own tools.
	BusyWait time.Duration
	// StaleAfter is how old an open transaction of our account must be before it counts as left behind by
	// a crash. Longer than any call may take; 90 s when 0.
	StaleAfter time.Duration
	// MaxBytes bounds one answer; 16 MiB when 0: a zone database has at most 4 MB.
	MaxBytes int64
	// Logger gets what was cleaned up; discarded when nil.
	Logger *slog.Logger
}

// Validate names the first wrong key.
func (c Config) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, What: "brocade config " + key, Evidence: why}
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "":
		return bad("url", "\""+c.URL+"\" is not https://host[:port]")
	case c.VirtualFabric < 0 || c.VirtualFabric > 128:
		return bad("virtualFabric", "not in 1..128")
	case c.TLS != nil && c.TLS.InsecureSkipVerify && c.TLS.VerifyConnection == nil && c.TLS.VerifyPeerCertificate == nil:
		return bad("tls", "verifies nothing")
	case c.Login == nil:
		return bad("login", "missing")
	case c.BusyWait < 0:
		return bad("busyWait", "negative")
	case c.StaleAfter < 0:
		return bad("staleAfter", "negative")
	case c.MaxBytes < 0:
		return bad("maxBytes", "negative")
	}
	return nil
}

func (c Config) withDefaults() Config {
	c.URL = strings.TrimSuffix(c.URL, "/")
	if c.BusyWait == 0 {
		c.BusyWait = 4 * time.Second
	}
	if c.StaleAfter == 0 {
		c.StaleAfter = 90 * time.Second
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 16 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
