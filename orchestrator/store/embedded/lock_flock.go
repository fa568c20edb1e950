//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package embedded

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"rerack.dev/rerack/internal/fault"
)

// lock takes the lock that bbolt will take once more on the same open file. Taking it first means that
// the check of the file runs under it, and that a refusal can say who holds it.
func lock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return &fault.Error{Kind: fault.Conflict, What: "open store", Where: f.Name(),
			Evidence: "the file is locked by " + holder(f),
			Next:     "stop that process, or give this one another data directory"}
	}
	return err
}

// holder names the process that has f locked, from Linux's /proc/locks (proc_locks(5)).
func holder(f *os.File) string {
	const unknown = "another process"
	info, err := f.Stat()
	if err != nil {
		return unknown
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return unknown
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return unknown
	}
	defer locks.Close()
	inode := fmt.Sprintf(":%d", st.Ino)
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		// 7: FLOCK ADVISORY WRITE 4711 fd:01:131090 0 EOF
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" || !strings.HasSuffix(fields[5], inode) {
			continue
		}
		pid := fields[4]
		if pid == fmt.Sprint(os.Getpid()) {
			return "this very process (" + pid + "), which has it open already"
		}
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "process " + pid
		}
		return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name)))
	}
	return unknown
}
