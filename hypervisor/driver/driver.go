// Package driver is what a hypervisor family implements, and the words it uses.
package driver

import "context"

// Host is one machine that runs virtual machines.
//
// Implementations are safe for concurrent use and MUST be idempotent. Every mutating call reads back
// before it returns, and changes nothing once its context has ended.
//
// An act carries an epoch, and the highest that was accepted for a name stays with that name until the
// host is booted again, also when no VM has it or has it any more: an older act is refused with
// fault.Stale, so that a definition that was under way while its VM was stopped and removed by a newer
// run does not bring it back. (The certificate of a host's agent names one boot: who means an earlier
// one does not get through.)
//
// A VM of epoch 0 is not ours: every act on it is refused with fault.Unsafe and changes nothing.
type Host interface {
	// Capacity reports the whole and the free room of the host. Every VM takes its room from its
	// definition on, whether it runs or not.
	Capacity(ctx context.Context) (Capacity, error)
	// VMs lists every VM on the host, ours or not. On error nothing is known, least of all that a VM is off.
	VMs(ctx context.Context) ([]VM, error)
	// Define creates the VM, or replaces its definition. It returns fault.Invalid for a definition that
	// Spec.Validate refuses, and fault.Conflict when the VM runs with another one, when another VM has the
	// UUID or a MAC, when there is no room, and when the host drains. Defining a VM as it is is success.
	Define(ctx context.Context, s Spec) error
	// Start powers on the VM that was defined with this epoch. It returns fault.NotFound when there is none
	// of the name, fault.Conflict when its definition has an older epoch, and when the host drains.
	// Starting a running VM is success.
	Start(ctx context.Context, name string, epoch uint64) error
	// Stop powers a VM off at once; stopping an absent VM succeeds.
	Stop(ctx context.Context, name string, epoch uint64) error
	// Undefine removes a VM; an absent VM is success, a running one fault.Conflict.
	Undefine(ctx context.Context, name string, epoch uint64) error
	// Drain refuses new definitions and starts until the host is booted again.
	Drain(ctx context.Context) error
	// Close frees the session. The VMs run on.
	Close() error
}

// Capacity of a host. Memory in MiB. What is free is not negative, even when VMs that are not ours take
// more than there is.
type Capacity struct {
	CPUs       int   `json:"cpus"`
	MemoryMiB  int64 `json:"memoryMiB"`
	FreeCPUs   int   `json:"freeCPUs"`
	FreeMemory int64 `json:"freeMemoryMiB"`
	Draining   bool  `json:"draining"`
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
	Epoch uint64 `json:"epoch"` // of the newest act; 0: it is not ours
	Spec  Spec   `json:"spec"`  // as defined, see Spec.Public; of one that is not ours as far as it can be told
}
