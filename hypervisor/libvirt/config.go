package libvirt

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Config is one host.
type Config struct {
	Machine string // for messages
	// Address is unix:///run/libvirt/libvirt-sock or tls://host[:port]; the port is 16514 without one.
	Address string
	// TLS is for tls://: our certificate, by which the host knows us, and whom we trust. The name that the
	// host's certificate must have is set from Address when ServerName is empty.
	TLS *tls.Config
	// Bridge names the host's bridge of a VLAN, with %d for its number: br-vlan%d. A VM whose bridge is not
	// there does not start.
	Bridge string
	// OVS names an Open vSwitch bridge on which NICs are tagged with their VLAN. One of Bridge and OVS is set.
	OVS string
	// FCDevice is the host's device path of a Fibre Channel LUN, with {wwpn} for the target port's 16 hex
	// digits and {lun} for the number: "/dev/disk/by-path/pci-0000:3b:00.0-fc-0x{wwpn}-lun-{lun}", as udev
	// names it after the HBA's place. Without one, volumes on Fibre Channel are refused.
	FCDevice string
	// Type is libvirt's domain type; kvm when empty. qemu emulates.
	Type string
	// CPUShare is how many virtual CPUs share one of the host's; 1 when 0.
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
		return &fault.Error{Kind: fault.Invalid, What: "libvirt host " + key, Evidence: fmt.Sprintf("%.100q", fmt.Sprint(v))}
	}
	network, address, err := endpoint(c.Address)
	switch {
	case c.Machine == "":
		return bad("machine", "missing")
	case err != nil:
		return bad("address", c.Address)
	case network == "tcp" && (c.TLS == nil || len(c.TLS.Certificates) == 0 && c.TLS.GetClientCertificate == nil):
		return bad("tls", "missing for "+address+", with a certificate of ours")
	case (c.Bridge == "") == (c.OVS == ""):
		return bad("bridge", "want exactly one of bridge and ovs")
	case c.Bridge != "" && !pattern(c.Bridge, "%d"):
		return bad("bridge", c.Bridge)
	case c.FCDevice != "" && (!strings.HasPrefix(c.FCDevice, "/") || !pattern(c.FCDevice, "{wwpn}") || !pattern(c.FCDevice, "{lun}") || !strings.HasSuffix(c.FCDevice, "{lun}")):
		return bad("fcDevice", c.FCDevice)
	case c.Type != "" && c.Type != "kvm" && c.Type != "qemu":
		return bad("type", c.Type)
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

// pattern reports whether a naming scheme has its verb once.
func pattern(s, verb string) bool { return strings.Count(s, verb) == 1 }

func (c Config) withDefaults() Config {
	if c.Type == "" {
		c.Type = "kvm"
	}
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

// tlsPort is libvirtd's, https://libvirt.org/remote.html.
const tlsPort = "16514"

// endpoint says what to dial.
func endpoint(s string) (network, address string, err error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "", "", err
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return "unix", u.Path, nil
	case u.Scheme == "tls" && u.Hostname() != "" && strings.Trim(u.Path, "/") == "":
		port := u.Port()
		if port == "" {
			port = tlsPort
		}
		return "tcp", net.JoinHostPort(u.Hostname(), port), nil
	}
	return "", "", fault.New(fault.Invalid, "want unix:///path or tls://host:port")
}
