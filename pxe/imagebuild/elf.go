package imagebuild

import (
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// root is a folder that holds a system, as the packages of a distribution unpack.
type root string

// maxLinks is how many symbolic links are followed, as Linux does (path_resolution(7)).
const maxLinks = 40

// find returns where a file of the system truly is: its symbolic links, absolute ones too, are taken to
// stay within the system.
func (r root) find(name string) (string, error) {
	links := 0
	at := "/"
	rest := strings.Split(path.Clean("/" + name)[1:], "/")
	for len(rest) > 0 {
		next := path.Join(at, rest[0])
		rest = rest[1:]
		real := filepath.Join(string(r), next)
		info, err := os.Lstat(real)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "follow", Path: name, Err: errors.New("too many symbolic links")}
		}
		target, err := os.Readlink(real)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), rest...)
	}
	return filepath.Join(string(r), at), nil
}

func (r root) read(name string) ([]byte, error) {
	real, err := r.find(name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(real)
}

// libraryPath is where the loader looks by itself, and Debian has its libraries for this architecture
// (ld.so(8)).
func libraryPath() []string {
	return []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
}

// closure lists the files that programs need to run, themselves included, each where it is looked for.
func (r root) closure(programs []string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for todo := programs; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		out = append(out, name)
		needs, err := r.needs(name)
		if err != nil {
			return nil, err
		}
		todo = append(todo, needs...)
	}
	return out, nil
}

// needs lists the libraries and the loader of one program or library.
func (r root) needs(name string) ([]string, error) {
	real, err := r.find(name)
	if err != nil {
		return nil, fault.Wrap(err, "find", name)
	}
	f, err := elf.Open(real)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Where: real, What: "read program", Err: err}
	}
	defer f.Close()
	var out []string
	if s := f.Section(".interp"); s != nil {
		b, err := s.Data()
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Where: real, What: "read program", Err: err}
		}
		out = append(out, strings.TrimRight(string(b), "\x00"))
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Where: real, What: "read program", Err: err}
	}
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		paths, err := f.DynString(tag)
		if err != nil {
			continue // it has none
		}
		for _, p := range paths {
			for _, d := range strings.Split(p, ":") {
				dirs = append(dirs, strings.NewReplacer("$ORIGIN", path.Dir(name), "${ORIGIN}", path.Dir(name)).Replace(d))
			}
		}
	}
	dirs = append(dirs, libraryPath()...)
	for _, lib := range libraries {
		at, err := r.library(lib, dirs)
		if err != nil {
			return nil, fault.Wrap(err, "find a library", "of "+name)
		}
		out = append(out, at)
	}
	return out, nil
}

func (r root) library(lib string, dirs []string) (string, error) {
	for _, d := range dirs {
		at := path.Join(d, lib)
		if _, err := r.find(at); err == nil {
			return at, nil
		}
	}
	return "", &fault.Error{Kind: fault.NotFound, Where: string(r), What: lib, Next: "install the package that has it, or unpack it there"}
}
