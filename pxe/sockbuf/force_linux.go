package sockbuf

import "syscall"

// force goes beyond net.core.rmem_max; it needs CAP_NET_ADMIN.
func force(fd uintptr, bytes int) error {
	return syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, bytes)
}
