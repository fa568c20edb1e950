package imagebuild

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// Kinds of files in an archive, as in st_mode.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

// Archive writes a cpio archive of the form that Linux unpacks: "newc", described in the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst. Owners are root and times are zero, so that
// the same content gives the same bytes. Folders are made as they are needed. After the first error it
// writes nothing more, and Close returns that error.
type Archive struct {
	w    io.Writer
	next int // inode number
	size int
	made map[string]bool
	err  error
}

// NewArchive returns an empty archive.
func NewArchive(w io.Writer) *Archive { return &Archive{w: w, made: map[string]bool{}} }

// Dir adds a folder, and those it is in, unless it is there.
func (a *Archive) Dir(name string) {
	name = clean(name)
	if name == "" || name == "." || a.made[name] {
		return
	}
	a.Dir(path.Dir(name))
	a.add(name, modeDir|0o755, device{}, nil)
}

// File adds a file. One that is there already is not added again: the kernel would write over it.
func (a *Archive) File(name string, perm int, data []byte) {
	a.put(name, modeFile|perm&0o777, device{}, data)
}

// Link adds a symbolic link.
func (a *Archive) Link(name, target string) { a.put(name, modeLink|0o777, device{}, []byte(target)) }

// Device adds a character device for everybody.
func (a *Archive) Device(name string, major, minor int) {
	a.put(name, modeChar|0o666, device{major, minor}, nil)
}

type device struct{ major, minor int }

func (a *Archive) put(name string, mode int, dev device, data []byte) {
	name = clean(name)
	if a.made[name] {
		return
	}
	a.Dir(path.Dir(name))
	a.add(name, mode, dev, data)
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (a *Archive) add(name string, mode int, dev device, data []byte) {
	a.made[name] = true
	a.next++
	a.entry(a.next, mode, name, dev, data)
}

// Close ends the archive. The writer beneath stays open.
func (a *Archive) Close() error {
	a.entry(0, 0, "TRAILER!!!", device{}, nil)
	return a.err
}

func (a *Archive) entry(inode, mode int, name string, dev device, data []byte) {
	// magic, inode, mode, owner, group, links, time, size, device of the file and special device, name's
	// length with its zero byte, checksum that this form does not use
	a.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, mode, 0, 0, 1, 0, len(data), 0, 0, dev.major, dev.minor, len(name)+1, 0))
	a.write(append([]byte(name), 0))
	a.pad()
	a.write(data)
	a.pad()
}

func (a *Archive) write(b []byte) {
	if a.err == nil {
		var n int
		n, a.err = a.w.Write(b)
		a.size += n
	}
}

// pad aligns to four bytes.
func (a *Archive) pad() { a.write(make([]byte, -a.size&3)) }
