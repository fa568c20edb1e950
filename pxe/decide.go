package pxe

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/ipxe"
)

// Class is what kind of program asks for an address.
type Class uint8

const (
	ClassOS   Class = iota // an operating system, or anything that says nothing of booting
	ClassPXE               // firmware that boots by TFTP: option 60 PXEClient (RFC 4578, PXE 2.1)
	ClassHTTP              // UEFI HTTP boot: option 60 HTTPClient (UEFI 2.10 section 24.7.3)
	ClassIPXE              // iPXE: option 77 iPXE
)

func (c Class) String() string {
	return [...]string{"os", "pxe", "http", "ipxe"}[c]
}

// Arch is a processor architecture as in DHCP option 93 (IANA "Processor Architecture Types").
type Arch uint16

const (
	ArchBIOS      Arch = 0
	ArchEFIX64    Arch = 7 // and 9, which RFC 4578 erratum 4625 swaps with it: firmware sends either
	ArchEFIBC     Arch = 9
	ArchEFIARM64  Arch = 11
	ArchHTTPX64   Arch = 16
	ArchHTTPARM64 Arch = 19
)

// Loader returns the file name of the iPXE that a machine of this architecture loads, as Debian's
// package ipxe names them; "" for one we have none for.
func (a Arch) Loader() string {
	switch a {
	case ArchBIOS:
		return "undionly.kpxe"
	case ArchEFIX64, ArchEFIBC, ArchHTTPX64:
		return "snponly.efi"
	case ArchEFIARM64, ArchHTTPARM64:
		return "snponly-arm64.efi"
	}
	return ""
}

// GRUB returns the file name of the GRUB that a machine of this architecture loads, as UEFI's removable
// media and Debian's signed packages name them; "" where there is none.
func (a Arch) GRUB() string {
	switch a {
	case ArchEFIX64, ArchEFIBC:
		return "grubx64.efi"
	case ArchEFIARM64:
		return "grubaa64.efi"
	case ArchBIOS, ArchHTTPX64, ArchHTTPARM64: // Debian's GRUB does not speak HTTP
	}
	return ""
}

// Shim returns the file name of the shim that Secure Boot lets start, and that starts GRUB from the
// folder it was itself loaded from; "" where there is none.
func (a Arch) Shim() string {
	if g := a.GRUB(); g != "" {
		return "shim" + strings.TrimPrefix(g, "grub")
	}
	return ""
}

// Request is what is known of a client that asks.
type Request struct {
	MAC   MAC
	Class Class
	Arch  Arch
	// Link is an address on the client's link: the relay's link selection (RFC 3527) or giaddr. Without
	// it, Subnets are those of the interface. Only an address on that link is given.
	Link    netip.Addr
	Subnets []netip.Prefix
}

// Answer says how a request is answered.
type Answer uint8

const (
	Silent    Answer = iota // not at all: it is not ours, or must not boot
	LocalBoot               // an address and no boot file: the firmware goes on to its next device
	Serve                   // an address and a boot file
)

func (a Answer) String() string { return [...]string{"silent", "local-boot", "serve"}[a] }

// Reason is why a decision is what it is; each is a counter.
type Reason uint8

const (
	ReasonUnknown  Reason = iota // no intent has this Ethernet address
	ReasonOffLink                // the machine's address is not on the client's link
	ReasonLocal                  // nobody is booting this machine
	ReasonNoLoader               // architecture without a loader
	ReasonExpired                // the boot token is past its end
	ReasonConsumed               // the machine has phoned home already and asks again: it was reset
	ReasonOS                     // an operating system gets its address
	ReasonBoot                   // a plan is booting this machine
	reasons
)

func (r Reason) String() string {
	return [...]string{"unknown", "off-link", "local", "no-loader", "expired", "consumed", "os", "boot"}[r]
}

// Decision is what a request gets.
type Decision struct {
	Answer Answer
	Reason Reason
	Entry  *Entry // nil when unknown
	NIC    NIC
	// BootFile is a name for TFTP (ClassPXE) or a URL. It may hold the token: it is a secret.
	BootFile string
	// PhoneHome is the URL the booted system reports to, for iPXE and the system itself.
	PhoneHome string
}

// Decider answers: which boot for whom. It does no I/O and is safe for concurrent use.
type Decider struct {
	Table *Table
	// BaseURL is how machines reach the HTTP boot server: http://10.0.0.1:8080, without a final slash.
	BaseURL string
	// SilentLocal keeps quiet to firmware of known machines that no plan boots. Without it they get an
	// address and no boot file, which most firmware follows sooner to its next boot device.
	SilentLocal bool
	// Now is the clock of token ends; default time.Now.
	Now func() time.Time
}

// Validate names what is missing.
func (d *Decider) Validate() error {
	if d.Table == nil {
		return fault.New(fault.Invalid, "Decider.Table is missing")
	}
	u, err := url.Parse(d.BaseURL)
	if err != nil || strings.HasSuffix(d.BaseURL, "/") || ipxe.CheckURL(d.BaseURL) != nil || u.RawQuery != "" {
		return fault.Newf(fault.Invalid, "Decider.BaseURL %.80q: want http://host:port without a final slash", d.BaseURL)
	}
	return nil
}

// Decide picks the answer. Firmware and iPXE of a machine that may not boot now (token ended or used
// up) are met with silence rather than sent to an old disk; an operating system always gets the
// address that is reserved for it.
func (d *Decider) Decide(r Request) Decision {
	e, ok := d.Table.Lookup(r.MAC)
	if !ok {
		return Decision{Reason: ReasonUnknown}
	}
	nic, _ := e.NIC(r.MAC)
	dec := Decision{Entry: e, NIC: nic}
	boot := e.Intent.Boot
	switch {
	case !r.reaches(nic.Address):
		dec.Reason = ReasonOffLink
	case r.Class == ClassOS:
		dec.Answer, dec.Reason = LocalBoot, ReasonOS
		if boot != nil && e.Nonce() == "" && !d.Expired(e) {
			dec.PhoneHome = d.URL(e, PathPhoneHome)
		}
	case boot == nil:
		dec.Reason = ReasonLocal
		if !d.SilentLocal {
			dec.Answer = LocalBoot
		}
	case e.Nonce() != "":
		dec.Reason = ReasonConsumed
	case d.Expired(e):
		dec.Reason = ReasonExpired
	case r.Class == ClassIPXE:
		dec.Answer, dec.Reason = Serve, ReasonBoot
		dec.BootFile, dec.PhoneHome = d.URL(e, PathScript), d.URL(e, PathPhoneHome)
	case r.Class == ClassHTTP && boot.HTTP != nil && !e.Intent.Held:
		dec.Answer, dec.Reason = Serve, ReasonBoot
		dec.BootFile = d.URL(e, boot.HTTP.Path())
	default:
		dec.BootFile = d.loader(r, e)
		dec.Answer, dec.Reason = Serve, ReasonBoot
		if dec.BootFile == "" {
			dec.Answer, dec.Reason = Silent, ReasonNoLoader
		}
	}
	return dec
}

// loader is what the firmware loads first: iPXE, or where that cannot be, GRUB by way of TFTP. What GRUB
// does is in the folder that it comes from, so that is one of the machine's own.
func (d *Decider) loader(r Request, e *Entry) string {
	in := &e.Intent
	name := r.Arch.Loader()
	switch grub := in.Boot.ByGRUB(); {
	case in.SecureBoot && (!grub || r.Class != ClassPXE):
		return ""
	case in.SecureBoot:
		name = r.Arch.Shim()
	case grub && r.Class == ClassPXE && r.Arch == ArchEFIARM64:
		name = r.Arch.GRUB()
	case name != "" && r.Class == ClassHTTP:
		return d.URL(e, PathLoader+name)
	default:
		return name
	}
	if name == "" {
		return ""
	}
	return e.Path(name)
}

func (r *Request) reaches(a netip.Prefix) bool {
	if r.Link.IsValid() {
		return a.Contains(r.Link)
	}
	for _, p := range r.Subnets {
		if p.Contains(a.Addr()) {
			return true
		}
	}
	return false
}

// Expired reports whether the boot token of e is past its end.
func (d *Decider) Expired(e *Entry) bool { return !d.now().Before(e.Intent.Expires) }

func (d *Decider) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

// Paths below /boot/<token>/.
const (
	PathScript    = "script.ipxe"
	PathKernel    = "kernel"
	PathInitrd    = "initrd/" // and its number
	PathLoader    = "loader/" // and its name
	PathPhoneHome = "phone-home"
	PathJoin      = "join"
	PathOrders    = "capture/orders"
	PathReport    = "capture/report"
	PathConfig    = "grub.cfg" // by TFTP
)

// Params is the command line of the kernel that the machine of e boots.
func (d *Decider) Params(e *Entry) []ipxe.Param {
	return append(slices.Clone(e.Intent.Boot.Kernel.Params), ipxe.Param{Key: PhoneHomeParam, Value: d.URL(e, PathPhoneHome)})
}

// Root is the first element of the paths that hold a token.
const Root = "boot"

// Path is the name of path for the machine of e in TFTP. It holds the token: it is a secret.
func (e *Entry) Path(path string) string { return Root + "/" + e.text + "/" + path }

// Path is where the image lies below /boot/<token>/. Firmware takes the form from the extension when
// the server's media type does not tell it.
func (i *Image) Path() string {
	if i.Form == FormEFI {
		return "image/boot.efi"
	}
	return "image/disk.img"
}

// URL is the address of path for the machine of e. It holds the token: it is a secret.
func (d *Decider) URL(e *Entry, path string) string {
	return d.BaseURL + "/" + e.Path(path)
}
