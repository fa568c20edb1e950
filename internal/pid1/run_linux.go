package pid1

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"rerack.dev/rerack/internal/fault"
)

// Run is the whole life of a machine as its first process. It does not return but when it is not the
// first process, or its configuration is wrong: the machine is off afterwards, whatever happens.
func Run(c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if !Is() {
		return fault.New(fault.Unsafe, "first process: this is not the first process, and would turn the machine off")
	}
	// A kernel panics when its first process goes: whatever goes wrong here, the machine is to be off, and
	// not to hang with a message on a console that nobody sees.
	defer powerOff()
	// Control-alt-delete, which a BMC may send, is a wish to us and not an order to the kernel.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		c.Logger.Warn("control-alt-delete", "err", err)
	}
	if err := mount(); err != nil {
		c.Logger.Error("mount", "err", err)
	}
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		c.Logger.Error("set PATH", "err", err)
	}
	if err := Load(c.Modules, c.Logger); err != nil {
		c.Logger.Error("load kernel modules", "err", err)
	}
	err := runAndReap(c.Args, c.Logger)
	c.Logger.Info("turning the machine off", "err", err)
	return nil
}

// mount makes what programs expect of a Linux. What is there already stays.
func mount() error {
	var all error
	for _, m := range []struct {
		kind, at, options string
		flags             uintptr
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		err := os.MkdirAll(m.at, 0o755) //nolint:gosec // what everybody may look into
		if err == nil {
			err = unix.Mount(m.kind, m.at, m.kind, m.flags, m.options)
		}
		if err != nil && !errors.Is(err, unix.EBUSY) {
			all = errors.Join(all, fault.Wrap(err, "mount "+m.kind, m.at))
		}
	}
	return all
}

// runAndReap runs one program, passes on what it is asked to do, and collects every process that ends
// until that program has. Then nothing else is left running.
func runAndReap(args []string, log *slog.Logger) error {
	asked := make(chan os.Signal, 8)
	signal.Notify(asked, unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	defer signal.Stop(asked)
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec // the caller's own program
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return fault.Wrap(err, "start", args[0])
	}
	pid := cmd.Process.Pid
	done := make(chan unix.WaitStatus, 1)
	go reap(pid, done)
	for {
		select {
		case s := <-asked:
			log.Info("asked to end", "signal", s)
			_ = unix.Kill(pid, unix.SIGTERM) // gone already if this fails
		case status := <-done:
			endAll()
			if status.Exited() && status.ExitStatus() == 0 {
				return nil
			}
			return fault.Newf(fault.Internal, "%s ended with status %d, signal %d", args[0], status.ExitStatus(), status.Signal())
		}
	}
}

// reap collects every child, and tells of the one.
func reap(pid int, done chan<- unix.WaitStatus) {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // no child is left, the one neither
			done <- status
			return
		case got == pid:
			done <- status
			return
		}
	}
}

// endAll ends all processes but this one, and waits for them.
func endAll() {
	_ = unix.Kill(-1, unix.SIGTERM) // there may be none
	for end := time.Now().Add(grace); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); errors.Is(err, unix.ECHILD) {
			return
		}
	}
	_ = unix.Kill(-1, unix.SIGKILL)
}

// powerOff turns the machine off, or restarts it when it cannot be turned off.
func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
