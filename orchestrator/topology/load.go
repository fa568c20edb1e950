package topology

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// File is one file to load.
type File struct {
	Name string
	Data []byte
}

// Load reads the YAML documents of the files and validates them as one topology. The error is an Errors
// with everything that is wrong in all of them; the topology is nil then. It never panics.
func Load(files []File) (t *Topology, err error) {
	defer func() { // the last line of defence: a bug here must not take a server down with it
		if r := recover(); r != nil {
			t, err = nil, Errors{{Problem: fmt.Sprintf("the topology cannot be read: %v", r), Hint: "this is a bug of rerack, please report it"}}
		}
	}()
	l := loader{t: New(), places: map[objectKey]place{}}
	for _, f := range files {
		l.file(f)
	}
	l.errs = append(l.errs, validate(l.t, l.places)...)
	if err := l.errs.orNil(); err != nil {
		return nil, err
	}
	return l.t, nil
}

// LoadFS loads the named files and, recursively and sorted, the *.yaml and *.yml files of the named
// directories; no path means the whole tree. Names that begin with a dot are passed over in directories.
func LoadFS(fsys fs.FS, paths ...string) (*Topology, error) {
	if len(paths) == 0 {
		paths = []string{"."}
	}
	var names []string
	for _, p := range paths {
		err := fs.WalkDir(fsys, p, func(name string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case name != p && strings.HasPrefix(d.Name(), "."):
				if d.IsDir() {
					return fs.SkipDir
				}
			case d.IsDir():
			case name == p || path.Ext(name) == ".yaml" || path.Ext(name) == ".yml":
				names = append(names, name)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("read topology: %w", err)
		}
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return nil, fmt.Errorf("read topology: no *.yaml or *.yml in %s", strings.Join(paths, ", "))
	}
	files := make([]File, len(names))
	for i, name := range names {
		data, err := readLimited(fsys, name)
		if err != nil {
			return nil, fmt.Errorf("read topology: %w", err)
		}
		files[i] = File{Name: name, Data: data}
	}
	return Load(files)
}

// readLimited reads one byte past the limit at most, so that a huge or endless file costs no memory.
func readLimited(fsys fs.FS, name string) (data []byte, err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
}

type objectKey struct {
	kind Kind
	name string
}

// place remembers where an object was read and whether it was read whole.
type place struct {
	file  string
	root  *node
	whole bool
}

type loader struct {
	t      *Topology
	places map[objectKey]place
	errs   Errors
}

// file reads one file and reports a bounded number of its errors.
func (l *loader) file(f File) {
	reported := 0
	report := func(e Error) {
		e.File = f.Name
		switch reported++; {
		case reported < maxErrors:
			l.errs = append(l.errs, e)
		case reported == maxErrors:
			l.errs = append(l.errs, Error{File: e.File, Line: e.Line, Column: e.Column, Problem: "too many errors, the rest of the file is not shown"})
		}
	}
	for _, root := range parseFile(f, report) {
		if reported >= maxErrors {
			return
		}
		l.object(f.Name, root, report)
	}
}

// object decodes one document and puts it into the topology.
func (l *loader) object(file string, root *node, report func(Error)) {
	o, ok := decodeObject(root, report)
	if !ok {
		return
	}
	k := objectKey{o.model.kind, o.meta.Name}
	if first, twice := l.places[k]; twice {
		at := root.child("metadata").child("name")
		report(Error{Line: at.line, Column: at.col, Kind: k.kind, Name: k.name, Path: "metadata.name",
			Problem: "is declared twice", Hint: "first at " + first.at("metadata.name")})
		return
	}
	l.places[k] = place{file: file, root: root, whole: o.whole}
	o.model.put(l.t, o.meta, o.spec)
}

// at renders the place of a field.
func (p place) at(field string) string {
	n := p.root.find(field)
	e := Error{File: p.file, Line: n.line, Column: n.col}
	if e.at() == "" {
		return "another place"
	}
	return e.at()
}
