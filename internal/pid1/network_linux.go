package pid1

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"

	"rerack.dev/rerack/internal/fault"
)

// Lease is the address that a machine was given.
type Lease struct {
	Interface string
	MAC       net.HardwareAddr
	Address   netip.Prefix
	Gateway   netip.Addr // invalid: none
	lease     *nclient4.Lease
}

// asking is how long one network card waits for an answer before it asks again, with growing pauses.
const asking = time.Second

// Network turns all network cards on and asks on each for an address, until one is given or ctx ends:
// which card the machine booted from is not known any more, and the boot plane answers on that one alone.
// The address and its routes are set when it returns.
func Network(ctx context.Context, log *slog.Logger) (Lease, error) {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return Lease{}, fault.Wrap(err, "turn on", "lo")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan Lease)
	tried := map[string]bool{}
	look := time.NewTicker(asking) // cards appear late, when their drivers do
	defer look.Stop()
	for {
		for _, name := range cards() {
			if !tried[name] {
				tried[name] = true
				go ask(ctx, name, found, log)
			}
		}
		select {
		case l := <-found:
			return l, l.apply()
		case <-look.C:
		case <-ctx.Done():
			return Lease{}, &fault.Error{Kind: fault.Timeout, What: "take an address by DHCP", Err: ctx.Err(), Next: "look whether the switch port is in the provisioning network"}
		}
	}
}

// cards lists the network interfaces that are hardware.
func cards() []string {
	devices, _ := filepath.Glob("/sys/class/net/*/device") // the pattern is right
	for i, d := range devices {
		devices[i] = filepath.Base(filepath.Dir(d))
	}
	return devices
}

// ask asks on one card until it gets an address or ctx ends.
func ask(ctx context.Context, name string, found chan<- Lease, log *slog.Logger) {
	for ctx.Err() == nil {
		l, err := askOnce(ctx, name)
		if err == nil {
			select {
			case found <- l:
			case <-ctx.Done():
			}
			return
		}
		log.Debug("no address", "interface", name, "err", err)
		select {
		case <-time.After(asking):
		case <-ctx.Done():
		}
	}
}

func askOnce(ctx context.Context, name string) (Lease, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return Lease{}, err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return Lease{}, err
	}
	c, err := nclient4.New(name, nclient4.WithTimeout(asking), nclient4.WithRetry(5))
	if err != nil {
		return Lease{}, err
	}
	defer c.Close()
	l, err := c.Request(ctx)
	if err != nil {
		return Lease{}, err
	}
	return read(name, link.Attrs().HardwareAddr, l)
}

// read takes what we use out of an answer.
func read(name string, mac net.HardwareAddr, l *nclient4.Lease) (Lease, error) {
	out := Lease{Interface: name, MAC: mac, lease: l}
	addr, ok := netip.AddrFromSlice(l.ACK.YourIPAddr.To4())
	ones, bits := l.ACK.SubnetMask().Size()
	if !ok || addr.IsUnspecified() || bits != 32 {
		return Lease{}, fault.New(fault.Invalid, "a DHCP answer without an address and its network")
	}
	out.Address = netip.PrefixFrom(addr, ones)
	if routers := l.ACK.Router(); len(routers) > 0 {
		out.Gateway, _ = netip.AddrFromSlice(routers[0].To4())
	}
	return out, nil
}

// apply sets the address and the route to the world.
func (l Lease) apply() error {
	link, err := netlink.LinkByName(l.Interface)
	if err != nil {
		return fault.Wrap(err, "set an address", l.Interface)
	}
	n := &net.IPNet{IP: l.Address.Addr().AsSlice(), Mask: net.CIDRMask(l.Address.Bits(), 32)}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: n}); err != nil {
		return fault.Wrap(err, "set the address "+l.Address.String(), l.Interface)
	}
	if !l.Gateway.IsValid() {
		return nil
	}
	err = netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: l.Gateway.AsSlice()})
	return fault.Wrap(err, "set the route over "+l.Gateway.String(), l.Interface)
}

// leastPause keeps a lease of seconds from being renewed all the time.
const leastPause = 10 * time.Second

// Keep renews the lease at the half of its life until ctx ends. The address is kept also when nobody
// answers: it is reserved for this machine, and a boot server that is away must not take it off the net.
func (l Lease) Keep(ctx context.Context, log *slog.Logger) {
	for {
		life := l.lease.ACK.IPAddressLeaseTime(time.Hour)
		select {
		case <-time.After(max(life/2, leastPause)):
		case <-ctx.Done():
			return
		}
		renewed, err := l.renew(ctx)
		if err != nil {
			log.Warn("the address was not renewed and is kept", "address", l.Address, "err", err)
			continue
		}
		l.lease = renewed
	}
}

func (l Lease) renew(ctx context.Context) (*nclient4.Lease, error) {
	c, err := nclient4.New(l.Interface, nclient4.WithTimeout(asking), nclient4.WithRetry(5))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	renewed, err := c.Renew(ctx, l.lease, dhcpv4.WithBroadcast(true))
	var nak *nclient4.ErrNak
	if errors.As(err, &nak) {
		return nil, fault.New(fault.Conflict, "the boot server does not know this address any more")
	}
	return renewed, err
}

// Carrier reports whether an interface has a link.
func Carrier(name string) bool {
	b, err := os.ReadFile(filepath.Join("/sys/class/net", filepath.Base(name), "carrier"))
	return err == nil && string(trim(b)) == "1"
}
