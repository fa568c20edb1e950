package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

// Take reads the files of an image, one after another in the order of its manifest, and keeps them and the
// manifest under the image's name, in the place of what had that name. next returns the content of file i;
// it may check what it sees. A digest or size that the manifest has already must be met, or the error is
// fault.Unverified. When the store trusts keys, the whole manifest must be signed with one of them.
//
// It is all or nothing: after an error no file and no name of it is there.
func (s *Store) Take(ctx context.Context, r Record, next func(i int) (io.Reader, error)) (Record, error) {
	if err := r.Manifest.Validate(); err != nil {
		return r, err
	}
	where := "image " + r.Manifest.Name
	r.Manifest.Files = append([]Part{}, r.Manifest.Files...)
	var temps []string
	defer func() { // what was placed has left its name here
		for _, tmp := range temps {
			_ = s.root.Remove(tmp)
		}
	}()
	for i := range r.Manifest.Files {
		p := &r.Manifest.Files[i]
		in, err := next(i)
		if err != nil {
			return r, err
		}
		tmp, sum, n, err := s.receive(ctx, in)
		if err != nil {
			return r, full(err, fmt.Sprintf("import %s (file %d)", p.Role, i+1), r.Manifest.Name)
		}
		temps = append(temps, tmp)
		switch {
		case n == 0:
			return r, &fault.Error{Kind: fault.Invalid, Where: where, What: fmt.Sprintf("import %s (file %d)", p.Role, i+1), Evidence: "it is empty"}
		case p.Digest != "" && p.Digest != sum:
			return r, mismatch(where, *p, "content is "+string(sum)+", expected "+string(p.Digest))
		case p.Size != 0 && p.Size != n:
			return r, mismatch(where, *p, fmt.Sprintf("it has %d bytes, expected %d", n, p.Size))
		}
		p.Digest, p.Size = sum, n
	}
	var err error
	if r.SignedBy, err = s.opt.Keys.Approve(&r); err != nil {
		return r, err
	}
	return r, s.keep(ctx, r, temps)
}

func mismatch(where string, p Part, evidence string) error {
	return &fault.Error{Kind: fault.Unverified, Where: where, What: "import " + string(p.Role), Evidence: evidence,
		Next: "get the file again from its maker; nothing of it was kept"}
}

// keep places received files and then the record that names them.
func (s *Store) keep(ctx context.Context, r Record, temps []string) (err error) {
	where := "image " + r.Manifest.Name
	b, err := json.Marshal(r)
	if err != nil || len(b) > maxManifest {
		return &fault.Error{Kind: fault.Invalid, Where: where, What: "its manifest cannot be kept", Err: err}
	}
	s.change.Lock()
	defer s.change.Unlock()
	var placed []pxe.Digest // by this call, and by no other image before it
	defer func() {
		if err != nil {
			for _, d := range placed {
				_ = s.root.Remove(blob(d))
			}
		}
	}()
	for i, tmp := range temps {
		d := r.Manifest.Files[i].Digest
		had := s.Has(d)
		if err := s.place(tmp, d); err != nil {
			return full(err, "import", r.Manifest.Name)
		}
		if !had {
			placed = append(placed, d)
		}
	}
	return full(s.write(ctx, path.Join(manifests, r.Manifest.Name), b), "write manifest", r.Manifest.Name)
}

// PartState is what a check found of one file: "ok", "missing", or "damaged" with the evidence.
type PartState struct {
	Part
	State    string `json:"state" enum:"ok,missing,damaged"`
	Evidence string `json:"evidence,omitempty"`
}

// Check reads every file of an image again, whatever was found a short while ago, and its signature.
func (s *Store) Check(ctx context.Context, name string) (Record, []PartState, error) {
	r, err := s.Image(name)
	if err != nil {
		return r, nil, err
	}
	out := make([]PartState, len(r.Manifest.Files))
	for i, p := range r.Manifest.Files {
		if err := ctx.Err(); err != nil {
			return r, nil, err
		}
		out[i] = PartState{Part: p, State: "ok"}
		switch f, err := s.open(p.Digest, true); {
		case fault.Is(err, fault.NotFound):
			out[i].State = "missing"
		case fault.Is(err, fault.Unverified):
			out[i].State, out[i].Evidence = "damaged", err.Error()
		case err != nil:
			return r, nil, err
		default:
			if f.Size() != p.Size {
				out[i].State, out[i].Evidence = "damaged", fmt.Sprintf("it has %d bytes", f.Size())
			}
			f.Close()
		}
	}
	_, err = s.opt.Keys.Approve(&r)
	return r, out, err
}

// Remove takes an image away, with those of its files that no other image and no name needs and keep does
// not hold back, and returns their digests.
func (s *Store) Remove(name string, keep func(pxe.Digest) bool) ([]pxe.Digest, error) {
	r, err := s.Image(name)
	if err != nil {
		return nil, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.root.Remove(path.Join(manifests, name)); err != nil {
		return nil, fault.Wrap(err, "remove", "image "+name)
	}
	s.forget()
	if err := s.sync(manifests); err != nil {
		return nil, fault.Wrap(err, "remove", "image "+name)
	}
	named, err := s.named()
	if err != nil {
		return nil, err // the files stay: they are garbage that Garbage shows
	}
	var gone []pxe.Digest
	for _, p := range r.Manifest.Files {
		if named[p.Digest] || keep(p.Digest) {
			continue
		}
		if err := s.root.Remove(blob(p.Digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return gone, fault.Wrap(err, "remove", "image "+string(p.Digest))
		}
		named[p.Digest] = true // an image may have a file twice
		gone = append(gone, p.Digest)
	}
	return gone, s.sync(blobs)
}

// named are the digests that an image or a name stands for.
func (s *Store) named() (map[pxe.Digest]bool, error) {
	all, err := s.Images()
	if err != nil {
		return nil, err
	}
	out := map[pxe.Digest]bool{}
	for _, r := range all {
		for _, p := range r.Manifest.Files {
			out[p.Digest] = true
		}
	}
	es, err := fs.ReadDir(s.root.FS(), names)
	if err != nil {
		return nil, fault.Wrap(err, "list", "image store")
	}
	for _, e := range es {
		if d, err := s.Lookup(e.Name()); err == nil {
			out[d] = true
		}
	}
	return out, nil
}

// Blob is a file of the store.
type Blob struct {
	Digest pxe.Digest `json:"digest"`
	Size   int64      `json:"size"` // bytes
}

// Garbage returns the files that neither an image nor a name stands for and keep does not hold back.
func (s *Store) Garbage(keep func(pxe.Digest) bool) ([]Blob, error) {
	s.change.Lock()
	defer s.change.Unlock()
	named, err := s.named()
	if err != nil {
		return nil, err
	}
	es, err := fs.ReadDir(s.root.FS(), blobs)
	if err != nil {
		return nil, fault.Wrap(err, "list", "image store")
	}
	out := []Blob{}
	for _, e := range es {
		d, err := pxe.ParseDigest("sha256:" + e.Name())
		if err != nil || named[d] || keep(d) {
			continue
		}
		fi, err := e.Info()
		if err != nil {
			continue // it went while we looked
		}
		out = append(out, Blob{d, fi.Size()})
	}
	return out, nil
}
