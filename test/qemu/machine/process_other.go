//go:build !linux

package machine

import (
	"net"
	"os"

	"rerack.dev/rerack/internal/fault"
)

func socketPair() (net.Conn, *os.File, error) {
	return nil, nil, fault.New(fault.Unsupported, "machines in QEMU run on Linux only")
}
