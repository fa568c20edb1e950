package images

import (
	"crypto/rand"
	"crypto/sha256"
	"io"
	"os"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

// File is an open, checked file. Close it.
type File struct {
	*os.File
	size int64
	mod  time.Time
}

// Size in bytes, as checked.
func (f *File) Size() int64 { return f.size }

// ModTime of the file.
func (f *File) ModTime() time.Time { return f.mod }

// Open returns the file with digest d for reading. Its content is read and compared before it is
// returned, unless that was done a short while ago and inode, size and times are the same; the same
// open file that was compared is served. It returns fault.NotFound, or fault.Unverified when the
// content is not what its name says, or where signatures are asked for and it belongs to no signed image:
// such a file is never served.
func (s *Store) Open(d pxe.Digest) (*File, error) {
	if _, err := pxe.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	if err := s.trusted(d); err != nil {
		return nil, err
	}
	return s.open(d, false)
}

// open is Open without the question of signatures; again reads the content in any case.
func (s *Store) open(d pxe.Digest, again bool) (*File, error) {
	f, err := s.kept.Open(d.Hex())
	if err != nil {
		return nil, missing(err, "image "+string(d))
	}
	st, err := s.verify(d, f, again)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{File: f, size: st.size, mod: st.mod}, nil
}

func (s *Store) verify(d pxe.Digest, f *os.File, again bool) (stamp, error) {
	s.mu.Lock()
	c := s.checks[d]
	if c == nil {
		c = &check{}
		s.checks[d] = c
	}
	s.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	var evidence string
	for range 3 {
		before, err := stampOf(f)
		if err != nil {
			return stamp{}, fault.Wrap(err, "stat", "image "+string(d))
		}
		if !again && before == c.seen && time.Since(c.at) < s.opt.Recheck {
			return before, nil
		}
		c.seen = stamp{}
		got, err := sum(f, before.size)
		if err != nil {
			return stamp{}, fault.Wrap(err, "check", "image "+string(d))
		}
		after, err := stampOf(f)
		if err != nil {
			return stamp{}, fault.Wrap(err, "stat", "image "+string(d))
		}
		if evidence = "content is " + string(got); got != d {
			break
		}
		if after != before { // written to, or only replaced by a second import: look again
			evidence = "the file changes while it is read"
			continue
		}
		// A file changed this moment may change again within one tick of the file system's clock,
		// without a trace in its times: such a verdict is not kept.
		if now := time.Now(); now.Sub(after.changed()) > racy {
			c.seen, c.at = after, now
		}
		return after, nil
	}
	return stamp{}, &fault.Error{Kind: fault.Unverified, Where: "image " + string(d), What: "check before serving",
		Evidence: evidence, Next: "the file was changed on disk: import it again, and find out by whom"}
}

func sum(f *os.File, size int64) (pxe.Digest, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return "", err
	}
	return digestOf(h), nil
}

// racy is longer than a tick of any file system's clock (FAT: 2 s).
const racy = 2 * time.Second

func (s stamp) changed() time.Time {
	if c := s.inode.changed(); c.After(s.mod) {
		return c
	}
	return s.mod
}

// stamp is what changes when a file is written to.
type stamp struct {
	size  int64
	mod   time.Time
	inode inode
}

func stampOf(f *os.File) (stamp, error) {
	fi, err := f.Stat()
	if err != nil {
		return stamp{}, err
	}
	if !fi.Mode().IsRegular() {
		return stamp{}, fault.New(fault.Unverified, "not a regular file")
	}
	return stamp{size: fi.Size(), mod: fi.ModTime(), inode: inodeOf(fi)}, nil
}

func randomBytes(b []byte) { _, _ = rand.Read(b) } // never fails (crypto/rand)
