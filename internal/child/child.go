// Package child starts processes that do not outlive this one, however it ends.
package child

import (
	"os/exec"
	"runtime"
)

// Start starts the process and returns a channel that gets what Wait returned. enter, which may be nil, is
// called on the thread that starts it, which nothing else uses afterwards: a namespace that it enters is the
// process's. On systems other than Linux the process may outlive a crash of this one.
func Start(cmd *exec.Cmd, enter func() error) (<-chan error, error) {
	diesWithUs(cmd)
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// On Linux a child that dies with us dies with the thread that started it.
		runtime.LockOSThread()
		if enter == nil {
			defer runtime.UnlockOSThread()
		} else if err := enter(); err != nil {
			started <- err
			return
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return ended, nil
}
