package dhcp

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

// Mode is how the server lives with other DHCP servers.
type Mode uint8

const (
	// Full gives reserved addresses and boot files to the machines of the table, and to nobody else.
	Full Mode = iota
	// Proxy gives only boot files, beside a server that gives the addresses (proxyDHCP, PXE 2.1
	// section 2.2.3).
	Proxy
)

// Listener is one socket and the link behind it. Nothing is served on any other.
type Listener struct {
	Name     string         // the interface, for logs
	Conn     net.PacketConn // bound to port 67, or 4011 for the second step of proxyDHCP
	ServerID netip.Addr     // our address there: option 54
	// Subnets of the link itself. Without one, messages that come directly are not answered.
	Subnets []netip.Prefix
	// Relays from which messages are taken: both the sender's address and giaddr must be in one of
	// them. Without one, relayed messages are not answered.
	Relays []netip.Prefix
}

// Rogue is a foreign DHCP server that was seen at work for a client.
type Rogue struct {
	Server   netip.Addr
	MAC      pxe.MAC
	Listener string
	Evidence string // "OFFER", "REQUEST names it"
}

// Conflict is a machine that found its reserved address in use (DHCPDECLINE).
type Conflict struct {
	Machine string
	MAC     pxe.MAC
	Address netip.Addr
}

// Config of a Server. Zero values of the numbers mean the defaults named.
type Config struct {
	Decider   *pxe.Decider
	Reporter  *pxe.Reporter // optional
	Listeners []Listener
	Mode      Mode
	// NextServer is the TFTP server (siaddr and option 66); default the listener's ServerID.
	NextServer netip.Addr
	Workers    int // default 2
	// Queue bounds the messages waiting, in each of four ranks: booting machines go before others, and
	// REQUESTs before what begins an exchange. Default 4096.
	Queue int
	// Rate and Burst limit the messages of one client; default 20 a second and 40.
	Rate, Burst int
	Lease       time.Duration // where the reservation has none; default 1 h
	Friends     []netip.Addr  // other DHCP servers that may serve here
	OnRogue     func(Rogue)   // called at most once a second for each listener; must not block
	OnConflict  func(Conflict)
	Logger      *slog.Logger
}

// Validate names the first key that is wrong.
func (c *Config) Validate() error {
	if c.Decider == nil {
		return fault.New(fault.Invalid, "dhcp.Decider is missing")
	}
	if err := c.Decider.Validate(); err != nil {
		return err
	}
	if len(c.Listeners) == 0 {
		return fault.New(fault.Invalid, "dhcp.Listeners is empty: DHCP is served on named links only")
	}
	for i, l := range c.Listeners {
		at := fmt.Sprintf("dhcp.Listeners[%d]", i)
		switch {
		case l.Conn == nil:
			return fault.New(fault.Invalid, at+".Conn is missing")
		case !l.ServerID.Is4() || l.ServerID.IsUnspecified():
			return fault.New(fault.Invalid, at+".ServerID is not an IPv4 address")
		case len(l.Subnets)+len(l.Relays) == 0:
			return fault.New(fault.Invalid, at+" has neither Subnets nor Relays: it would serve nobody")
		}
	}
	if c.Workers < 0 || c.Queue < 0 || c.Rate < 0 || c.Burst < 0 || c.Lease < 0 {
		return fault.New(fault.Invalid, "dhcp: Workers, Queue, Rate, Burst and Lease are not negative")
	}
	return nil
}

func (c *Config) defaults() {
	c.Workers = or(c.Workers, 2)
	c.Queue = or(c.Queue, 4096)
	c.Rate = or(c.Rate, 20)
	c.Burst = or(c.Burst, 40)
	c.Lease = or(c.Lease, time.Hour)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
