package image

import (
	"debug/elf"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// module is a kernel module.
type module struct {
	name string
	data []byte
}

// resolve returns the named modules of a kernel and all they need, in an order in which they load. The
// modules name themselves what they need, so no depmod need have run.
func resolve(dir string, names []string) ([]module, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
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
	return r.out, nil
}

type resolver struct {
	dir   string
	files map[string]string
	out   []module
	under []string // being loaded, outermost first
}

func (r *resolver) load(name string) error {
	if slices.ContainsFunc(r.out, func(m module) bool { return m.name == name }) {
		return nil
	}
	path := r.files[name]
	switch {
	case path == "":
		return &fault.Error{Kind: fault.NotFound, Where: r.dir, What: "find kernel module " + name, Next: "take a Debian kernel of the cloud flavour"}
	case slices.Contains(r.under, name):
		return &fault.Error{Kind: fault.Invalid, Where: path, What: "load kernel module", Evidence: "it needs itself"}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fault.Wrap(err, "read kernel module", path)
	}
	needs, err := needsOf(path)
	if err != nil {
		return err
	}
	r.under = append(r.under, name)
	for _, n := range needs {
		if err := r.load(n); err != nil {
			return err
		}
	}
	r.under = r.under[:len(r.under)-1]
	r.out = append(r.out, module{name, data})
	return nil
}

// needsOf reads what a module says it depends on: the "depends" of its section .modinfo, which is
// key=value strings that end in a zero byte.
func needsOf(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Where: path, What: "read kernel module", Err: err}
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, &fault.Error{Kind: fault.Invalid, Where: path, What: "read kernel module", Evidence: "no section .modinfo"}
	}
	b, err := s.Data()
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Where: path, What: "read kernel module", Err: err}
	}
	for _, kv := range strings.Split(string(b), "\x00") {
		if list, ok := strings.CutPrefix(kv, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
