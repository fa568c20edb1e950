// Package images keeps boot files by their content: what was imported is what is served.
//
// A file is named by its SHA-256 and checked when it comes in, and again before it is served, so that
// a flipped bit on the disk is found before a machine boots it.
package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"sync"
	"syscall"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

const (
	blobs     = "sha256"
	names     = "names"
	manifests = "manifests"
	incoming  = "incoming"
	// DefaultMaxSize of one file.
	DefaultMaxSize = 16 << 30
	// DefaultRecheck is how long a check of an unchanged file holds.
	DefaultRecheck = 10 * time.Minute
	// staleImport is how long an import may pause before it counts as left behind by a crash.
	staleImport = 24 * time.Hour
)

// Options of a Store.
type Options struct {
	MaxSize int64         // of one file, bytes; 0 means DefaultMaxSize
	Recheck time.Duration // 0 means DefaultRecheck
	// Keys whose signature every image needs, to come in and to be served; none asks for no signatures.
	Keys Keys
}

// Store is a directory of boot files. It is safe for concurrent use, also by several processes.
type Store struct {
	root *os.Root
	kept *os.Root // the directory blobs: a machine that reads a disk by ranges opens its file for each
	opt  Options

	change sync.Mutex // held while images and their files come or go together

	mu     sync.Mutex
	checks map[pxe.Digest]*check
	own    map[pxe.Digest]bool // imported by the server's own code
	signed map[pxe.Digest]bool // in an image with a trusted signature; nil: not looked yet
}

// check is the last verdict on one file. Its lock makes many machines that ask at once read it once.
type check struct {
	mu   sync.Mutex
	seen stamp
	at   time.Time
}

// Open opens the store in dir, which is made when it is missing (mode 0700), and clears what broken
// imports have left.
func Open(dir string, o Options) (*Store, error) {
	if o.MaxSize < 0 || o.Recheck < 0 {
		return nil, fault.New(fault.Invalid, "images: MaxSize and Recheck are not negative")
	}
	if o.MaxSize == 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.Recheck == 0 {
		o.Recheck = DefaultRecheck
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, "make image store", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.Wrap(err, "open image store", dir)
	}
	s := &Store{root: root, opt: o, checks: map[pxe.Digest]*check{}, own: map[pxe.Digest]bool{}}
	for _, d := range []string{blobs, names, manifests, incoming} {
		if err := root.Mkdir(d, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			root.Close()
			return nil, fault.Wrap(err, "make image store", dir)
		}
	}
	if s.kept, err = root.OpenRoot(blobs); err != nil {
		root.Close()
		return nil, fault.Wrap(err, "open image store", dir)
	}
	if err := s.sweep(time.Now().Add(-staleImport)); err != nil {
		s.Close()
		return nil, fault.Wrap(err, "clear broken imports", dir)
	}
	return s, nil
}

// sweep removes imports that nobody has written to since then.
func (s *Store) sweep(then time.Time) error {
	old, err := fs.ReadDir(s.root.FS(), incoming)
	if err != nil {
		return err
	}
	for _, e := range old {
		if fi, err := e.Info(); err == nil && fi.ModTime().Before(then) {
			if err := s.root.Remove(path.Join(incoming, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Close releases the directory; open files stay usable.
func (s *Store) Close() error { return errors.Join(s.kept.Close(), s.root.Close()) }

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`)

// Import reads a file to its end and keeps it under its digest, and name (which may be empty) for it.
// When want is given, other content is refused with fault.Unverified. The file is on the disk, whole
// and synced, when Import returns; an error leaves nothing behind, a full disk included.
func (s *Store) Import(ctx context.Context, name string, r io.Reader, want pxe.Digest) (d pxe.Digest, err error) {
	if name != "" && !nameForm.MatchString(name) {
		return "", fault.Newf(fault.Invalid, "image name %.80q", name)
	}
	if want != "" {
		if _, err := pxe.ParseDigest(string(want)); err != nil {
			return "", err
		}
	}
	tmp, sum, _, err := s.receive(ctx, r)
	if err != nil {
		return "", full(err, "import image", name)
	}
	defer func() {
		if rerr := s.root.Remove(tmp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) && err == nil {
			err = fault.Wrap(rerr, "clear import", name)
		}
	}()
	if want != "" && sum != want {
		return "", &fault.Error{Kind: fault.Unverified, Where: "image " + name, What: "import",
			Evidence: "content is " + string(sum) + ", expected " + string(want), Next: "get the file again from its maker"}
	}
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.place(tmp, sum); err != nil {
		return "", full(err, "import image", name)
	}
	s.mu.Lock()
	s.own[sum] = true
	s.mu.Unlock()
	if name == "" {
		return sum, nil
	}
	return sum, full(s.write(ctx, path.Join(names, name), []byte(sum)), "name image", name)
}

// place gives a received file its name, unless a good one is there already.
func (s *Store) place(tmp string, d pxe.Digest) error {
	if f, err := s.open(d, false); err == nil {
		return f.Close()
	}
	if err := s.root.Rename(tmp, blob(d)); err != nil {
		return err
	}
	return s.sync(blobs)
}

// write puts b into the file at, by writing a new one and renaming it over the old.
func (s *Store) write(ctx context.Context, at string, b []byte) error {
	tmp, _, _, err := s.receive(ctx, bytes.NewReader(b))
	if err != nil {
		return err
	}
	if err := s.root.Rename(tmp, at); err != nil {
		return errors.Join(err, s.root.Remove(tmp))
	}
	s.forget()
	return s.sync(path.Dir(at))
}

// receive writes r to a new synced file in incoming, of n bytes.
func (s *Store) receive(ctx context.Context, r io.Reader) (tmp string, sum pxe.Digest, n int64, err error) {
	tmp, f, err := s.create()
	if err != nil {
		return "", "", 0, err
	}
	h := sha256.New()
	n, err = copyCapped(ctx, io.MultiWriter(f, h), r, s.opt.MaxSize)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", "", 0, errors.Join(err, s.root.Remove(tmp))
	}
	return tmp, digestOf(h), n, nil
}

// Lookup returns the digest that name stands for, or fault.NotFound.
func (s *Store) Lookup(name string) (pxe.Digest, error) {
	if !nameForm.MatchString(name) {
		return "", fault.Newf(fault.Invalid, "image name %.80q", name)
	}
	f, err := s.root.Open(path.Join(names, name))
	if err != nil {
		return "", missing(err, "image "+name)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 128))
	if err != nil {
		return "", fault.Wrap(err, "read name", "image "+name)
	}
	return pxe.ParseDigest(string(b))
}

// Has reports whether the file is there; it does not check it.
func (s *Store) Has(d pxe.Digest) bool {
	if _, err := pxe.ParseDigest(string(d)); err != nil {
		return false
	}
	_, err := s.root.Stat(blob(d))
	return err == nil
}

func blob(d pxe.Digest) string { return path.Join(blobs, d.Hex()) }

func digestOf(h hash.Hash) pxe.Digest { return pxe.DigestOf([32]byte(h.Sum(nil))) }

func (s *Store) sync(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// copyCapped copies until EOF, looking at ctx between chunks; more than limit bytes are fault.Invalid.
func copyCapped(ctx context.Context, w io.Writer, r io.Reader, limit int64) (int64, error) {
	var n int64
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, err := r.Read(buf)
		if n += int64(k); n > limit {
			return n, fault.Newf(fault.Invalid, "file is larger than %d bytes", limit)
		}
		if _, werr := w.Write(buf[:k]); werr != nil {
			return n, werr
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

func full(err error, what, name string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &fault.Error{Kind: fault.Busy, Where: "image " + orUnnamed(name), What: what, Err: err,
			Next: "free space in the image store; nothing of this file was kept"}
	}
	return fault.Wrap(err, what, "image "+orUnnamed(name))
}

func orUnnamed(name string) string {
	if name == "" {
		return "without a name"
	}
	return name
}

func missing(err error, where string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &fault.Error{Kind: fault.NotFound, Where: where, What: "open", Err: err, Next: "import it first"}
	}
	return fault.Wrap(err, "open", where)
}

func (s *Store) create() (string, *os.File, error) {
	var rnd [16]byte
	randomBytes(rnd[:])
	tmp := path.Join(incoming, hex.EncodeToString(rnd[:]))
	f, err := s.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	return tmp, f, err
}
