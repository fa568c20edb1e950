// Package driver is what a hypervisor family implements, and the words it uses.
package driver

import "context"

// Host is one machine that runs virtual machines.
//
// Implementations MUST be idempotent, MUST refuse (fault.Stale) an act on a VM that carries an older
// epoch than the VM has, MUST NOT start a VM that is not exactly as defined, and MUST leave VMs they
// were not told about alone. Every mutating call reads back before it returns.
type Host interface {
	// Capacity reports the whole and the free room of the host.
	Capacity(ctx context.Context) (Capacity, error)
	// VMs lists every VM on the host, ours or not.
	VMs(ctx context.Context) ([]VM, error)
	// Define creates or replaces the definition of a VM that is not running.
	Define(ctx context.Context, s Spec) error
	// Start powers a defined VM on.
	Start(ctx context.Context, name string, epoch uint64) error
	// Stop powers a VM off at once; stopping an absent VM succeeds.
	Stop(ctx context.Context, name string, epoch uint64) error
	// Undefine removes a stopped VM; an absent VM is success.
	Undefine(ctx context.Context, name string, epoch uint64) error
	// Drain refuses new definitions and starts until the host is booted again.
	Drain(ctx context.Context) error
	Close() error
}

// Capacity of a host. Memory in MiB.
type Capacity struct {
	CPUs       int   `json:"cpus"`
	MemoryMiB  int64 `json:"memoryMiB"`
	FreeCPUs   int   `json:"freeCPUs"`
	FreeMemory int64 `json:"freeMemoryMiB"`
	Draining   bool  `json:"draining"`
}

// Spec is the whole definition of a VM: exactly the workload's identity, networks and volumes.
type Spec struct {
	Name      string `json:"name"` // the workload's name
	UUID      string `json:"uuid"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int64  `json:"memoryMiB"`
	Arch      string `json:"arch"`     // x86_64, arm64
	Firmware  string `json:"firmware"` // bios, uefi
	NICs      []NIC  `json:"nics"`
	Disks     []Disk `json:"disks"`
	Epoch     uint64 `json:"epoch"`
}

// NIC is one virtual NIC on a VLAN of the host's uplink.
type NIC struct {
	MAC  string `json:"mac"`
	VLAN int    `json:"vlan"`
}

// Disk is a volume the host attaches for the VM. Exactly one of the two ways is set.
type Disk struct {
	Volume string `json:"volume"`
	ISCSI  *ISCSI `json:"iscsi,omitempty"`
	FC     *FC    `json:"fc,omitempty"`
	Boot   bool   `json:"boot"`
}

// ISCSI names a target and its LUN.
type ISCSI struct {
	Portal string `json:"portal"` // host:port
	Target string `json:"target"` // IQN
	LUN    int    `json:"lun"`
}

// FC names a target port and its LUN.
type FC struct {
	WWPN string `json:"wwpn"`
	LUN  int    `json:"lun"`
}

// State of a VM.
type State string

const (
	StateDefined State = "defined"
	StateRunning State = "running"
)

// VM is what a host says of one VM.
type VM struct {
	Name  string `json:"name"`
	UUID  string `json:"uuid"`
	State State  `json:"state"`
	Epoch uint64 `json:"epoch"`
	Spec  Spec   `json:"spec"`
}
