//go:build !linux

package qemu

import (
	"net"
	"os"

	"rerack.dev/rerack/internal/fault"
)

func socketPair() (net.Conn, *os.File, error) {
	return nil, nil, fault.New(fault.Unsupported, "virtual machines run on Linux only")
}
