package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/images"
	"rerack.dev/rerack/pxe/importer"
)

// imageFlags say where the files of an image are and what it is.
type imageFlags struct {
	kernel, disk, efi, iso string
	initrds                []string
	kernelPath             string
	initrdPaths            []string
	whole                  bool
	kind, arch, cmdline    string
	firmware, sums         []string
	registryCA             string
}

func (f *imageFlags) register(c *cobra.Command) {
	v := c.Flags()
	v.StringVar(&f.kernel, "kernel", "", "kernel")
	v.StringArrayVar(&f.initrds, "initrd", nil, "initial RAM disk; may be repeated, in order")
	v.StringVar(&f.disk, "disk", "", "raw disk image, which the boot loader reads over HTTP")
	v.StringVar(&f.efi, "efi", "", "EFI binary")
	v.StringVar(&f.iso, "iso", "", "ISO image, of which kernel and initial RAM disk are taken")
	v.StringVar(&f.kernelPath, "kernel-path", "", "where the kernel lies in the ISO image (default: the places of Debian, Ubuntu, RHEL and others)")
	v.StringArrayVar(&f.initrdPaths, "initrd-path", nil, "where an initial RAM disk lies in the ISO image; may be repeated")
	v.BoolVar(&f.whole, "whole", false, "take the ISO image as it is; the boot loader reads it over HTTP")
	v.StringVar(&f.kind, "type", "kernel", "of an image with a kernel: kernel, hypervisor or capture")
	v.StringVar(&f.arch, "arch", "x86_64", "x86_64 or arm64")
	v.StringSliceVar(&f.firmware, "firmware", nil, "ways it can boot: bios, uefi (default: all; an EFI binary: uefi)")
	v.StringVar(&f.cmdline, "cmdline", "", "kernel parameters, with spaces between")
	v.StringArrayVar(&f.sums, "sha256", nil, "checksum that a file must have: HEX when there is one file, else FILE=HEX")
	v.StringVar(&f.registryCA, "registry-ca", "", "PEM file of the authority that signs the OCI registry's certificate (default: the system's)")
}

// imageSet is an image ready to be sent.
type imageSet struct {
	upload api.ImageUpload
	files  []importer.File
	temp   string // folder of what was fetched to be read here; empty: none
}

func (s *imageSet) close() {
	if s.temp != "" {
		_ = os.RemoveAll(s.temp)
	}
}

// open finds the files and what they are. Those of this machine are read once, so that their digests are known
// before anything is sent.
func (f *imageFlags) open(ctx context.Context, args []string) (_ *imageSet, err error) {
	set := &imageSet{}
	defer func() {
		if err != nil {
			set.close()
		}
	}()
	sums, err := f.checksums()
	if err != nil {
		return nil, err
	}
	m := images.Manifest{Name: args[0], Type: f.kind, Arch: f.arch, Firmware: f.firmware}
	if m.Cmdline, err = parameters(f.cmdline); err != nil {
		return nil, err
	}
	if set.files, set.upload.Source, err = f.find(ctx, args[1:], sums, set); err != nil {
		return nil, err
	}
	if err := sums.left(); err != nil {
		return nil, err
	}
	if first := set.files[0].Role; first != images.RoleKernel {
		m.Type = string(first)
		if first == images.RoleEFI && len(m.Firmware) == 0 {
			m.Firmware = []string{"uefi"}
		}
	}
	for i := range set.files {
		file := &set.files[i]
		m.Files = append(m.Files, images.Part{Role: file.Role, Digest: file.Digest, Size: file.Size})
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	for i := range set.files {
		if p := &m.Files[i]; !set.files[i].Remote {
			if p.Digest, p.Size, err = importer.Digest(ctx, set.files[i]); err != nil {
				return nil, err
			}
		}
	}
	set.upload.Manifest = m
	return set, nil
}

// find makes files of the flags.
func (f *imageFlags) find(ctx context.Context, args []string, sums *checksums, set *imageSet) ([]importer.File, string, error) {
	given := 0
	for _, s := range append([]string{f.kernel, f.disk, f.efi, f.iso}, args...) {
		if s != "" {
			given++
		}
	}
	if given != 1 || len(f.initrds) > 0 && f.kernel == "" {
		return nil, "", &fault.Error{Kind: fault.Invalid, What: "say what to import, once", Next: "--kernel with --initrd, --disk, --efi, --iso, or oci:REFERENCE"}
	}
	if len(args) == 1 {
		ref, ok := strings.CutPrefix(args[0], "oci:")
		if !ok {
			return nil, "", &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("%q is no reference", args[0]), Next: "write oci:registry/repository:tag, or oci: and the path of a layout"}
		}
		roots, err := authorities(f.registryCA)
		if err != nil {
			return nil, "", err
		}
		return importer.FromOCI(ctx, ref, f.arch, roots)
	}
	if f.iso != "" && !f.whole {
		return f.fromISO(ctx, sums, set)
	}
	var files []importer.File
	var sources []string
	for _, one := range f.named() {
		file, err := sums.file(one.role, one.at)
		if err != nil {
			return nil, "", err
		}
		files, sources = append(files, file), append(sources, public(one.at))
	}
	return files, strings.Join(sources, " "), nil
}

type namedFile struct {
	role images.Role
	at   string
}

func (f *imageFlags) named() []namedFile {
	switch {
	case f.disk != "":
		return []namedFile{{images.RoleDisk, f.disk}}
	case f.efi != "":
		return []namedFile{{images.RoleEFI, f.efi}}
	case f.iso != "":
		return []namedFile{{images.RoleISO, f.iso}}
	}
	out := []namedFile{{images.RoleKernel, f.kernel}}
	for _, i := range f.initrds {
		out = append(out, namedFile{images.RoleInitrd, i})
	}
	return out
}

func (f *imageFlags) fromISO(ctx context.Context, sums *checksums, set *imageSet) ([]importer.File, string, error) {
	whole, err := sums.file(images.RoleISO, f.iso)
	if err != nil {
		return nil, "", err
	}
	path := f.iso
	switch {
	case whole.Remote:
		if set.temp, err = os.MkdirTemp("", "rerack-image-"); err != nil {
			return nil, "", fault.Wrap(err, "keep", whole.Name)
		}
		if path, err = importer.Download(ctx, whole, set.temp); err != nil {
			return nil, "", err
		}
	case whole.Digest != "":
		if _, _, err := importer.Digest(ctx, whole); err != nil {
			return nil, "", err
		}
	}
	files, err := importer.FromISO(path, f.kernelPath, f.initrdPaths)
	return files, public(f.iso), err
}

// public is a file's name without what is nobody else's business: folders of this machine, or a URL's query.
func public(at string) string {
	if u, err := url.Parse(at); err == nil && importer.IsURL(at) {
		u.RawQuery, u.Fragment, u.User = "", "", nil
		return u.String()
	}
	return filepath.Base(at)
}

// parameters reads a command line. A word without = is a flag; none may be given twice, which the topology cannot say.
func parameters(line string) (map[string]string, error) {
	out := map[string]string{}
	for _, word := range strings.Fields(line) {
		k, v, _ := strings.Cut(word, "=")
		if _, twice := out[k]; twice {
			return nil, &fault.Error{Kind: fault.Invalid, What: "--cmdline", Evidence: k + " is given twice"}
		}
		out[k] = v
	}
	return out, nil
}

func authorities(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil // the system's
	}
	b, err := os.ReadFile(file)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(b) {
		return nil, &fault.Error{Kind: fault.Invalid, Where: file, What: "--registry-ca", Err: err, Next: "name a PEM file of certificates"}
	}
	return pool, nil
}

// checksums are those given on the command line, by file; "" is for the only one.
type checksums struct {
	of   map[string]pxe.Digest
	used map[string]bool
}

func (f *imageFlags) checksums() (*checksums, error) {
	c := &checksums{of: map[string]pxe.Digest{}, used: map[string]bool{}}
	for _, s := range f.sums {
		file, hex := "", s
		if i := strings.LastIndexByte(s, '='); i >= 0 {
			file, hex = s[:i], s[i+1:]
		}
		d, err := pxe.ParseDigest("sha256:" + strings.ToLower(strings.TrimPrefix(hex, "sha256:")))
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("--sha256 %.100q", s), Next: "write 64 hex digits, or FILE=HEX"}
		}
		c.of[file] = d
	}
	if _, bare := c.of[""]; bare && (len(f.sums) > 1 || len(f.initrds) > 0) {
		return nil, &fault.Error{Kind: fault.Invalid, What: "--sha256", Evidence: "there are several files", Next: "write FILE=HEX for each"}
	}
	return c, nil
}

func (c *checksums) file(role images.Role, at string) (importer.File, error) {
	key := at
	if _, ok := c.of[at]; !ok {
		key = ""
	}
	c.used[key] = true
	if importer.IsURL(at) {
		return importer.Remote(role, at, c.of[key], http.DefaultClient)
	}
	return importer.Local(role, at, c.of[key])
}

// left refuses a checksum that was of no use: it names a file that is none of the image's.
func (c *checksums) left() error {
	for file := range c.of {
		if !c.used[file] {
			return &fault.Error{Kind: fault.Invalid, What: "--sha256 " + file, Evidence: "no file of the image has this name"}
		}
	}
	return nil
}

// write sends the parts of an upload.
func (s *imageSet) write(ctx context.Context, form *multipart.Writer, bar *progress) error {
	head, err := form.CreateFormField(api.ImagePart)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(head).Encode(s.upload); err != nil {
		return err
	}
	for _, f := range s.files {
		part, err := form.CreateFormFile(api.FilePart, string(f.Role))
		if err != nil {
			return err
		}
		if err := send(ctx, part, f, bar); err != nil {
			return err
		}
	}
	return form.Close()
}

func send(ctx context.Context, w io.Writer, f importer.File, bar *progress) error {
	r, err := f.Open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	bar.start(f.Name)
	_, err = io.Copy(io.MultiWriter(w, bar), importer.Checked(f.Role, r))
	return err
}

// isClosed is what the writer of a pipe hears when nobody reads it any more.
func isClosed(err error) bool { return errors.Is(err, io.ErrClosedPipe) }
