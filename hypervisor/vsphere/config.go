package vsphere

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Config is one host.
type Config struct {
	Machine string // for messages
	URL     string // https URL of vCenter, or of the host itself
	TLS     *tls.Config
	Login   func(context.Context) (user, password string, err error)
	// Host is the host's name in the inventory; it may be empty where there is only one.
	Host string
	// Datastore is where the VMs' own files go, and what must be remembered of them.
	Datastore string
	// CPUShare is how many virtual CPUs share one of the host's threads; 1 when 0.
	CPUShare int
	// ReserveMiB is memory that VMs do not get.
	ReserveMiB int64
	// ReadTimeout bounds Capacity and VMs; 10 s when 0.
	ReadTimeout time.Duration
	// ChangeTimeout bounds a change, the wait for the lock included; 30 s when 0.
	ChangeTimeout time.Duration
	// LockBroken is after how long the lock of somebody else is taken for a dead one's; ChangeTimeout and
	// 5 s more when 0.
	LockBroken time.Duration
	// Logger gets what is not an error of a call; discarded when nil.
	Logger *slog.Logger
}

// Validate names the first wrong key.
func (c Config) Validate() error {
	bad := func(key string, v any) error {
		return &fault.Error{Kind: fault.Invalid, What: "vsphere host " + key, Evidence: fmt.Sprintf("%.100q", fmt.Sprint(v))}
	}
	u, err := url.Parse(c.URL)
	switch {
	case c.Machine == "":
		return bad("machine", "missing")
	case err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		return bad("url", "want https://host[:port]")
	case u.User != nil:
		return bad("url", "it holds a user name or password")
	case c.TLS == nil:
		return bad("tls", "missing")
	case c.TLS.InsecureSkipVerify && c.TLS.VerifyConnection == nil:
		return bad("tls", "it verifies nothing")
	case c.Login == nil:
		return bad("login", "missing")
	case c.Datastore == "" || strings.ContainsAny(c.Datastore, "[]/"):
		return bad("datastore", c.Datastore)
	case strings.Contains(c.Host, "/"):
		return bad("host", c.Host)
	case c.CPUShare < 0:
		return bad("cpuShare", c.CPUShare)
	case c.ReserveMiB < 0:
		return bad("reserveMiB", c.ReserveMiB)
	case c.ReadTimeout < 0:
		return bad("readTimeout", c.ReadTimeout)
	case c.ChangeTimeout < 0:
		return bad("changeTimeout", c.ChangeTimeout)
	case c.LockBroken != 0 && c.LockBroken <= c.withDefaults().ChangeTimeout:
		return bad("lockBroken", "a change may take longer")
	}
	return nil
}

func (c Config) withDefaults() Config {
	c.CPUShare = max(c.CPUShare, 1)
	if c.ReadTimeout == 0 {
		c.ReadTimeout = 10 * time.Second
	}
	if c.ChangeTimeout == 0 {
		c.ChangeTimeout = 30 * time.Second
	}
	if c.LockBroken == 0 {
		c.LockBroken = c.ChangeTimeout + 5*time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
