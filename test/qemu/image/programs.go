package image

import (
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// program is a file with its place in the image.
type program struct {
	name string
	data []byte
}

// programs finds dynamically linked programs and all libraries they need, their loader included, below the
// roots, each file in the first that has it.
func programs(roots []string, names ...string) ([]program, error) {
	var out []program
	add := func(place, name string, in ...string) (*elf.File, error) {
		path := find(roots, name, in...)
		if path == "" {
			return nil, &fault.Error{Kind: fault.NotFound, Where: strings.Join(roots, ", "), What: "find " + name,
				Next: "install open-iscsi with its libraries, or unpack those packages and name the folder"}
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fault.Wrap(err, "read", path)
		}
		out = append(out, program{place, data})
		f, err := elf.Open(path)
		return f, fault.Wrap(err, "read", path)
	}
	var walk func(f *elf.File) error
	walk = func(f *elf.File) error {
		defer f.Close()
		libs, err := f.ImportedLibraries()
		if err != nil {
			return fault.Wrap(err, "read", "the libraries a program needs")
		}
		for _, l := range libs {
			place := "lib/" + l
			if strings.HasPrefix(l, "ld-linux") {
				place = "lib64/" + l
			}
			if slices.ContainsFunc(out, func(p program) bool { return p.name == place }) {
				continue
			}
			lib, err := add(place, l, "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64")
			if err != nil {
				return err
			}
			if err := walk(lib); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range names {
		f, err := add("bin/"+n, n, "sbin", "usr/sbin", "bin", "usr/bin")
		if err != nil {
			return nil, err
		}
		if err := walk(f); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func find(roots []string, name string, in ...string) string {
	for _, root := range roots {
		for _, dir := range in {
			if path := filepath.Join(root, dir, name); exist(path) {
				return path
			}
		}
	}
	return ""
}
