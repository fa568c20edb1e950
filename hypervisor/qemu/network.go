package qemu

import (
	"context"
	"os"

	"rerack.dev/rerack/hypervisor/driver"
)

// Network connects the network cards of virtual machines. It is safe for concurrent use.
type Network interface {
	// Plug makes the host's end of a card, on the card's VLAN and on no other. It returns fault.Unsupported
	// when the host has no way to that VLAN.
	Plug(ctx context.Context, vm string, nic driver.NIC) (Port, error)
}

// Port is the host's end of one network card.
type Port struct {
	// File is inherited by QEMU.
	File *os.File
	// Netdev is the kind and the options of QEMU's -netdev for a file that is inherited under this number.
	Netdev func(fd int) string
	// Unplug takes the end away again, once QEMU is gone. It can be repeated.
	Unplug func() error
}
