//go:build unix

package ipmisim

import (
	"errors"
	"os"
	"syscall"
)

// openPipe makes a named pipe. It is open for writing too, so that reads do not end between two calls of the
// script, and those do not wait.
func openPipe(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return nil, os.NewSyscallError("mkfifo", err)
	}
	return os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
}
