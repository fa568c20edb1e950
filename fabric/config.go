package fabric

import (
	"log/slog"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Config says what is known of a switch beyond its driver.
type Config struct {
	Name string // for messages
	// Protected are the ports on the control plane's own path, which are never touched (hazard H32).
	Protected []string
	// CallTimeout bounds one call at the device; 10 s when 0, which is below every lock delay (rule F5).
	CallTimeout time.Duration
	// Logger gets changes and refusals; discarded when nil.
	Logger *slog.Logger
}

// Validate names the first wrong key.
func (c Config) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, What: "switch config " + key, Evidence: why}
	}
	switch {
	case c.Name == "":
		return bad("name", "missing")
	case c.CallTimeout < 0:
		return bad("callTimeout", "negative")
	}
	for _, p := range c.Protected {
		if p == "" {
			return bad("protected", "an empty port name")
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.CallTimeout == 0 {
		c.CallTimeout = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
