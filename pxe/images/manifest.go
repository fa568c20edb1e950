package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

// Role is what a file is in its image.
type Role string

const (
	RoleKernel Role = "kernel" // a Linux kernel that iPXE or UEFI starts
	RoleInitrd Role = "initrd" // an initial RAM disk
	RoleDisk   Role = "disk"   // a raw disk image
	RoleISO    Role = "iso"    // an ISO 9660 image
	RoleEFI    Role = "efi"    // an EFI binary
)

// Manifest is what an image is made of. Its Text is what a maker signs: kernel, initial RAM disks and
// parameters together, because a boot is as good as its worst part.
type Manifest struct {
	Name     string            `json:"name"`
	Type     string            `json:"type"` // kernel, hypervisor, capture, disk, iso or efi
	Arch     string            `json:"arch"`
	Firmware []string          `json:"firmware,omitempty"` // ways it can boot; none means all
	Cmdline  map[string]string `json:"cmdline,omitempty"`
	Files    []Part            `json:"files"`
}

// Part is one file of an image.
type Part struct {
	Role   Role       `json:"role"`
	Digest pxe.Digest `json:"digest"`
	Size   int64      `json:"size"` // bytes
}

// Record is a manifest as it is kept, with how it came in.
type Record struct {
	Manifest  Manifest  `json:"manifest"`
	Signature string    `json:"signature,omitempty"` // minisign's, of the manifest's text
	SignedBy  string    `json:"signedBy,omitempty"`  // id of the trusted key that it was made with
	Source    string    `json:"source,omitempty"`    // where it was imported from, for people
	By        string    `json:"by,omitempty"`
	At        time.Time `json:"at"`
}

const (
	maxFiles    = 17 // a kernel and pxe's 16 initial RAM disks
	maxParams   = 128
	maxManifest = 256 << 10 // bytes of a record
)

// rolesOf says which file an image of a type has first, and whether initial RAM disks follow.
func rolesOf(kind string) (first Role, initrds bool) {
	switch kind {
	case "kernel", "hypervisor", "capture":
		return RoleKernel, true
	case "disk", "iso", "efi":
		return Role(kind), false
	}
	return "", false
}

var (
	imageForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) // as the topology's names
	archs     = []string{"x86_64", "arm64"}
	firmwares = []string{"bios", "uefi"}
	paramKey  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	paramText = regexp.MustCompile(`^[A-Za-z0-9_.,:/=@%+~*\[\]-]{0,1000}$`)
)

// Validate names the first field that is wrong. Digests and sizes may still be missing, which is how a
// manifest looks before its files are read; Complete says whether they are.
func (m *Manifest) Validate() error {
	bad := func(field, why string) error {
		return &fault.Error{Kind: fault.Invalid, Where: fmt.Sprintf("image %.80s", m.Name), What: field, Evidence: why}
	}
	first, initrds := rolesOf(m.Type)
	switch {
	case !imageForm.MatchString(m.Name):
		return bad("name", fmt.Sprintf("%.80q: want up to 63 lower-case letters, digits and dashes", m.Name))
	case first == "":
		return bad("type", fmt.Sprintf("%.20q: want kernel, hypervisor, capture, disk, iso or efi", m.Type))
	case !slices.Contains(archs, m.Arch):
		return bad("arch", fmt.Sprintf("%.20q: want x86_64 or arm64", m.Arch))
	case len(m.Files) == 0 || len(m.Files) > maxFiles:
		return bad("files", fmt.Sprintf("%d: want 1 to %d", len(m.Files), maxFiles))
	case len(m.Cmdline) > maxParams:
		return bad("cmdline", fmt.Sprintf("%d parameters: at most %d", len(m.Cmdline), maxParams))
	case len(m.Cmdline) > 0 && !initrds:
		return bad("cmdline", "an image of type "+m.Type+" takes no parameters")
	}
	for _, f := range m.Firmware {
		if !slices.Contains(firmwares, f) {
			return bad("firmware", fmt.Sprintf("%.20q: want bios or uefi", f))
		}
	}
	for k, v := range m.Cmdline {
		if !paramKey.MatchString(k) || !paramText.MatchString(v) {
			return bad("cmdline", fmt.Sprintf("%.80q=%.80q has characters that no boot script takes", k, v))
		}
	}
	for i, p := range m.Files {
		want := first
		if i > 0 {
			want = RoleInitrd
		}
		if p.Role != want || i > 0 && !initrds {
			return bad(fmt.Sprintf("files[%d]", i), fmt.Sprintf("an image of type %s has no %.20q there", m.Type, p.Role))
		}
		if _, err := pxe.ParseDigest(string(p.Digest)); p.Digest != "" && err != nil || p.Size < 0 {
			return bad(fmt.Sprintf("files[%d]", i), fmt.Sprintf("digest %.80q of %d bytes", p.Digest, p.Size))
		}
	}
	return nil
}

// Complete reports whether every file has been read.
func (m *Manifest) Complete() bool {
	return !slices.ContainsFunc(m.Files, func(p Part) bool { return p.Digest == "" || p.Size == 0 })
}

// Text is the manifest in the one form that is signed: JSON with the fields in the order of the type, keys
// of parameters in byte order, two spaces a level, and a final newline.
func (m *Manifest) Text() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(m) // strings and numbers only: it has no way to fail
	return b.Bytes()
}

// Size is that of all files together, in bytes.
func (m *Manifest) Size() (n int64) {
	for _, p := range m.Files {
		n += p.Size
	}
	return n
}

// ParseRecord reads a record as it is kept, and refuses one that is not whole.
func ParseRecord(b []byte) (Record, error) {
	var r Record
	if len(b) > maxManifest {
		return r, fault.Newf(fault.Invalid, "manifest of %d bytes: at most %d", len(b), maxManifest)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, &fault.Error{Kind: fault.Invalid, What: "read manifest", Err: err}
	}
	if err := r.Manifest.Validate(); err != nil {
		return r, err
	}
	if !r.Manifest.Complete() {
		return r, fault.Newf(fault.Invalid, "manifest of image %s lacks a digest or a size", r.Manifest.Name)
	}
	return r, nil
}

// Image returns the record of an image, or fault.NotFound.
func (s *Store) Image(name string) (Record, error) {
	if !imageForm.MatchString(name) {
		return Record{}, fault.Newf(fault.Invalid, "image name %.80q", name)
	}
	f, err := s.root.Open(path.Join(manifests, name))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, &fault.Error{Kind: fault.NotFound, Where: "image " + name, What: "there is no such image", Next: "rerack image list"}
	}
	if err != nil {
		return Record{}, fault.Wrap(err, "open", "image "+name)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return Record{}, fault.Wrap(err, "read manifest", "image "+name)
	}
	r, err := ParseRecord(b)
	if err == nil && r.Manifest.Name != name {
		err = fault.Newf(fault.Unverified, "its manifest names image %s", r.Manifest.Name)
	}
	return r, fault.Wrap(err, "read manifest", "image "+name)
}

// Images returns all records in order of their names. One that cannot be read is an error with the rest.
func (s *Store) Images() ([]Record, error) {
	es, err := fs.ReadDir(s.root.FS(), manifests)
	if err != nil {
		return nil, fault.Wrap(err, "list", "image store")
	}
	out := make([]Record, 0, len(es))
	var errs []error
	for _, e := range es {
		r, err := s.Image(e.Name())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}
