// Package child starts processes that do not outlive the one that started them.
package child

import (
	"os/exec"
	"runtime"
)

// Start starts the command, which must not be started yet, and returns where its end is told: why it did not
// start, or what exec.Cmd.Wait returns. On Linux it is killed when this process is gone, however it went.
func Start(cmd *exec.Cmd) <-chan error {
	diesWithUs(cmd)
	done := make(chan error, 1)
	go func() {
		// On Linux a child that dies with us dies with the thread that started it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			done <- err
			return
		}
		done <- cmd.Wait()
	}()
	return done
}
