package importer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
)

const (
	// RoleAnnotation of a layer says what its file is in the image. Without it the file's name decides.
	RoleAnnotation = "dev.rerack.role"
	// titleAnnotation is the name of a layer's file (OCI image spec 1.1, annotations.md).
	titleAnnotation = "org.opencontainers.image.title"

	maxOCIManifest = 4 << 20 // as registries have it (OCI distribution spec 1.1, "Pushing Manifests")
	maxLayers      = 64
)

// artifacts are where manifests and blobs are, by digest.
type artifacts interface {
	// root is the manifest or index that the reference stands for.
	root(ctx context.Context) ([]byte, types.MediaType, error)
	open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// FromOCI takes the files of an image out of an artifact: one layer a file, as "oras push" makes them. ref is a
// registry's (registry/repository:tag or @sha256:…), an OCI layout folder, or a tar archive of one. The source that
// it returns names what it found by digest. roots, when given, are the authorities of the registry's certificate.
func FromOCI(ctx context.Context, ref, arch string, roots *x509.CertPool) (files []File, source string, err error) {
	a, at, err := openArtifacts(ref, roots)
	if err != nil {
		return nil, "", err
	}
	b, kind, err := a.root(ctx)
	if err != nil {
		return nil, "", fault.Wrap(err, "read manifest", at)
	}
	for depth := 0; isIndex(b, kind); depth++ {
		if depth == 2 {
			return nil, "", &fault.Error{Kind: fault.Invalid, Where: at, What: "read index", Evidence: "an index of indexes of indexes"}
		}
		d, err := choose(b, arch)
		if err != nil {
			return nil, "", fault.Wrap(err, "read index", at)
		}
		if b, err = manifestOf(ctx, a, d); err != nil {
			return nil, "", fault.Wrap(err, "read manifest", at)
		}
		kind = d.MediaType
	}
	layers, err := Layers(b)
	if err != nil {
		return nil, "", fault.Wrap(err, "read manifest", at)
	}
	for _, l := range layers {
		f := File{Role: l.Role, Name: l.Name, Size: l.Size, Digest: pxe.Digest(l.Digest.String()), Remote: true}
		f.Open = func(ctx context.Context) (io.ReadCloser, error) {
			r, err := a.open(ctx, l.Descriptor)
			if err != nil {
				return nil, fault.Wrap(err, "read "+string(f.Role), at)
			}
			return &proven{ReadCloser: r, file: f, sum: sha256.New()}, nil
		}
		files = append(files, f)
	}
	return files, "oci:" + withoutTag(at) + "@" + string(pxe.DigestOf(sha256.Sum256(b))), nil
}

func withoutTag(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i]
	}
	return ref
}

func isIndex(b []byte, kind types.MediaType) bool {
	return kind.IsIndex() || kind == "" && bytes.Contains(b, []byte(`"manifests"`))
}

// choose picks the manifest for an architecture, or the only one there is.
func choose(b []byte, arch string) (v1.Descriptor, error) {
	idx, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return v1.Descriptor{}, &fault.Error{Kind: fault.Invalid, What: "it is not an index", Err: err}
	}
	want := map[string]string{"x86_64": "amd64", "arm64": "arm64"}[arch] // names of GOARCH (image-index.md)
	var has []string
	for _, d := range idx.Manifests {
		if d.Platform == nil {
			continue
		}
		if d.Platform.Architecture == want {
			return d, nil
		}
		has = append(has, d.Platform.Architecture)
	}
	if len(idx.Manifests) == 1 && len(has) == 0 {
		return idx.Manifests[0], nil
	}
	return v1.Descriptor{}, &fault.Error{Kind: fault.NotFound, What: "it has nothing for " + arch,
		Evidence: fmt.Sprintf("%d manifests, for %s", len(idx.Manifests), strings.Join(has, ", ")), Next: "name another tag or --arch"}
}

func manifestOf(ctx context.Context, a artifacts, d v1.Descriptor) ([]byte, error) {
	if d.Digest.Algorithm != "sha256" || d.Size < 0 || d.Size > maxOCIManifest {
		return nil, fault.Newf(fault.Invalid, "manifest %.100s of %d bytes", d.Digest.String(), d.Size)
	}
	r, err := a.open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxOCIManifest+1))
	if err != nil {
		return nil, err
	}
	if got := pxe.DigestOf(sha256.Sum256(b)); string(got) != d.Digest.String() {
		return nil, &fault.Error{Kind: fault.Unverified, What: "manifest " + d.Digest.String(), Evidence: "content is " + string(got)}
	}
	return b, nil
}

// Layer is a layer that is a file of an image.
type Layer struct {
	v1.Descriptor
	Role images.Role
	Name string
}

// Layers reads a manifest and says what each layer is, kernel or whole image first.
func Layers(manifest []byte) ([]Layer, error) {
	if len(manifest) > maxOCIManifest {
		return nil, fault.Newf(fault.Invalid, "manifest of %d bytes", len(manifest))
	}
	m, err := v1.ParseManifest(bytes.NewReader(manifest))
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "it is not an image manifest", Err: err}
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return nil, fault.Newf(fault.Invalid, "%d layers: want 1 to %d", len(m.Layers), maxLayers)
	}
	var first, rest []Layer
	for _, d := range m.Layers {
		if d.Digest.Algorithm != "sha256" || d.Size <= 0 {
			return nil, fault.Newf(fault.Invalid, "layer %.100s of %d bytes", d.Digest.String(), d.Size)
		}
		title := d.Annotations[titleAnnotation]
		role := images.Role(d.Annotations[RoleAnnotation])
		if role == "" {
			role = roleOf(path.Base(title))
		}
		switch role {
		case images.RoleKernel, images.RoleDisk, images.RoleISO, images.RoleEFI:
			first = append(first, Layer{d, role, title})
		case images.RoleInitrd:
			rest = append(rest, Layer{d, role, title})
		default:
			return nil, &fault.Error{Kind: fault.Unsupported, What: fmt.Sprintf("layer %.80q of type %.100s", title, d.MediaType),
				Evidence: "neither annotation " + RoleAnnotation + " nor a name like vmlinuz, initrd.img, disk.raw, x.iso or x.efi says what it is",
				Next:     "push the files themselves, for instance with oras push; a container's layers are not files to boot"}
		}
	}
	if len(first) != 1 {
		return nil, fault.Newf(fault.Invalid, "%d layers are a kernel or a whole image: want one", len(first))
	}
	return append(first, rest...), nil
}

// roleOf tells from a file's name what it is.
func roleOf(file string) images.Role {
	file = strings.ToLower(file)
	for _, p := range []string{"vmlinuz", "bzimage", "kernel", "linux"} {
		if strings.HasPrefix(file, p) {
			return images.RoleKernel
		}
	}
	for _, p := range []string{"initrd", "initramfs"} {
		if strings.HasPrefix(file, p) {
			return images.RoleInitrd
		}
	}
	return map[string]images.Role{".iso": images.RoleISO, ".efi": images.RoleEFI, ".raw": images.RoleDisk, ".img": images.RoleDisk}[path.Ext(file)]
}

func openArtifacts(ref string, roots *x509.CertPool) (artifacts, string, error) {
	if fi, err := os.Stat(ref); err == nil {
		a, err := openLayout(ref, fi)
		return a, ref, err
	}
	r, err := name.ParseReference(ref, name.StrictValidation)
	if err != nil {
		return nil, "", &fault.Error{Kind: fault.Invalid, What: "OCI reference " + ref, Err: err,
			Next: "write registry/repository:tag, or name an OCI layout folder or its archive"}
	}
	t, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, "", fault.New(fault.Internal, "the registry's transport is of another type")
	}
	t = t.Clone()
	if roots != nil {
		t.TLSClientConfig.RootCAs = roots
	}
	return &registry{ref: r, opts: []remote.Option{remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(secure{t})}}, ref, nil
}

// secure refuses what is not TLS: the library would fall back to plain HTTP for addresses that it takes for local.
type secure struct{ http.RoundTripper }

func (s secure) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, &fault.Error{Kind: fault.Unsupported, Where: r.URL.Host, What: "registry without TLS"}
	}
	return s.RoundTripper.RoundTrip(r)
}

// registry is a repository of a registry (OCI distribution spec 1.1).
type registry struct {
	ref  name.Reference
	opts []remote.Option
}

func (r *registry) with(ctx context.Context) []remote.Option {
	return append([]remote.Option{remote.WithContext(ctx)}, r.opts...)
}

func (r *registry) root(ctx context.Context) ([]byte, types.MediaType, error) {
	d, err := remote.Get(r.ref, r.with(ctx)...)
	if err != nil {
		return nil, "", r.failed(err)
	}
	return d.Manifest, d.MediaType, nil
}

func (r *registry) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	at := r.ref.Context().Digest(d.Digest.String())
	if d.MediaType.IsImage() || d.MediaType.IsIndex() {
		m, err := remote.Get(at, r.with(ctx)...)
		if err != nil {
			return nil, r.failed(err)
		}
		return io.NopCloser(bytes.NewReader(m.Manifest)), nil
	}
	l, err := remote.Layer(at, r.with(ctx)...)
	if err != nil {
		return nil, r.failed(err)
	}
	body, err := l.Compressed() // as it is: the layers are files, and digests are of what is sent
	if err != nil {
		return nil, r.failed(err)
	}
	return body, nil
}
