// Package driver is what a BMC vendor family implements, and the words it uses.
//
// A driver speaks to exactly one BMC. It is called by one goroutine at a time (the portable bmc.Client
// queues), needs no locking, and must not retry by itself: it reports an error with a fault.Kind.
package driver

import (
	"context"
	"errors"
	"net"
	"time"
)

// BMC is one management controller.
//
// Implementations MUST honour ctx, MUST state the end and not the gesture (SetPower(On) on a running
// machine changes nothing and succeeds), and MUST NOT report a power state they did not read.
type BMC interface {
	// Power reads the present state. An answer that is neither on nor off (PoweringOff, reset in
	// progress) is Changing; an error leaves the state unknown: it never means off.
	Power(ctx context.Context) (Reading, error)
	// SetPower asks for an end state and returns when the BMC has accepted it. It does not wait.
	SetPower(ctx context.Context, t Target) error
	// Boot reads the pending boot override.
	Boot(ctx context.Context) (BootOverride, error)
	// SetBoot sets the override for the next boot. It does not read back; the caller does, by Boot.
	SetBoot(ctx context.Context, b BootOverride) error
	// Inventory reads what the BMC knows of its machine without a reboot.
	Inventory(ctx context.Context) (Inventory, error)
	// Close logs out and frees the session on the BMC.
	Close(ctx context.Context) error
}

// PowerRestorer is implemented by drivers that can set what the machine does when mains power returns.
type PowerRestorer interface {
	// SetPowerRestore with stayOff keeps the machine off when power returns (rule F4).
	SetPowerRestore(ctx context.Context, stayOff bool) error
}

// Identifier is implemented by drivers that can read UUID, serial, manufacturer and model in one cheap
// call. Without it the caller reads the whole Inventory before a destructive act.
type Identifier interface {
	Identity(ctx context.Context) (Inventory, error)
}

// ErrSessionLost is wrapped by a driver's error when the BMC is there but no longer knows the session
// (it rebooted, it expired the session, or another box answers at its address). The caller closes the
// driver, opens a new one and verifies the identity again.
var ErrSessionLost = errors.New("BMC session lost")

// PowerState is what a BMC says of its machine.
type PowerState string

const (
	PowerUnknown  PowerState = "unknown"
	PowerOff      PowerState = "off"
	PowerOn       PowerState = "on"
	PowerChanging PowerState = "changing"
)

// Reading is a power state with its age and source.
type Reading struct {
	State  PowerState `json:"state"`
	At     time.Time  `json:"at"`
	Source string     `json:"source"`           // "redfish", "ipmi", "amt", ...
	Detail string     `json:"detail,omitempty"` // the vendor's own word, for people
}

// Target is the wanted power state.
type Target string

const (
	On       Target = "on"
	Off      Target = "off"      // at once, without asking the operating system
	ShutDown Target = "shutdown" // ask the operating system; may have no effect
)

// BootDevice is where the next boot comes from.
type BootDevice string

const (
	BootDefault BootDevice = "default" // no override
	BootPXE     BootDevice = "pxe"
	BootHTTP    BootDevice = "http" // UEFI HTTP boot
	BootDisk    BootDevice = "disk"
)

// FirmwareMode is how the machine's firmware boots.
type FirmwareMode string

const (
	FirmwareAny  FirmwareMode = ""
	FirmwareBIOS FirmwareMode = "bios"
	FirmwareUEFI FirmwareMode = "uefi"
)

// BootOverride is the pending boot override; Once means it is dropped after one boot. A driver whose BMC
// has no say in the mode sets the device alone, and reads FirmwareAny back: the firmware's own setting
// holds.
type BootOverride struct {
	Device BootDevice   `json:"device"`
	Mode   FirmwareMode `json:"mode,omitempty"`
	Once   bool         `json:"once"`
}

// Inventory is what a BMC knows about its machine. Fields it does not know are empty.
type Inventory struct {
	UUID         string `json:"uuid,omitempty"` // lower case, as in SMBIOS type 1
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Serial       string `json:"serial,omitempty"`
	NICs         []NIC  `json:"nics,omitempty"`
	HBAs         []HBA  `json:"hbas,omitempty"`
}

// NIC is one Ethernet port.
type NIC struct {
	Name string           `json:"name"`
	MAC  net.HardwareAddr `json:"mac"`
}

// HBA is one Fibre Channel port; WWPN is written 20:00:00:25:b5:00:00:01.
type HBA struct {
	Name string `json:"name"`
	WWPN string `json:"wwpn"`
}
