package image

import (
	"fmt"
	"io"
)

// Kinds of files in an archive, as in st_mode.
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
)

// archive writes a cpio archive of the form that Linux unpacks: "newc", described in the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst. Owners are root and times are zero, so that
// the same content gives the same bytes. After the first error it writes nothing more.
type archive struct {
	w    io.Writer
	next int // inode number
	size int
	err  error
}

// add writes one entry; data is a file's content or a link's target.
func (a *archive) add(name string, mode int, data []byte) {
	a.next++
	a.entry(a.next, mode, name, data)
}

func (a *archive) end() { a.entry(0, 0, "TRAILER!!!", nil) }

func (a *archive) entry(inode, mode int, name string, data []byte) {
	// magic, inode, mode, owner, group, links, time, size, device of the file and special device, name's
	// length with its zero byte, checksum that this form does not use
	a.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0))
	a.write(append([]byte(name), 0))
	a.pad()
	a.write(data)
	a.pad()
}

func (a *archive) write(b []byte) {
	if a.err == nil {
		var n int
		n, a.err = a.w.Write(b)
		a.size += n
	}
}

// pad aligns to four bytes.
func (a *archive) pad() { a.write(make([]byte, -a.size&3)) }
