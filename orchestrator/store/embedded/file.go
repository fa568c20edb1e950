package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"

	"rerack.dev/rerack/internal/fault"
)

// initialMmap is 1 GiB where the address space has room for it.
const initialMmap = 1 << 30

// adviceRestore is what to do about a damaged file. Nothing repairs it in place: what is missing cannot be
// known, and a store that forgot an epoch or a fence is worse than one that does not start.
const adviceRestore = "move the file away, restore the newest backup in its place, check disk and memory, then start again"

// create makes an empty store at path unless there is a file. It appears there complete or not at all,
// so that a file without its buckets is known to be damaged.
func create(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fileError("open store", path, err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*") // has mode 0600
	if err != nil {
		return fileError("create store", path, err)
	}
	f.Close()
	defer os.Remove(f.Name())
	if err := initialize(f.Name()); err != nil {
		return fileError("create store", path, err)
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) { // ErrExist: another process came first
		return fileError("create store", path, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fileError("create store", path, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fileError("create store", path, err)
	}
	return nil
}

func initialize(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket([]byte(bucketKV)); err != nil {
			return err
		}
		b, err := tx.CreateBucket([]byte(bucketMeta))
		if err != nil {
			return err
		}
		return b.Put([]byte(keyHead), head{Commit: uint64(tx.ID())}.encode())
	})
	return errors.Join(err, db.Close())
}

// openFile locks the file, checks it and opens it with bbolt, in that order and on one descriptor.
func openFile(path string) (*bbolt.DB, head, error) {
	var h head
	open := func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
		if err != nil {
			return nil, err
		}
		if h, err = prepare(f); err != nil {
			f.Close()
			return nil, err
		}
		return f, nil
	}
	var db *bbolt.DB
	err := guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{
			OpenFile: open,
			Timeout:  time.Second,
			// Reserved in the address space, not in memory or on the disk: a transaction that outgrows the
			// mapping has to wait for every reader, and a backup is a slow reader.
			InitialMmapSize: initialMmap,
			FreelistType:    bbolt.FreelistMapType,
			NoStatistics:    true,
		})
		return err
	})
	var d *damage
	if errors.As(err, &d) {
		return nil, h, damaged(path, d)
	}
	if err != nil {
		return nil, h, fileError("open store", path, err)
	}
	return db, h, nil
}

// prepare locks and checks an open file, and takes its access from everybody else.
func prepare(f *os.File) (head, error) {
	if err := lock(f); err != nil {
		return head{}, err
	}
	info, err := f.Stat()
	if err != nil {
		return head{}, err
	}
	if !info.Mode().IsRegular() {
		return head{}, fault.Newf(fault.Invalid, "%s is no regular file", f.Name())
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := f.Chmod(0o600); err != nil {
			return head{}, err
		}
	}
	h, err := check(f, info.Size(), nil)
	if err != nil {
		return head{}, damaged(f.Name(), err)
	}
	return h, nil
}

func damaged(path string, err error) error {
	return &fault.Error{Kind: fault.Internal, What: "store is damaged", Where: path, Err: err, Next: adviceRestore}
}

func fileError(what, path string, err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	e := &fault.Error{Kind: fault.Internal, What: what, Where: path, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Kind, e.Next = fault.Invalid, "create the directory "+filepath.Dir(path)
	case errors.Is(err, fs.ErrPermission):
		e.Kind, e.Next = fault.Invalid, "give this user read and write access to the file and its directory"
	case errors.Is(err, bberrors.ErrTimeout):
		e.Kind, e.Next = fault.Conflict, "stop the process that has the file open"
	}
	return e
}

// Backup writes the whole store, as of one moment, to w; the result is a file that Open takes. Reading
// and writing go on meanwhile. Before anything is written to w the store is checked, so that a backup of
// damaged content fails instead of replacing a good one.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	return s.view(func(tx *bbolt.Tx) error {
		if err := s.verify(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.WriteTo(&ctxWriter{ctx, w}); err != nil {
			return fault.Wrap(err, "back up store", s.path)
		}
		return nil
	})
}

// verify reads every record of tx and compares them with the summary.
func (s *Store) verify(ctx context.Context, tx *bbolt.Tx) error {
	want, err := readHead(tx)
	if err != nil {
		return err
	}
	got := head{Commit: want.Commit, Revision: want.Revision}
	err = tx.Bucket([]byte(bucketKV)).ForEach(func(key, raw []byte) error {
		if err := ctx.Err(); err != nil {
			return s.interrupted("back up store", err)
		}
		_, sum, _, err := decodeRecord(key, raw)
		if err != nil {
			return &damage{fmt.Sprintf("key %q: %v", key, err)}
		}
		got.add(sum)
		return nil
	})
	if err == nil && got != want {
		err = &damage{"the records are not those of the summary"}
	}
	return err
}

// ctxWriter stops a long copy when its context ends.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c *ctxWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}
