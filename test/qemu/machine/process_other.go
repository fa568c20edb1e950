//go:build !linux

package machine

import (
	"net"
	"os"
	"os/exec"

	"rerack.dev/rerack/internal/fault"
)

func diesWithUs(*exec.Cmd) {}

func socketPair() (net.Conn, *os.File, error) {
	return nil, nil, fault.New(fault.Unsupported, "machines in QEMU run on Linux only")
}
