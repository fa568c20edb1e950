package imagebuild

import (
	"debug/elf"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// Module is a kernel module, and what it says of itself.
type Module struct {
	Name     string
	Data     []byte
	Needs    []string // other modules
	Aliases  []string // patterns of the hardware that it drives
	Firmware []string // files for its hardware, below lib/firmware
}

// Modules returns the named modules of a kernel and all they need, in an order in which they load. Those
// that are optional are left out when the kernel does not have them. The modules name themselves what they
// need, so no depmod need have run. dir is the kernel's own folder below lib/modules.
func Modules(dir string, names, optional []string) ([]Module, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok && err == nil {
			files[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return nil, fault.Wrap(err, "look for kernel modules", dir)
	}
	r := &resolver{files: files, dir: dir}
	for _, n := range names {
		if err := r.load(n); err != nil {
			return nil, err
		}
	}
	for _, n := range optional {
		if files[n] == "" {
			continue
		}
		if err := r.load(n); err != nil {
			return nil, err
		}
	}
	return r.out, nil
}

type resolver struct {
	dir   string
	files map[string]string
	out   []Module
	under []string // being loaded, outermost first
}

func (r *resolver) load(name string) error {
	if slices.ContainsFunc(r.out, func(m Module) bool { return m.Name == name }) {
		return nil
	}
	path := r.files[name]
	switch {
	case path == "":
		return &fault.Error{Kind: fault.NotFound, Where: r.dir, What: "find kernel module " + name, Next: "take a Debian kernel, of the cloud flavour or the general one"}
	case slices.Contains(r.under, name):
		return &fault.Error{Kind: fault.Invalid, Where: path, What: "load kernel module", Evidence: "it needs itself"}
	}
	m, err := readModule(name, path)
	if err != nil {
		return err
	}
	r.under = append(r.under, name)
	for _, n := range m.Needs {
		if err := r.load(n); err != nil {
			return err
		}
	}
	r.under = r.under[:len(r.under)-1]
	r.out = append(r.out, m)
	return nil
}

// readModule reads a module with what its section .modinfo says, which is key=value strings that end in a
// zero byte.
func readModule(name, path string) (Module, error) {
	m := Module{Name: name}
	bad := func(evidence string, err error) (Module, error) {
		return m, &fault.Error{Kind: fault.Invalid, Where: path, What: "read kernel module", Evidence: evidence, Err: err}
	}
	f, err := elf.Open(path)
	if err != nil {
		return bad("", err)
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return bad("no section .modinfo", nil)
	}
	info, err := s.Data()
	if err != nil {
		return bad("", err)
	}
	for _, kv := range strings.Split(string(info), "\x00") {
		switch key, value, _ := strings.Cut(kv, "="); {
		case value == "":
		case key == "depends":
			m.Needs = strings.Split(strings.ReplaceAll(value, "-", "_"), ",")
		case key == "alias":
			m.Aliases = append(m.Aliases, value)
		case key == "firmware":
			m.Firmware = append(m.Firmware, value)
		}
	}
	m.Data, err = os.ReadFile(path)
	return m, fault.Wrap(err, "read kernel module", path)
}
