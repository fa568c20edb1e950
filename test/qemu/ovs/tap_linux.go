package ovs

import (
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// namespace is a network of its own, without a single address.
type namespace struct{ file *os.File }

// newNamespace makes one. It lives as long as the file is open or a process or device is in it.
func newNamespace() (*namespace, error) {
	n := &namespace{}
	return n, elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		var err error
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		// The kernel would ask for routers on every port.
		err = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil // it has no IPv6
		}
		return err
	})
}

// elsewhere runs f on a thread of its own that nothing else uses afterwards.
func elsewhere(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		done <- f()
	}()
	return <-done
}

// enter moves the calling thread in.
func (n *namespace) enter() error {
	return os.NewSyscallError("setns", unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET))
}

func (n *namespace) close() error {
	if n.file == nil {
		return nil
	}
	return n.file.Close()
}

// tap is the cable's side of a TAP device.
type tap struct{ *os.File }

// mtu has room for a tag beside 1500 bytes.
const mtu = 2000

// tap makes a device that is up and has no carrier.
func (n *namespace) tap(name string) (*tap, error) {
	var t *tap
	return t, elsewhere(func() (err error) {
		if err := n.enter(); err != nil {
			return err
		}
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("open /dev/net/tun", err)
		}
		defer func() {
			if err != nil {
				_ = unix.Close(fd)
			}
		}()
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return os.NewSyscallError("TUNSETIFF", err)
		}
		if err := up(name); err != nil {
			return err
		}
		t = &tap{os.NewFile(uintptr(fd), name)}
		return t.setCarrier(false)
	})
}

// up turns a device of this thread's namespace on.
func up(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint32(mtu)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFMTU, req); err != nil {
		return os.NewSyscallError("SIOCSIFMTU", err)
	}
	req.SetUint16(unix.IFF_UP)
	return os.NewSyscallError("SIOCSIFFLAGS", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req))
}

func (t *tap) setCarrier(on bool) error {
	raw, err := t.SyscallConn() // not Fd, which would make reads block for good
	if err != nil {
		return err
	}
	value := 0
	if on {
		value = 1
	}
	if e := raw.Control(func(fd uintptr) { err = unix.IoctlSetPointerInt(int(fd), unix.TUNSETCARRIER, value) }); e != nil {
		return e
	}
	return os.NewSyscallError("TUNSETCARRIER", err)
}

// drop forgets the frames that wait.
func (t *tap) drop() {
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, mtu)
	_ = raw.Control(func(fd uintptr) {
		for range maxWaiting {
			if _, err := unix.Read(int(fd), buf); err != nil {
				return
			}
		}
	})
}

// maxWaiting is above the 500 frames that Linux queues for a TAP device by default.
const maxWaiting = 4096

// interrupt ends reads, until resume.
func (t *tap) interrupt() { _ = t.SetReadDeadline(time.Unix(1, 0)) }
func (t *tap) resume()    { _ = t.SetReadDeadline(time.Time{}) }
