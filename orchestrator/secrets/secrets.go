// Package secrets resolves the names of credentials that the topology mentions. Values never leave it
// but as a type that prints [redacted].
package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/internal/fault"
)

// Credential is a user and a password that no formatting prints.
type Credential = bmc.Credential

// File keeps secrets in one JSON file of mode 0600, {"name": {"username": "", "password": ""}}. It is
// read again when it changes, so that a rotation needs no restart.
type File struct {
	path string

	mu   sync.Mutex
	read fs.FileInfo // of the file that all was read from; nil: read it again
	all  map[string]stored
}

// maxFile bounds the file: some 10,000 secrets.
const maxFile = 4 << 20

type stored struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Open uses the file at path; it need not exist yet.
func Open(path string) *File { return &File{path: path} }

// Resolve returns the named credential, or fault.NotFound with the next step.
func (f *File) Resolve(_ context.Context, name string) (Credential, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.load(); err != nil {
		return Credential{}, err
	}
	s, ok := f.all[name]
	if !ok {
		return Credential{}, &fault.Error{Kind: fault.NotFound, What: "no such secret", Where: name,
			Next: "rerack secret set " + name + " --username NAME"}
	}
	return Credential{User: s.Username, Password: bmc.NewSecret(s.Password)}, nil
}

// Names lists what there is.
func (f *File) Names() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.load(); err != nil {
		return nil, err
	}
	var out []string
	for n := range f.all {
		out = append(out, n)
	}
	sort.Strings(out)
	return out, nil
}

// Set adds or replaces a secret; it is on disk when Set returns.
func (f *File) Set(name string, c Credential) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.load(); err != nil {
		return err
	}
	all := map[string]stored{}
	for k, v := range f.all {
		all[k] = v
	}
	all[name] = stored{c.User, c.Password.Reveal()}
	b, err := json.MarshalIndent(all, "", "  ")
	if err == nil {
		err = replace(f.path, b)
	}
	if err != nil {
		return &fault.Error{Kind: fault.Internal, Where: f.path, What: "write secrets", Err: err}
	}
	f.read = nil
	return nil
}

func replace(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".secrets-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// load reads the file again if it is another one, or was changed. Nobody keeps a secret that the file
// has no more.
func (f *File) load() error {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		f.all, f.read = nil, nil
		return nil
	}
	bad := func(what string, err error) error {
		return &fault.Error{Kind: fault.Internal, Where: f.path, What: what, Err: err}
	}
	if err != nil {
		return bad("read secrets", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return bad("read secrets", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return &fault.Error{Kind: fault.Unsafe, Where: f.path, What: "others can read the secrets",
			Evidence: info.Mode().String(), Next: "chmod 600 " + f.path}
	}
	if f.read != nil && os.SameFile(f.read, info) && info.ModTime().Equal(f.read.ModTime()) && info.Size() == f.read.Size() {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return bad("read secrets", err)
	}
	all := map[string]stored{}
	if err := json.Unmarshal(b, &all); err != nil || len(b) > maxFile {
		// The cause is left out: a JSON error quotes the text around it.
		return &fault.Error{Kind: fault.Invalid, Where: f.path, What: "the secrets are not valid JSON of at most 4 MiB"}
	}
	f.all, f.read = all, info
	return nil
}
