package qemu

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// Limits of what is believed of a process.
const (
	maxCmdline   = 128 << 10
	maxProcesses = 1 << 20
)

// Others lists the QEMUs that run on this machine and that this process did not start: what a person
// runs by hand, or another program. What they are is told by their command lines.
func Others(ctx context.Context) ([]driver.VM, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fault.Wrap(err, "look for machines of others", "/proc")
	}
	var out []driver.VM
	for _, d := range dirs[:min(len(dirs), maxProcesses)] {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || childOf(d.Name(), os.Getpid()) {
			continue
		}
		vms, err := Process(ctx, pid)
		if err != nil {
			return nil, err
		}
		out = append(out, vms...)
	}
	return out, nil
}

// Process lists the machine that a process is, or nothing when it is none or is gone.
func Process(ctx context.Context, pid int) ([]driver.VM, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil || len(b) > maxCmdline { // it may be gone by now
		return nil, nil
	}
	if vm, ok := parseCmdline(b, "pid-"+strconv.Itoa(pid)); ok {
		return []driver.VM{vm}, nil
	}
	return nil, nil
}

// childOf reads a process's parent from its stat; the name before it may hold anything but ends with the
// last parenthesis (proc_pid_stat(5)).
func childOf(pid string, parent int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return len(f) > 1 && f[1] == strconv.Itoa(parent)
}

// parseCmdline says which machine a process with this command line is, if it is a QEMU. One that was
// started paused counts as off, as far as can be told.
func parseCmdline(b []byte, name string) (driver.VM, bool) {
	args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	arch, ok := strings.CutPrefix(filepath.Base(args[0]), "qemu-system-")
	if !ok {
		return driver.VM{}, false
	}
	vm := driver.VM{Name: name, State: driver.StateRunning, Spec: driver.Spec{CPUs: 1, MemoryMiB: 128, Arch: arch}} // QEMU's defaults
	for i, a := range args[1:] {
		var value string
		if i+2 < len(args) {
			value = args[i+2]
		}
		switch strings.TrimPrefix(a, "-") { // QEMU takes one dash and two
		case "-name", "name":
			if n := first(value, "guest"); driver.CheckName(n) == nil {
				vm.Name = n
			}
		case "-uuid", "uuid":
			vm.UUID = strings.ToLower(value)
		case "-smp", "smp":
			vm.Spec.CPUs = int(number(first(value, "cpus"), "", driver.MaxCPUs, int64(vm.Spec.CPUs)))
		case "-m", "m":
			vm.Spec.MemoryMiB = number(first(value, "size"), "MGT", 1<<40, vm.Spec.MemoryMiB)
		case "-S", "S":
			vm.State = driver.StateDefined
		case "-device", "device":
			if mac := strings.ToLower(option(value, "mac")); mac != "" {
				vm.Spec.NICs = append(vm.Spec.NICs, driver.NIC{MAC: mac})
			}
		}
	}
	vm.Spec.Name, vm.Spec.UUID = vm.Name, vm.UUID
	return vm, true
}

// first is the value of an option whose key may be left out at the beginning: "4,cores=2" and "cpus=4".
func first(value, key string) string {
	if v := option(value, key); v != "" {
		return v
	}
	head, _, _ := strings.Cut(value, ",")
	if strings.Contains(head, "=") {
		return ""
	}
	return head
}

// option is the value of a key among QEMU's options or in JSON, "" for none.
func option(value, key string) string {
	sep := func(r rune) bool { return strings.ContainsRune(`,{}"`, r) }
	words := strings.FieldsFunc(value, sep)
	for i, w := range words {
		if v, ok := strings.CutPrefix(strings.TrimSpace(w), key+"="); ok {
			return v
		}
		if w == key && i+2 < len(words) && strings.TrimSpace(words[i+1]) == ":" {
			return words[i+2]
		}
	}
	return ""
}

// number reads one with a unit; units go by 1024 from the first, which may be left out.
func number(s, units string, most, otherwise int64) int64 {
	digits := strings.TrimRight(strings.ToUpper(s), units)
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 1 {
		return otherwise
	}
	for range max(0, slices.Index([]byte(units), lastOf(s))) {
		n = min(n, most) << 10
	}
	return min(n, most)
}

// lastOf is the last character in upper case, 0 of nothing.
func lastOf(s string) byte {
	if s == "" {
		return 0
	}
	return strings.ToUpper(s)[len(s)-1]
}
