//go:build !linux

package qemu

import (
	"net"
	"os"
	"os/exec"

	"rerack.dev/rerack/internal/fault"
)

func diesWithUs(*exec.Cmd) {}

func socketPair() (net.Conn, *os.File, error) {
	return nil, nil, fault.New(fault.Unsupported, "virtual machines run on Linux only")
}
