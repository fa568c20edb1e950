package imagebuild

import (
	"debug/elf"
	"errors"
	"fmt"
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

func (r root) read(name string) ([]byte, error) { return roots{r}.read(name) }

// roots are several such folders: a file is in the first that has it.
type roots []root

func (rs roots) find(name string) (real string, err error) {
	for _, r := range rs {
		if real, err = r.find(name); err == nil {
			return real, nil
		}
	}
	return "", err
}

func (rs roots) read(name string) ([]byte, error) {
	real, err := rs.find(name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(real)
}

// File is a file of a system, by its absolute name.
type File struct {
	Name string
	Data []byte
}

// Closure reads programs with the loader and all libraries that they need, each from the first of the folders
// that has it.
func Closure(from []string, programs ...string) ([]File, error) {
	var rs roots
	for _, f := range from {
		rs = append(rs, root(f))
	}
	names, err := rs.closure(programs)
	if err != nil {
		return nil, err
	}
	var out []File
	for _, n := range names {
		b, err := rs.read(n)
		if err != nil {
			return nil, fault.Wrap(err, "read", n)
		}
		out = append(out, File{n, b})
	}
	return out, nil
}

// libraryPath is where the loader looks by itself, and Debian has its libraries for this architecture
// (ld.so(8)).
func libraryPath() []string {
	return []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}
}

// closure lists the files that programs need to run, themselves included, each where it is looked for.
func (rs roots) closure(programs []string) ([]string, error) {
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
		needs, err := rs.needs(name)
		if err != nil {
			return nil, err
		}
		todo = append(todo, needs...)
	}
	return out, nil
}

// needs lists the libraries and the loader of one program or library.
func (rs roots) needs(name string) ([]string, error) {
	real, err := rs.find(name)
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
		at, err := rs.library(lib, dirs)
		if err != nil {
			return nil, fault.Wrap(err, "find a library", "of "+name)
		}
		out = append(out, at)
	}
	return out, nil
}

func (rs roots) library(lib string, dirs []string) (string, error) {
	for _, d := range dirs {
		at := path.Join(d, lib)
		if _, err := rs.find(at); err == nil {
			return at, nil
		}
	}
	return "", &fault.Error{Kind: fault.NotFound, Where: fmt.Sprint(rs), What: lib, Next: "install the package that has it, or unpack it there"}
}
