package images

import (
	"io/fs"
	"syscall"
	"time"
)

// inode holds the change time too: who sets a file's modification time back cannot set that back.
type inode struct {
	dev, ino  uint64
	csec, cns int64
}

func inodeOf(fi fs.FileInfo) inode {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return inode{}
	}
	return inode{dev: uint64(st.Dev), ino: st.Ino, csec: int64(st.Ctim.Sec), cns: int64(st.Ctim.Nsec)}
}

func (i inode) changed() time.Time { return time.Unix(i.csec, i.cns) }
