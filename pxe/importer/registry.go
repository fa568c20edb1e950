package importer

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"rerack.dev/rerack/internal/fault"
)

// failed gives a registry's error its kind.
func (r *registry) failed(err error) error {
	out := &fault.Error{Kind: fault.Unreachable, Where: r.ref.Context().RegistryStr(), What: "read " + r.ref.Name(), Err: err}
	var answer *transport.Error
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &untrusted):
		out.Kind, out.Next = fault.Unauthorized, "name the authority of its certificate with --registry-ca"
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		out.Kind = fault.NotFound
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		out.Kind, out.Next = fault.Unauthorized, "log in to the registry: credentials are taken from Docker's config.json"
	case fault.Is(err, fault.Unsupported):
		out.Kind = fault.Unsupported
	}
	return out
}

// openLayout reads an OCI layout (image spec 1.1, image-layout.md): a folder, or a tar archive of one.
func openLayout(name string, fi fs.FileInfo) (artifacts, error) {
	if fi.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, Where: name, What: "open OCI layout", Err: err}
		}
		return &layout{name: name, file: func(p string) (io.ReadCloser, error) { return root.Open(p) }}, nil
	}
	parts, err := tarParts(name)
	if err != nil {
		return nil, err
	}
	return &layout{name: name, file: func(p string) (io.ReadCloser, error) {
		at, ok := parts[p]
		if !ok {
			return nil, fs.ErrNotExist
		}
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(f, at.offset, at.size), f}, nil
	}}, nil
}

type extent struct{ offset, size int64 }

const maxEntries = 10000

// tarParts finds where the files of an archive lie in it. Nothing is unpacked, so no name in it can become a path.
func tarParts(name string) (map[string]extent, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, Where: name, What: "open OCI layout", Err: err}
	}
	defer f.Close()
	out := map[string]extent{}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil || len(out) == maxEntries {
			return nil, &fault.Error{Kind: fault.Invalid, Where: name, What: "read OCI layout", Err: err,
				Evidence: "it is no tar archive, or one of more than 10000 files"}
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		at, err := f.Seek(0, io.SeekCurrent) // the reader stands at the content, which it has not buffered
		if err != nil {
			return nil, fault.Wrap(err, "read OCI layout", name)
		}
		out[path.Clean(h.Name)] = extent{at, h.Size}
	}
}

// layout is an OCI layout.
type layout struct {
	name string
	file func(path string) (io.ReadCloser, error)
}

func (l *layout) root(context.Context) ([]byte, types.MediaType, error) {
	f, err := l.file("index.json")
	if err != nil {
		return nil, "", &fault.Error{Kind: fault.Invalid, Where: l.name, What: "it is no OCI layout", Err: err, Next: "name one, or registry/repository:tag"}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxOCIManifest+1))
	if err == nil && len(b) > maxOCIManifest {
		err = fault.Newf(fault.Invalid, "index.json is larger than %d bytes", maxOCIManifest)
	}
	return b, types.OCIImageIndex, err
}

func (l *layout) open(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	f, err := l.file("blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex)
	if err != nil {
		return nil, &fault.Error{Kind: fault.NotFound, Where: l.name, What: "find " + d.Digest.String(), Err: err, Next: "copy the layout again"}
	}
	return f, nil
}
