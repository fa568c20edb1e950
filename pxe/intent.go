// Package pxe decides what a machine that asks to boot is given, and keeps the words of the boot
// plane. Its subpackages speak the protocols: dhcp, tftp, httpboot, ipxe; images keeps the files, and
// bootserver puts them together. It knows no topology and no store: its owner keeps a Table current.
package pxe

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/ipxe"
)

// Intent is what one machine, or one VM, shall get now: its addresses, and what to boot if a plan is
// booting it. Without Boot it is a reservation only: the machine boots from its own disk.
type Intent struct {
	Machine  string // name of the machine or VM; one intent each
	Run      string // run that boots it; empty for a reservation
	Epoch    uint64 // an intent with a lower epoch never replaces one with a higher
	NICs     []NIC
	Hostname string
	Boot     *Boot
	Expires  time.Time // end of the boot token; required with Boot
	// Held keeps the machine in its boot loader: it is given nothing to boot until an update of the intent lets it.
	Held bool
	// SecureBoot says that the machine's firmware starts signed programs only: it is given shim, GRUB and
	// a kernel or an EFI binary, and nothing that would need iPXE.
	SecureBoot bool

	// TokenHash is the SHA-256 of the boot token. Table.Set fills it; when it is given it must match,
	// which finds out a boot plane that was started with another key.
	TokenHash TokenHash
	// Nonce is that of the phone-home which consumed the token, as the durable record has it. An intent
	// with a nonce boots nothing more.
	Nonce string
}

// NIC is one address of the machine, bound to one Ethernet address. NICs on the same network may
// share the address: whichever boots gets it.
type NIC struct {
	MAC     MAC
	Address netip.Prefix // IPv4 address with its prefix length
	Gateway netip.Addr   // optional
	DNS     []netip.Addr // at most 8
	MTU     uint16       // 0: not told
	Lease   time.Duration
}

// Boot is what to boot; exactly one field is set, beside CHAP.
type Boot struct {
	Kernel *Kernel
	ISCSI  *ipxe.Target
	// CHAP is the name of the secret to log in to ISCSI with; empty for none. Its value is asked for when
	// the machine asks for its script.
	CHAP string
	// LocalDisk boots the first disk the firmware shows: a LUN behind a Fibre Channel HBA.
	LocalDisk bool
	HTTP      *Image
}

// Kernel is a Linux kernel with its initial RAM disks and parameters.
type Kernel struct {
	Kernel  Digest
	Initrds []Digest // at most 16
	Params  []ipxe.Param
}

// ByGRUB reports whether GRUB can boot it: a kernel or an EFI binary, and nothing on a disk.
func (b *Boot) ByGRUB() bool { return b.Kernel != nil || b.HTTP != nil && b.HTTP.Form == FormEFI }

// ImageForm is how a file is started.
type ImageForm string

const (
	FormEFI  ImageForm = "efi"  // an EFI binary
	FormDisk ImageForm = "disk" // a raw disk or ISO image
)

// Image is one file that the firmware or iPXE starts over HTTP.
type Image struct {
	File Digest
	Form ImageForm
}

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	runForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,255}$`)
	// RFC 1123 section 2.1: labels of letters, digits and inner hyphens.
	hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
)

// Validate names the first field that is wrong. It returns fault.Invalid.
func (in *Intent) Validate() error {
	if !nameForm.MatchString(in.Machine) {
		return in.bad("machine", fmt.Sprintf("%.80q is not a name", in.Machine))
	}
	if in.Hostname != "" && (len(in.Hostname) > 253 || !hostForm.MatchString(in.Hostname)) {
		return in.bad("hostname", fmt.Sprintf("%.80q is not a host name (RFC 1123)", in.Hostname))
	}
	if len(in.NICs) == 0 || len(in.NICs) > 64 {
		return in.bad("nics", "want 1 to 64")
	}
	for i, n := range in.NICs {
		if why := n.wrong(); why != "" {
			return in.bad(fmt.Sprintf("nics[%d]", i), why)
		}
		for _, o := range in.NICs[:i] {
			if o.MAC == n.MAC {
				return in.bad(fmt.Sprintf("nics[%d]", i), "two NICs have "+n.MAC.String())
			}
		}
	}
	if in.Boot == nil {
		return nil
	}
	if !runForm.MatchString(in.Run) {
		return in.bad("run", fmt.Sprintf("%.80q is not the id of a run", in.Run))
	}
	if in.Expires.IsZero() {
		return in.bad("expires", "a boot without an end")
	}
	if err := in.Boot.validate(); err != nil {
		return fault.Wrap(err, "boot", "intent for "+in.Machine)
	}
	return nil
}

func (in *Intent) bad(field, why string) error {
	return &fault.Error{Kind: fault.Invalid, Where: "intent for " + in.Machine, What: field, Evidence: why}
}

func (n NIC) wrong() string {
	a := n.Address.Addr()
	switch {
	case n.MAC == (MAC{}) || n.MAC[0]&1 != 0:
		return n.MAC.String() + " is not the address of one NIC"
	case !n.Address.IsValid() || !a.Is4() || a.IsUnspecified() || a.IsMulticast():
		return n.Address.String() + " is not an IPv4 address with a prefix length"
	case n.Gateway.IsValid() && !n.Address.Contains(n.Gateway):
		return "gateway " + n.Gateway.String() + " is outside " + n.Address.Masked().String()
	case len(n.DNS) > 8:
		return "more than 8 DNS servers"
	case n.Lease < 0:
		return "lease is negative"
	}
	for _, d := range n.DNS {
		if !d.Is4() {
			return "DNS server " + d.String() + " is not IPv4"
		}
	}
	return ""
}

func (b *Boot) validate() error {
	n := 0
	for _, set := range []bool{b.Kernel != nil, b.ISCSI != nil, b.LocalDisk, b.HTTP != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		return fault.Newf(fault.Invalid, "want one thing to boot, got %d", n)
	}
	switch {
	case b.CHAP != "" && b.ISCSI == nil:
		return fault.New(fault.Invalid, "CHAP without an iSCSI target")
	case b.ISCSI != nil:
		return b.ISCSI.Check()
	case b.HTTP != nil:
		if b.HTTP.Form != FormEFI && b.HTTP.Form != FormDisk {
			return fault.Newf(fault.Invalid, "image form %.20q: want efi or disk", b.HTTP.Form)
		}
		_, err := ParseDigest(string(b.HTTP.File))
		return err
	case b.Kernel != nil:
		return b.Kernel.validate()
	}
	return nil
}

func (k *Kernel) validate() error {
	if _, err := ParseDigest(string(k.Kernel)); err != nil {
		return err
	}
	if len(k.Initrds) > 16 {
		return fault.Newf(fault.Invalid, "%d initial RAM disks: at most 16", len(k.Initrds))
	}
	for _, d := range k.Initrds {
		if _, err := ParseDigest(string(d)); err != nil {
			return err
		}
	}
	if len(k.Params) > maxParams {
		return fault.Newf(fault.Invalid, "%d kernel parameters: at most %d", len(k.Params), maxParams)
	}
	// The boot plane adds its own: there must be room.
	return ipxe.CheckParams(append(slices.Clone(k.Params), ipxe.Param{Key: PhoneHomeParam, Value: strings.Repeat("x", 256)}))
}

const (
	maxParams = 128
	// PhoneHomeParam is the kernel parameter that tells the booted system where to report.
	PhoneHomeParam = "rerack.phonehome"
)
