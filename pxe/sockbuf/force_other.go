//go:build !linux

package sockbuf

import "syscall"

// force is Linux's alone.
func force(uintptr, int) error { return syscall.ENOTSUP }
