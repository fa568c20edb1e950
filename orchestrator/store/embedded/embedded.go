// Package embedded is the store in one file on the local disk, for a Rerack that is one process. It is a
// bbolt B+tree: every transaction is on the disk (fdatasync) before it is acknowledged, and concurrent
// ones share that cost.
//
// What the disk does to the file is found out: every record has a checksum that is compared on every
// read, the whole file is checked when it is opened, and a store that could not write stops writing.
package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// Config of a store.
type Config struct {
	Path    string       // of the file; it is made if it does not exist, its directory is not
	History int          // changes kept in memory for watchers that come back; 0 means 16384
	Logger  *slog.Logger // nil discards
}

// Validate returns fault.Invalid with the name of the key that is wrong.
func (c Config) Validate() error {
	switch {
	case c.Path == "":
		return fault.New(fault.Invalid, "embedded store: Path is empty")
	case c.History < 0:
		return fault.Newf(fault.Invalid, "embedded store: History is %d, it must not be negative", c.History)
	}
	return nil
}

// Store is an open file. It implements store.Store.
type Store struct {
	path   string
	log    *slog.Logger
	db     *bbolt.DB
	queue  queue
	ring   *ring
	leases leases

	closing  chan struct{} // closed by Close
	stopped  chan struct{} // closed when the committer is done
	close    sync.Once
	closeErr error

	failed atomic.Pointer[fault.Error] // why nothing is written any more; nil while all is well
}

var _ store.Store = (*Store)(nil)

// Open opens the file at c.Path, and makes it if there is none. It takes the file for this process alone
// and checks all of it first. The error is fault.Conflict when another process has it, and fault.Internal
// when the file is damaged; nothing is repaired on the way.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.History == 0 {
		c.History = 16384
	}
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, fault.Wrap(err, "open store", c.Path)
	}
	if err := create(path); err != nil {
		return nil, err
	}
	db, h, err := openFile(path)
	if err != nil {
		return nil, err
	}
	s := &Store{
		path: path, log: c.Logger, db: db,
		ring:    newRing(c.History, h.Revision),
		closing: make(chan struct{}), stopped: make(chan struct{}),
	}
	s.queue.wake = make(chan struct{}, 1)
	s.leases.held = map[string]*lease{}
	go s.commitLoop(h)
	s.log.Info("store opened", "path", path, "revision", h.Revision, "records", h.Count)
	return s, nil
}

// Err returns nil while the store can write. After an error of the disk, or damage found while reading,
// it returns why the store is read-only; that lasts until the process starts again.
func (s *Store) Err() error {
	if f := s.failed.Load(); f != nil {
		return f
	}
	return nil
}

// Get returns the entry at key.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := store.CheckKey(key); err != nil {
		return store.Entry{}, err
	}
	if err := ctx.Err(); err != nil {
		return store.Entry{}, s.interrupted("read", err)
	}
	var e store.Entry
	err := s.view(func(tx *bbolt.Tx) error {
		raw := tx.Bucket([]byte(bucketKV)).Get([]byte(key))
		if raw == nil {
			return &fault.Error{Kind: fault.NotFound, What: "no entry " + key}
		}
		var err error
		e, err = decodeEntry([]byte(key), raw)
		return err
	})
	return e, err
}

// List returns the entries under prefix and the revision of the store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, uint64, error) {
	if err := store.CheckPrefix(prefix); err != nil {
		return nil, 0, err
	}
	var out []store.Entry
	var revision uint64
	err := s.view(func(tx *bbolt.Tx) error {
		h, err := readHead(tx)
		if err != nil {
			return err
		}
		revision = h.Revision
		c := tx.Bucket([]byte(bucketKV)).Cursor()
		for k, raw := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, raw = c.Next() {
			if len(out)%1024 == 0 && ctx.Err() != nil {
				return s.interrupted("list", ctx.Err())
			}
			e, err := decodeEntry(k, raw)
			if err != nil {
				return err
			}
			out = append(out, e)
		}
		return nil
	})
	if err == nil && ctx.Err() != nil {
		err = s.interrupted("list", ctx.Err())
	}
	if err != nil {
		return nil, 0, err
	}
	return out, revision, nil
}

// Close releases the leases, ends the watches, finishes what is being written and gives the file free.
func (s *Store) Close() error {
	s.close.Do(func() {
		close(s.closing)
		s.leases.loseAll()
		<-s.stopped
		s.closeErr = s.db.Close()
		s.log.Info("store closed", "path", s.path)
	})
	return s.closeErr
}

// damage is content that does not match its checksum.
type damage struct{ what string }

func (d *damage) Error() string { return d.what }

// view runs fn in a read transaction, and turns what a damaged file does to bbolt into an error.
func (s *Store) view(fn func(*bbolt.Tx) error) error {
	select {
	case <-s.closing:
		return s.closedError()
	default:
	}
	err := guard(func() error { return s.db.View(fn) })
	if errors.Is(err, bberrors.ErrDatabaseNotOpen) {
		return s.closedError()
	}
	return s.noteDamage(err)
}

// noteDamage makes the store read-only if err is damage, and puts the advice on it.
func (s *Store) noteDamage(err error) error {
	var d *damage
	if !errors.As(err, &d) {
		return err
	}
	f := &fault.Error{Kind: fault.Internal, What: "store is damaged", Where: s.path, Evidence: d.what, Next: adviceRestore}
	s.fail(f)
	return f
}

// fail makes the store read-only, once, and says so.
func (s *Store) fail(f *fault.Error) {
	if s.failed.CompareAndSwap(nil, f) {
		s.log.Error("store is read-only from now on", "path", s.path, "error", f)
	}
}

// guard runs fn and returns a panic or a memory fault of it as damage: bbolt reads pages that it has
// mapped into memory and does not doubt them.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = &damage{fmt.Sprint("reading the file failed: ", p)}
		}
	}()
	return fn()
}

// readHead returns the summary of the content that tx sees.
func readHead(tx *bbolt.Tx) (head, error) {
	h, err := decodeHead(tx.Bucket([]byte(bucketMeta)).Get([]byte(keyHead)))
	if err != nil {
		return head{}, &damage{err.Error()}
	}
	return h, nil
}

// decodeEntry checks a record and copies it out of the file's memory.
func decodeEntry(key, raw []byte) (store.Entry, error) {
	revision, _, value, err := decodeRecord(key, raw)
	if err != nil {
		return store.Entry{}, &damage{fmt.Sprintf("key %q: %v", key, err)}
	}
	return store.Entry{Key: string(key), Value: bytes.Clone(value), Revision: revision}, nil
}

func (s *Store) closedError() error {
	return &fault.Error{Kind: fault.Unreachable, What: "the store is closed", Where: s.path}
}

// interrupted is the error of a call whose context ended before it had any effect.
func (s *Store) interrupted(what string, err error) error {
	return &fault.Error{Kind: fault.Timeout, What: what, Where: s.path, Evidence: "given up before it began", Err: err}
}
