// Package qemu runs virtual machines in QEMU, one process each: a driver.Host. It keeps nothing on disk;
// when the process that holds it goes, its machines go with it, which on a Host of Rerack's own is when
// the machine goes.
//
// Volumes on iSCSI are logged in to by QEMU itself (its block driver, with libiscsi), as the workload: no
// device of theirs is ever seen by the host's kernel, and the session ends with the process.
package qemu

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Where Debian's package ovmf has UEFI's code, and its variables as they leave the factory.
const (
	DefaultCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	DefaultVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Config of a Host. Name, Dir and Network are required.
type Config struct {
	Name    string  // for messages
	Dir     string  // for the files of running machines; may be lost when none runs
	Network Network // connects their network cards
	QEMU    string  // the emulator; default qemu-system-x86_64
	// Accelerator is kvm or tcg. Default tcg: who wants the other should have seen a guest run in it.
	Accelerator string
	CPUs        int   // default: the machine's
	MemoryMiB   int64 // default: what is available when the host starts, less Reserve
	ReserveMiB  int64 // default 128; for the host itself and for what QEMU takes beside its guests' memory
	Code, Vars  string
	// Others lists the machines that run here and are not ours, nil for none.
	Others func(context.Context) ([]driver.VM, error)
	// Console gets every line that a machine writes to its serial console, cut at 1 KiB; it must not block.
	// nil keeps the last of them in QEMU.
	Console func(vm, line string)
	Logger  *slog.Logger // default: none
}

const defaultReserve = 128

// Validate names the first wrong key and fills in the defaults.
func (c *Config) Validate() error {
	bad := func(key, why string) error {
		return &fault.Error{Kind: fault.Invalid, Where: "host " + c.Name, What: key, Evidence: why}
	}
	switch {
	case c.Name == "":
		return bad("Name", "missing")
	case !filepath.IsAbs(c.Dir):
		return bad("Dir", fmt.Sprintf("%.80q is not an absolute path", c.Dir))
	case c.Network == nil:
		return bad("Network", "missing")
	case c.Accelerator != "" && c.Accelerator != "kvm" && c.Accelerator != "tcg":
		return bad("Accelerator", c.Accelerator)
	case c.CPUs < 0 || c.CPUs > driver.MaxCPUs:
		return bad("CPUs", fmt.Sprint(c.CPUs))
	case c.MemoryMiB < 0 || c.MemoryMiB > driver.MaxMemoryMiB:
		return bad("MemoryMiB", fmt.Sprint(c.MemoryMiB))
	case c.ReserveMiB < 0:
		return bad("ReserveMiB", fmt.Sprint(c.ReserveMiB))
	}
	c.QEMU, c.Accelerator = or(c.QEMU, "qemu-system-x86_64"), or(c.Accelerator, "tcg")
	c.Code, c.Vars = or(c.Code, DefaultCode), or(c.Vars, DefaultVars)
	c.CPUs, c.ReserveMiB = or(c.CPUs, runtime.NumCPU()), or(c.ReserveMiB, defaultReserve)
	if c.Others == nil {
		c.Others = func(context.Context) ([]driver.VM, error) { return nil, nil }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MemoryMiB == 0 {
		have, err := available("/proc/meminfo")
		if err != nil {
			return err
		}
		if c.MemoryMiB = have - c.ReserveMiB; c.MemoryMiB < 1 {
			return bad("MemoryMiB", fmt.Sprintf("%d MiB are available, and %d are for the host", have, c.ReserveMiB))
		}
	}
	return nil
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// available reads how much memory may be given out, in MiB (proc_meminfo(5), MemAvailable).
func available(meminfo string) (int64, error) {
	f, err := os.Open(meminfo)
	if err != nil {
		return 0, fault.Wrap(err, "read the memory there is", meminfo)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			if err != nil {
				return 0, &fault.Error{Kind: fault.Internal, Where: meminfo, What: "read the memory there is", Err: err}
			}
			return kib >> 10, nil
		}
	}
	return 0, &fault.Error{Kind: fault.Internal, Where: meminfo, What: "read the memory there is", Evidence: "no MemAvailable"}
}
