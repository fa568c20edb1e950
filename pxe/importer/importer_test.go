package importer_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/importer"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}

func digestOf(s string) pxe.Digest { return pxe.DigestOf(sha256.Sum256([]byte(s))) }

func read(t testing.TB, f importer.File) string {
	t.Helper()
	r, err := f.Open(t.Context())
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	return string(b)
}

// pe is the least that passes for a PE binary.
func pe() string {
	b := make([]byte, 200)
	copy(b, "MZ")
	b[0x3c] = 0x80
	copy(b[0x80:], "PE\x00\x00")
	return string(b)
}

func at(offset int, text string) string {
	return string(make([]byte, offset)) + text + string(make([]byte, 100))
}

func TestSniff(t *testing.T) {
	disk := at(510, "\x55\xaa")
	accepted := map[images.Role]map[string]string{
		images.RoleKernel: {"bzImage": kernel(), "EFI": pe(), "arm64": at(0x38, "ARM\x64")},
		images.RoleInitrd: {"cpio": initrd, "gzip": "\x1f\x8b\x08 ", "zstd": "\x28\xb5\x2f\xfd ", "xz": "\xfd7zXZ\x00 "},
		images.RoleDisk:   {"MBR": disk, "GPT": at(512, "EFI PART"), "hybrid ISO": at(16*sector+1, "CD001")},
		images.RoleISO:    {"ISO": at(16*sector+1, "CD001")},
		images.RoleEFI:    {"EFI": pe()},
	}
	for role, kinds := range accepted {
		for name, b := range kinds {
			if err := importer.Sniff(role, []byte(b)); err != nil {
				t.Errorf("%s %s: %v", role, name, err)
			}
		}
	}
	for name, tt := range map[string]struct {
		role images.Role
		head string
		says string
	}{
		"CVE-2024-44082 qcow2": {images.RoleDisk, "QFI\xfb" + disk[4:], "qcow2"},
		"CVE-2024-44082 VMDK":  {images.RoleDisk, "KDMV" + disk[4:], "VMDK"},
		"VMDK descriptor":      {images.RoleDisk, "# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0", "VMDK"},
		"VDI":                  {images.RoleDisk, at(0x40, "\x7f\x10\xda\xbe"), "VDI"},
		"VHDX":                 {images.RoleISO, "vhdxfile", "VHDX"},
		"compressed":           {images.RoleDisk, "\x1f\x8b\x08", "gzip"},
		"an error page":        {images.RoleDisk, "<!DOCTYPE html>", "HTML"},
		"empty":                {images.RoleDisk, "", "empty"},
		"zeros":                {images.RoleDisk, at(4096, ""), "unknown"},
		"ELF":                  {images.RoleKernel, "\x7fELF", "ELF"},
		"PE beyond its end":    {images.RoleEFI, "MZ" + strings.Repeat("\xff", 100), "unknown"},
		"kernel for an initrd": {images.RoleInitrd, kernel(), "Linux kernel"},
		"no such role":         {"shell", kernel(), "Linux kernel"},
	} {
		if err := importer.Sniff(tt.role, []byte(tt.head)); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := io.ReadAll(importer.Checked(images.RoleDisk, strings.NewReader("QFI\xfb"))); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a stream of qcow2: %v", err)
	}
	long := disk + strings.Repeat("x", 200000)
	if b, err := io.ReadAll(importer.Checked(images.RoleDisk, strings.NewReader(long))); err != nil || string(b) != long {
		t.Errorf("%d of %d bytes, %v", len(b), len(long), err)
	}
}

func FuzzSniff(f *testing.F) {
	for _, s := range []string{"", kernel(), pe(), initrd, "QFI\xfb", at(16*sector+1, "CD001")} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, role := range []images.Role{images.RoleDisk, images.RoleISO} {
			if importer.Sniff(role, []byte(s)) == nil && strings.HasPrefix(s, "QFI\xfb") {
				t.Errorf("qcow2 passes for %s", role)
			}
		}
		for _, role := range []images.Role{images.RoleKernel, images.RoleInitrd, images.RoleEFI} {
			_ = importer.Sniff(role, []byte(s))
		}
	})
}

func TestLocal(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "vmlinuz")
	must(t, os.WriteFile(path, []byte(kernel()), 0o600))
	f, err := importer.Local(images.RoleKernel, path, digestOf(kernel()))
	must(t, err)
	if read(t, f) != kernel() {
		t.Error("other content")
	}
	for name, change := range map[string]string{"cut off": kernel()[:900], "longer": kernel() + "x", "changed": strings.Replace(kernel(), "HdrS", "HdrT", 1)} {
		must(t, os.WriteFile(path, []byte(change), 0o600))
		r, err := f.Open(t.Context())
		must(t, err)
		if _, err := io.ReadAll(r); !fault.Is(err, fault.Unverified) {
			t.Errorf("%s: %v", name, err)
		}
		must(t, r.Close())
	}
	for _, p := range []string{dir, filepath.Join(dir, "nothing"), "/dev/zero"} {
		if _, err := importer.Local(images.RoleKernel, p, ""); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestURL(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, kernel()) }))
	defer elsewhere.Close()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/vmlinuz":
			fmt.Fprint(w, kernel())
		case "/moved":
			http.Redirect(w, r, "/vmlinuz", http.StatusFound)
		case "/away":
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/cut":
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, kernel()[:500])
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	for path, want := range map[string]fault.Kind{"/away": fault.Unsupported, "/loop": fault.Unsupported, "/cut": fault.Unverified, "/nothing": fault.NotFound} {
		f, err := importer.Remote(images.RoleKernel, s.URL+path, digestOf(kernel()), s.Client())
		must(t, err)
		if _, _, err := importer.Digest(t.Context(), f); !fault.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"/vmlinuz", "/moved"} {
		f, err := importer.Remote(images.RoleKernel, s.URL+path, digestOf(kernel()), s.Client())
		must(t, err)
		if read(t, f) != kernel() {
			t.Errorf("%s: other content", path)
		}
		kept, err := importer.Download(t.Context(), f, t.TempDir())
		must(t, err)
		if b, err := os.ReadFile(kept); err != nil || string(b) != kernel() {
			t.Errorf("%s: kept %d bytes, %v", path, len(b), err)
		}
	}
	f, err := importer.Remote(images.RoleKernel, s.URL+"/vmlinuz", digestOf("other"), s.Client())
	must(t, err)
	if _, _, err := importer.Digest(t.Context(), f); !fault.Is(err, fault.Unverified) || !strings.Contains(err.Error(), string(digestOf(kernel()))) {
		t.Errorf("CVE-2024-47211 other content: %v", err)
	}
	for _, u := range []string{"file:///etc/passwd", "http://", "ftp://h/x", "http://user:secret@h/x", "http://h/x"} {
		if _, err := importer.Remote(images.RoleKernel, u, "", s.Client()); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", u, err)
		}
	}
}
