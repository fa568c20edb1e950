package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Bridges is a Network of Linux bridges over one network interface of the host: one bridge for each VLAN
// that a machine is on, between the machines' cards and that VLAN, tagged, on the interface. What arrives
// there without a tag is the host's own and reaches no machine. On a machine's VLAN the host itself is
// nobody: it has no address there and answers to none. It needs the right to configure the network.
type Bridges struct {
	uplink string

	mu    sync.Mutex
	vlans map[int]int // how many cards are on each
}

// NewBridges returns a network over an interface; nothing is made yet.
func NewBridges(uplink string) *Bridges { return &Bridges{uplink: uplink, vlans: map[int]int{}} }

// Plug implements Network.
func (b *Bridges) Plug(_ context.Context, vm string, nic driver.NIC) (Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.vlans[nic.VLAN] == 0 {
		if err := b.open(nic.VLAN); err != nil {
			return Port{}, errors.Join(err, b.close(nic.VLAN))
		}
	}
	b.vlans[nic.VLAN]++
	unplug := sync.OnceValue(func() error { return b.unplug(nic.VLAN) })
	f, err := tap(bridgeName(nic.VLAN))
	if err != nil {
		b.mu.Unlock()
		defer b.mu.Lock()
		return Port{}, errors.Join(fault.Wrap(err, "make a network card's end", "VM "+vm), unplug())
	}
	return Port{File: f, Netdev: func(fd int) string { return fmt.Sprintf("tap,fd=%d", fd) }, Unplug: unplug}, nil
}

// unplug takes the VLAN away with its last card. The card's own end went with QEMU, which held it open.
func (b *Bridges) unplug(vlan int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.vlans[vlan]--; b.vlans[vlan] > 0 {
		return nil
	}
	delete(b.vlans, vlan)
	return b.close(vlan)
}

// The kernel allows 15 characters.
func bridgeName(vlan int) string { return fmt.Sprintf("rrb%d", vlan) }
func taggedName(vlan int) string { return fmt.Sprintf("rrv%d", vlan) }

// open makes a VLAN's bridge and its way out.
func (b *Bridges) open(vlan int) error {
	up, err := netlink.LinkByName(b.uplink)
	if err != nil {
		return fault.Wrap(err, "find the uplink", b.uplink)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName(vlan)
	off := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	attrs.Name, attrs.ParentIndex = taggedName(vlan), up.Attrs().Index
	tagged := &netlink.Vlan{LinkAttrs: attrs, VlanId: vlan}
	for _, l := range []netlink.Link{bridge, tagged} {
		if err := netlink.LinkAdd(l); err != nil {
			return fault.Wrap(err, "make "+l.Type(), l.Attrs().Name)
		}
		if err := nobody(l.Attrs().Name); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetMaster(tagged, bridge); err != nil {
		return fault.Wrap(err, "connect to "+bridge.Name, tagged.Name)
	}
	for _, l := range []netlink.Link{tagged, bridge} {
		if err := netlink.LinkSetUp(l); err != nil {
			return fault.Wrap(err, "turn on", l.Attrs().Name)
		}
	}
	return nil
}

// close takes a VLAN's bridge and its way out away, as far as they are there.
func (b *Bridges) close(vlan int) error {
	var all error
	for _, name := range []string{taggedName(vlan), bridgeName(vlan)} {
		l, err := netlink.LinkByName(name)
		var absent netlink.LinkNotFoundError
		if errors.As(err, &absent) {
			continue
		}
		if err == nil {
			err = netlink.LinkDel(l)
		}
		all = errors.Join(all, fault.Wrap(err, "take away", name))
	}
	return all
}

// nobody keeps the host itself off an interface (the kernel's Documentation/networking/ip-sysctl.rst): it
// takes no IPv6 address there, answers no ARP request, and drops what is sent to one of its own addresses
// from there, for no way leads back.
func nobody(name string) error {
	for _, s := range []struct{ key, value string }{{"ipv6/conf/%s/disable_ipv6", "1"}, {"ipv4/conf/%s/arp_ignore", "8"}, {"ipv4/conf/%s/rp_filter", "1"}, {"ipv4/conf/%s/forwarding", "0"}} {
		path := filepath.Join("/proc/sys/net", fmt.Sprintf(s.key, name))
		err := os.WriteFile(path, []byte(s.value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			return fault.Wrap(err, "keep the host off", path)
		}
	}
	return nil
}

// tap makes a network interface whose other side is a file, and connects it to a bridge. It is gone when
// the file is closed for the last time.
func tap(bridge string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	f := os.NewFile(uintptr(fd), "tap")
	err = func() error {
		req, err := unix.NewIfreq("rrt%d") // the kernel puts a number in
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return os.NewSyscallError("TUNSETIFF", err)
		}
		l, err := netlink.LinkByName(req.Name())
		if err != nil {
			return err
		}
		if err := nobody(req.Name()); err != nil {
			return err
		}
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(l, master), netlink.LinkSetUp(l))
	}()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
