// Package pid1 is the first process of a machine that was booted from the network into nothing but an
// initial RAM disk: it mounts what a program expects, loads the drivers that the hardware asks for, runs
// one program, collects the processes that others leave behind, and turns the machine off when that
// program ends. Network takes an address by DHCP.
package pid1

import (
	"log/slog"
	"os"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Is reports whether this process is the first of its machine.
func Is() bool { return os.Getpid() == 1 }

// Config of a machine's first process.
type Config struct {
	// Args are the program to run and its arguments. It is a child: who collects every process that ends
	// cannot also wait for those that it started itself.
	Args []string
	// Modules is the folder of kernel modules, see Load. Default /modules.
	Modules string
	Logger  *slog.Logger // default: none
}

// Validate names the first wrong key and fills in the defaults.
func (c *Config) Validate() error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return fault.New(fault.Invalid, "first process: Args is empty")
	}
	if c.Modules == "" {
		c.Modules = "/modules"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// grace is how long processes have between being asked to end and being made to.
const grace = 10 * time.Second

// maxCmdline is more than any architecture's COMMAND_LINE_SIZE.
const maxCmdline = 64 << 10

// Cmdline reads the kernel's parameters from /proc/cmdline. Of one that is given twice the last counts.
func Cmdline() (map[string]string, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, fault.Wrap(err, "read the kernel's parameters", "/proc/cmdline")
	}
	return ParseCmdline(string(b))
}

// ParseCmdline reads a kernel command line. Double quotes keep spaces in a value, as the kernel's own
// parser has it (Documentation/admin-guide/kernel-parameters.rst).
func ParseCmdline(line string) (map[string]string, error) {
	if len(line) > maxCmdline {
		return nil, fault.Newf(fault.Invalid, "kernel command line of more than %d bytes", maxCmdline)
	}
	quoted := false
	words := strings.FieldsFunc(line, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t' || r == '\n')
	})
	params := make(map[string]string, len(words))
	for _, w := range words {
		key, value, _ := strings.Cut(strings.ReplaceAll(w, `"`, ""), "=")
		params[key] = value
	}
	return params, nil
}
