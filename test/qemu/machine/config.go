// Package machine runs a QEMU process as one physical machine: its power is the process, its network
// cards are plugged into ports of a vswitch, its serial console goes to a file, and it boots from what
// it is told to. Firmware is SeaBIOS or OVMF; nothing runs with privilege.
package machine

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/kvmprobe"
)

// Firmware is what starts a machine.
type Firmware string

const (
	BIOS Firmware = "bios" // SeaBIOS; the network card's ROM is iPXE
	UEFI Firmware = "uefi" // OVMF, on arm64 AAVMF, which boots by PXE and by HTTP itself
)

// Arch is a machine's processor architecture.
type Arch string

const (
	X86   Arch = "x86_64"
	ARM64 Arch = "arm64" // UEFI only
)

// Device is what a machine boots from.
type Device string

const (
	Network Device = "network" // PXE
	HTTP    Device = "http"    // UEFI HTTP boot; UEFI only
	Disk    Device = "disk"
)

// Boot is what one life of a machine starts with.
type Boot struct {
	Device Device
	// Kernel is started instead by the machine's firmware: what an operating system on a disk of its own
	// would be.
	Kernel *Kernel
}

// Kernel is a Linux kernel outside the machine.
type Kernel struct{ Path, Initrd, Cmdline string }

// NIC is a network card.
type NIC struct {
	MAC  net.HardwareAddr
	Port Plug
}

// Plug is a port that a stream of frames can be plugged into: of package vswitch, or of a real switch.
type Plug interface {
	// Serve passes frames until ctx ends or the far end is gone. It closes the stream.
	Serve(ctx context.Context, c net.Conn) error
}

// files is where Debian's packages have UEFI's code, and its variables as they leave the factory: for Secure
// Boot with Microsoft's keys, as in most servers.
func (c *Config) files() (code, vars, pkg string) {
	switch {
	case c.Arch == ARM64 && c.SecureBoot:
		return "/usr/share/AAVMF/AAVMF_CODE.ms.fd", "/usr/share/AAVMF/AAVMF_VARS.ms.fd", "qemu-efi-aarch64"
	case c.Arch == ARM64:
		return "/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd", "qemu-efi-aarch64"
	case c.SecureBoot:
		return "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", "ovmf"
	}
	return "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf"
}

// Config of a Machine. Name, Dir, MemoryMiB and Console are required.
type Config struct {
	Name         string
	Arch         Arch     // default X86
	QEMU         string   // the emulator; default that of Arch, from PATH
	Dir          string   // gets UEFI's variables
	Console      string   // file to which the serial console is appended
	MemoryMiB    int64    // at least 64, for UEFI 192
	CPUs         int      // default 1
	Firmware     Firmware // default BIOS, for ARM64 UEFI
	SecureBoot   bool     // UEFI only: it starts what Microsoft signed
	UUID, Serial string   // as SMBIOS tells them
	NICs         []NIC    // at most 8
	Disks        []string // raw disk images, in the firmware's order
	Code, Vars   string   // of UEFI
	// OnLine is called with every line on the console, cut at 1 KiB. It must not block.
	OnLine func(string)
	// KVM is asked whether the machine may run on it. Without, it is emulated.
	KVM    *kvmprobe.Probe
	Logger *slog.Logger
}

const maxNICs = 8

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	// QEMU's option syntax ends a value at a comma.
	valueForm = regexp.MustCompile(`^[A-Za-z0-9 ._-]{0,64}$`)
	uuidForm  = regexp.MustCompile(`^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$`)
)

// Validate names the first key that is wrong and fills in the defaults.
func (c *Config) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, Where: "machine " + c.Name, What: key, Evidence: why}
	}
	c.Arch, c.CPUs = or(c.Arch, X86), or(c.CPUs, 1)
	emulator, usual := "qemu-system-x86_64", BIOS
	if c.Arch == ARM64 {
		emulator, usual = "qemu-system-aarch64", UEFI
	}
	c.QEMU, c.Firmware = or(c.QEMU, emulator), or(c.Firmware, usual)
	code, vars, pkg := c.files()
	c.Code, c.Vars = or(c.Code, code), or(c.Vars, vars)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnLine == nil {
		c.OnLine = func(string) {}
	}
	least := int64(64)
	if c.Firmware == UEFI {
		least = 192
	}
	switch {
	case !nameForm.MatchString(c.Name):
		return bad("Name", fmt.Sprintf("%.80q", c.Name))
	case c.Dir == "" || c.Console == "":
		return bad("Dir, Console", "missing")
	case c.Firmware != BIOS && c.Firmware != UEFI:
		return bad("Firmware", string(c.Firmware))
	case c.Arch != X86 && c.Arch != ARM64:
		return bad("Arch", string(c.Arch))
	case c.Firmware == BIOS && c.Arch == ARM64:
		return bad("Firmware", "arm64 has no BIOS")
	case c.Firmware == BIOS && c.SecureBoot:
		return bad("SecureBoot", "BIOS has none")
	case c.MemoryMiB < least || c.MemoryMiB > 1<<20:
		return bad("MemoryMiB", fmt.Sprintf("%d; the least is %d", c.MemoryMiB, least))
	case c.CPUs < 1 || c.CPUs > 64:
		return bad("CPUs", fmt.Sprint(c.CPUs))
	case !uuidForm.MatchString(c.UUID):
		return bad("UUID", fmt.Sprintf("%.80q", c.UUID))
	case !valueForm.MatchString(c.Serial):
		return bad("Serial", fmt.Sprintf("%.80q", c.Serial))
	case len(c.NICs) > maxNICs:
		return bad("NICs", fmt.Sprintf("%d; at most %d", len(c.NICs), maxNICs))
	}
	for i, n := range c.NICs {
		if len(n.MAC) != 6 || n.MAC[0]&1 != 0 || n.Port == nil {
			return bad(fmt.Sprintf("NICs[%d]", i), "no address of one card, or no port")
		}
	}
	if c.Firmware == UEFI {
		for _, f := range []string{c.Code, c.Vars} {
			if _, err := os.Stat(f); err != nil {
				return &fault.Error{Kind: fault.NotFound, Where: "machine " + c.Name, What: "UEFI firmware", Err: err, Next: "install the package " + pkg}
			}
		}
	}
	return nil
}

func (c *Config) vars() string { return filepath.Join(c.Dir, c.Name+".vars") }

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}
