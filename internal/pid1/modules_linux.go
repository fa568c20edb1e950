package pid1

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"rerack.dev/rerack/internal/fault"
)

// Load loads kernel modules from a folder that holds each as NAME.ko, and in an Index which of them are
// wanted on every machine, which for which hardware, and what they need. A folder without an index has
// nothing to load. A module that does not load is no reason to stop: the machine may not need it.
func Load(dir string, log *slog.Logger) error {
	b, err := os.ReadFile(filepath.Join(dir, IndexName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "read the index of modules", dir)
	}
	index, err := ParseIndex(b)
	if err != nil {
		return err
	}
	loaded := map[string]bool{}
	// A driver may bring a bus to light on which there is more hardware to drive.
	for before := -1; before != len(loaded); {
		before = len(loaded)
		for _, name := range index.Want(hardware()) {
			if loaded[name] {
				continue
			}
			loaded[name] = true
			if err := insert(filepath.Join(dir, name+".ko")); err != nil {
				log.Warn("kernel module", "module", name, "err", err)
			}
		}
	}
	return nil
}

// hardware lists what devices say of themselves.
func hardware() []string {
	var out []string
	files, _ := filepath.Glob("/sys/bus/*/devices/*/modalias") // the pattern is right
	for _, f := range append(files, "/sys/devices/system/cpu/modalias") {
		if b, err := os.ReadFile(f); err == nil {
			out = append(out, string(trim(b)))
		}
	}
	return out
}

func trim(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return b
}

// insert loads one module; one that is loaded already is success.
func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fault.Wrap(os.NewSyscallError("finit_module", err), "load", path)
	}
	return nil
}
