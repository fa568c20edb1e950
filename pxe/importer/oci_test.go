package importer_test

import (
	"archive/tar"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/importer"
)

// artifact has a layer a file, given as title and content, as oras push makes them.
func artifact(t testing.TB, files ...string) v1.Image {
	t.Helper()
	img := empty.Image
	for i := 0; i < len(files); i += 2 {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer([]byte(files[i+1]), "application/octet-stream"),
			Annotations: map[string]string{"org.opencontainers.image.title": files[i]}})
		must(t, err)
	}
	return mutate.MediaType(img, types.OCIManifestSchema1)
}

func index(t testing.TB, arches map[string]v1.Image) v1.ImageIndex {
	t.Helper()
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for arch, img := range arches {
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return idx
}

// TestOCIRegistry pulls from a registry over TLS.
func TestOCIRegistry(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	quiet := log.New(io.Discard, "", 0)
	reg := httptest.NewUnstartedServer(registry.New(registry.Logger(quiet)))
	reg.Config.ErrorLog = quiet // it hears of a client that does not trust it
	reg.StartTLS()
	defer reg.Close()
	host := strings.TrimPrefix(reg.URL, "https://")
	roots := x509.NewCertPool()
	roots.AddCert(reg.Certificate())
	push := func(ref string, write func(name.Reference, ...remote.Option) error) {
		t.Helper()
		r, err := name.ParseReference(host + ref)
		must(t, err)
		must(t, write(r, remote.WithTransport(reg.Client().Transport)))
	}
	one := artifact(t, "initrd.img", initrd, "vmlinuz", kernel())
	push("/images/web:v7", func(r name.Reference, o ...remote.Option) error { return remote.Write(r, one, o...) })
	other := artifact(t, "vmlinuz", pe())
	push("/images/web:multi", func(r name.Reference, o ...remote.Option) error {
		return remote.WriteIndex(r, index(t, map[string]v1.Image{"amd64": one, "arm64": other}), o...)
	})
	push("/images/container:1", func(r name.Reference, o ...remote.Option) error { return remote.Write(r, artifact(t, "", "tar"), o...) })

	d, err := one.Digest()
	must(t, err)
	for _, ref := range []string{"/images/web:v7", "/images/web:multi", "/images/web@" + d.String()} {
		files, source, err := importer.FromOCI(t.Context(), host+ref, "x86_64", roots)
		must(t, err)
		if len(files) != 2 || read(t, files[0]) != kernel() || read(t, files[1]) != initrd || source != "oci:"+host+"/images/web@"+d.String() {
			t.Errorf("%s: %+v from %s", ref, files, source)
		}
		if got, _, err := importer.Digest(t.Context(), files[0]); err != nil || got != files[0].Digest || got != digestOf(kernel()) {
			t.Errorf("%s: %s, %v", ref, got, err)
		}
	}
	files, _, err := importer.FromOCI(t.Context(), host+"/images/web:multi", "arm64", roots)
	if err != nil || len(files) != 1 || read(t, files[0]) != pe() {
		t.Errorf("arm64: %+v, %v", files, err)
	}
	for ref, want := range map[string]fault.Kind{"/images/web:v8": fault.NotFound, "/images/container:1": fault.Unsupported, "/images/web": fault.Invalid, "": fault.Invalid} {
		if _, _, err := importer.FromOCI(t.Context(), host+ref, "x86_64", roots); !fault.Is(err, want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, _, err := importer.FromOCI(t.Context(), host+"/images/web:v7", "x86_64", nil); !fault.Is(err, fault.Unauthorized) || !strings.Contains(err.Error(), "--registry-ca") {
		t.Errorf("an authority that is not trusted: %v", err)
	}
	plain := httptest.NewServer(registry.New(registry.Logger(quiet)))
	defer plain.Close()
	if _, _, err := importer.FromOCI(t.Context(), strings.TrimPrefix(plain.URL, "http://")+"/x:1", "x86_64", roots); err == nil || fault.Is(err, fault.NotFound) {
		t.Errorf("a registry without TLS: %v", err)
	}
}

func TestOCILayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	must(t, err)
	must(t, path.AppendImage(artifact(t, "disk.raw", at(510, "\x55\xaa"))))
	archive := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(archive)
	must(t, err)
	w := tar.NewWriter(f)
	must(t, w.AddFS(os.DirFS(dir)))
	must(t, w.Close())
	must(t, f.Close())
	for _, at := range []string{dir, archive} {
		files, _, err := importer.FromOCI(t.Context(), at, "x86_64", nil)
		if err != nil || len(files) != 1 {
			t.Fatalf("%s: %+v, %v", at, files, err)
		}
		if _, _, err := importer.Digest(t.Context(), files[0]); err != nil {
			t.Error(err)
		}
	}
	// A layout that lies about its content.
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	must(t, err)
	for _, b := range blobs {
		was, err := os.ReadFile(b)
		must(t, err)
		must(t, os.WriteFile(b, append(was[:len(was)-1:len(was)-1], was[len(was)-1]^1), 0o600))
		files, _, err := importer.FromOCI(t.Context(), dir, "x86_64", nil)
		if err == nil {
			_, _, err = importer.Digest(t.Context(), files[0])
		}
		if !strings.Contains(string(was), `"rootfs"`) && !fault.Is(err, fault.Unverified) { // the config is not read
			t.Errorf("%s changed: %v", b, err)
		}
		must(t, os.WriteFile(b, was, 0o600))
	}
	for _, at := range []string{t.TempDir(), "/etc/hostname"} {
		if _, _, err := importer.FromOCI(t.Context(), at, "x86_64", nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", at, err)
		}
	}
}

func FuzzOCIManifest(f *testing.F) {
	for _, img := range []v1.Image{artifact(f, "vmlinuz", kernel(), "initrd", initrd), artifact(f, "x.iso", "x"), artifact(f, "../../etc/passwd", "x"), empty.Image} {
		b, err := img.RawManifest()
		must(f, err)
		f.Add(b)
	}
	f.Add([]byte(`{"layers":[{"digest":"sha256:00","size":-1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		layers, err := importer.Layers(b)
		if err != nil {
			return
		}
		var m v1.Manifest
		if json.Unmarshal(b, &m) == nil && len(layers) != len(m.Layers) {
			t.Errorf("%d files of %d layers", len(layers), len(m.Layers))
		}
		for _, l := range layers {
			if l.Size <= 0 || l.Digest.Algorithm != "sha256" || l.Role == "" {
				t.Errorf("layer %+v", l)
			}
		}
	})
}
