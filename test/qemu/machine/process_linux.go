package machine

import (
	"net"
	"os"
	"syscall"
)

// socketPair returns the two ends of a stream.
func socketPair() (near net.Conn, far *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	far = os.NewFile(uintptr(fds[1]), "network card")
	if near, err = connOf(os.NewFile(uintptr(fds[0]), "port")); err != nil {
		_ = far.Close()
		return nil, nil, err
	}
	return near, far, nil
}
