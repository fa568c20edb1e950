// Package lab is a data centre in a box: the machines, switches, fabrics and arrays of a topology, on
// loopback sockets behind their real management protocols, over one simulated world. Machines really
// ask DHCP, fetch by TFTP and HTTP and follow their iPXE script; workloads really log in to their iSCSI
// volumes and write. Racks burn on command.
package lab

import (
	"log/slog"
	"net/netip"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
)

// Config of a lab. Topology and Dir are required.
type Config struct {
	Topology *topology.Topology // what to build; not changed
	Dir      string             // gets secrets, certificates, images, sockets and the rewritten topology
	// FreePorts ignores the addresses that the topology declares on 127.0.0.0/8 and takes free ports of
	// 127.0.0.1, so that several labs run side by side.
	FreePorts  bool
	BootServer netip.AddrPort // where relays send DHCP; default 127.0.0.1:6767. SetBootServer changes it
	Post       time.Duration  // a machine's time from power-on to its boot device
	PostVM     time.Duration  // a virtual machine's
	WriteEvery time.Duration  // of every workload to every volume; default 200 ms
	ImageBytes int            // size of each generated boot file; default 64 KiB
	Profile    string         // vendor habits of the BMCs; default the label bmc-profile of a machine, else "generic"
	Seed       uint64         // of what is generated but need not be secret: images. 0 is a seed too
	QEMU       *QEMU          // optional: makes some machines real
	Logger     *slog.Logger   // default: discards
}

// Defaults of Config.
const (
	DefaultBootServer = "127.0.0.1:6767"
	defaultWriteEvery = 200 * time.Millisecond
	defaultImageBytes = 64 << 10
	minImageBytes     = 256
	// ProfileLabel of a machine names the vendor habits of its BMC.
	ProfileLabel = "bmc-profile"
)

// RelayPrefix holds the addresses of all DHCP relays of a lab: what a DHCP server must let in.
var RelayPrefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 6, 0, 0}), 16)

// Validate names the first key that is wrong and fills in the defaults.
func (c *Config) Validate() error {
	switch {
	case c.Topology == nil:
		return fault.New(fault.Invalid, "lab: Topology is missing")
	case c.Dir == "":
		return fault.New(fault.Invalid, "lab: Dir is missing")
	case c.Post < 0 || c.PostVM < 0 || c.WriteEvery < 0:
		return fault.New(fault.Invalid, "lab: Post, PostVM and WriteEvery are not negative")
	case c.ImageBytes != 0 && c.ImageBytes < minImageBytes:
		return fault.Newf(fault.Invalid, "lab: ImageBytes is below %d", minImageBytes)
	}
	if c.QEMU != nil {
		if err := c.QEMU.validate(); err != nil {
			return err
		}
	}
	if !c.BootServer.IsValid() {
		c.BootServer = netip.MustParseAddrPort(DefaultBootServer)
	}
	if c.WriteEvery == 0 {
		c.WriteEvery = defaultWriteEvery
	}
	if c.ImageBytes == 0 {
		c.ImageBytes = defaultImageBytes
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (c *Config) profileOf(m topology.Machine) string {
	switch {
	case c.Profile != "":
		return c.Profile
	case m.Meta.Labels[ProfileLabel] != "":
		return m.Meta.Labels[ProfileLabel]
	}
	return "generic"
}
