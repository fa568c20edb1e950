package imagebuild

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"rerack.dev/rerack/internal/fault"
)

//go:embed debian/init.sh
var debianInit []byte

//go:embed debian/udhcpc.sh
var debianDHCP []byte

// Debian is a minimal Debian that runs from memory: its essential packages, a kernel, and a first process that takes
// an address, logs in to its iSCSI volumes, phones home and starts what it is for. Program mmdebstrap makes it.
type Debian struct {
	Suite  string // "bookworm"
	Arch   string // as Debian names it: amd64 or arm64
	Mirror string // URL; empty: deb.debian.org, with its security updates
	Kernel string // package
	// Include are more packages, which are installed with all they need.
	Include []string
	// Overlay is a folder laid over the system. A program etc/rerack/start in it is run when the network and the
	// volumes are there; the machine reports healthy when it ends well.
	Overlay string
	// Epoch is the time that files say they are from, in seconds since 1970 (SOURCE_DATE_EPOCH): with the same
	// packages at the mirror, the same bytes come out.
	Epoch int64
	Log   io.Writer // what mmdebstrap says; nil: nobody
}

var (
	suiteForm   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	packageForm = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,127}$`) // Debian Policy 5.6.1
	mirrorForm  = regexp.MustCompile(`^https?://[A-Za-z0-9.:/_~-]{1,512}$`)
)

const (
	maxSystemFile = 1 << 30 // bytes of one file
	maxSystem     = 8 << 30 // bytes of all
)

// Validate names the first field that is wrong.
func (d *Debian) Validate() error {
	bad := func(field, value string) error {
		return &fault.Error{Kind: fault.Invalid, What: "image debian: " + field, Evidence: fmt.Sprintf("%.80q", value)}
	}
	switch {
	case !suiteForm.MatchString(d.Suite):
		return bad("Suite", d.Suite)
	case d.Arch != "amd64" && d.Arch != "arm64":
		return bad("Arch", d.Arch)
	case d.Mirror != "" && !mirrorForm.MatchString(d.Mirror):
		return bad("Mirror", d.Mirror)
	case !packageForm.MatchString(d.Kernel):
		return bad("Kernel", d.Kernel)
	case d.Epoch < 0:
		return bad("Epoch", fmt.Sprint(d.Epoch))
	}
	for _, p := range d.Include {
		if !packageForm.MatchString(p) {
			return bad("Include", p)
		}
	}
	return nil
}

// packages are what the first process needs. The last provides what Debian's kernels ask for, an initramfs builder, and
// costs the least: the initial RAM disk here is another one.
func (d *Debian) packages() []string {
	return append([]string{d.Kernel, "busybox-static", "kmod", "open-iscsi", "tiny-initramfs"}, d.Include...)
}

// Build writes the kernel and the initial RAM disk, which holds the whole system.
func (d *Debian) Build(ctx context.Context, kernel, initrd io.Writer) error {
	if err := d.Validate(); err != nil {
		return err
	}
	program, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return &fault.Error{Kind: fault.NotFound, What: "find mmdebstrap", Err: err, Next: "apt install mmdebstrap"}
	}
	args := []string{"--variant=essential", "--format=tar", "--architectures=" + d.Arch, "--include=" + strings.Join(d.packages(), ",")}
	for _, dir := range unwanted() {
		args = append(args, "--dpkgopt=path-exclude=/"+dir+"/*")
	}
	args = append(args, "--", d.Suite, "-")
	if d.Mirror != "" {
		args = append(args, d.Mirror)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", d.Epoch), "LC_ALL=C.UTF-8")
	var said bytes.Buffer
	cmd.Stderr = &said
	if d.Log != nil {
		cmd.Stderr = io.MultiWriter(&said, d.Log)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fault.Wrap(err, "start", program)
	}
	packed := d.pack(out, kernel, initrd)
	_, _ = io.Copy(io.Discard, out) // it ends by itself, so that it clears up after itself
	if err := cmd.Wait(); err != nil {
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		return &fault.Error{Kind: fault.Internal, What: "mmdebstrap", Err: err, Evidence: strings.Join(lines[max(0, len(lines)-3):], "; "),
			Next: "see that the mirror is reached, and that the packages exist in " + d.Suite}
	}
	return packed
}

// unwanted are folders of packages that no machine reads.
func unwanted() []string {
	return []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"}
}

// left are files and folders of the finished system that stay out: what only building needed, and what differs
// from one build to the next.
func left(name string) bool {
	for _, p := range append(unwanted(), "boot", "dev", "proc", "sys", "run", "var/log", "var/cache", "var/lib/apt", "usr/lib/udev", "etc/machine-id", "etc/hostname",
		"etc/resolv.conf", "etc/iscsi/initiatorname.iscsi", "vmlinuz", "initrd.img", "vmlinuz.old", "initrd.img.old") {
		if name == p || strings.HasPrefix(name, p+"/") {
			return true
		}
	}
	return strings.HasSuffix(name, "-") && strings.HasPrefix(name, "etc/") // the account files before the last change
}

// pack makes an initial RAM disk of the system in a tar archive, and takes the kernel out of it.
func (d *Debian) pack(system io.Reader, kernel, initrd io.Writer) error {
	z, err := zstd.NewWriter(initrd, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return fault.Wrap(err, "compress", "initial RAM disk")
	}
	a := NewArchive(z)
	a.Device("dev/console", 5, 1)
	a.Device("dev/null", 1, 3)
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp"} {
		a.Dir(dir)
	}
	err = d.overlay(a) // first: what is there is not added again
	if err == nil {
		a.File("init", 0o755, debianInit)
		a.File("etc/rerack/udhcpc", 0o755, debianDHCP)
		err = d.system(a, system, kernel)
	}
	return fault.Wrap(errors.Join(err, a.Close(), z.Close()), "build", "initial RAM disk")
}

func (d *Debian) system(a *Archive, system io.Reader, kernel io.Writer) error {
	r := tar.NewReader(system)
	var total int64
	var kernels []string
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return &fault.Error{Kind: fault.Invalid, What: "read the system", Err: err}
		}
		if total += h.Size; h.Size > maxSystemFile || total > maxSystem {
			return fault.Newf(fault.Invalid, "the system is too large at %.200q", h.Name)
		}
		name := clean(h.Name)
		if h.Typeflag == tar.TypeReg && strings.HasPrefix(name, "boot/vmlinuz-") {
			kernels = append(kernels, name)
			if _, err := io.Copy(kernel, r); err != nil {
				return err
			}
			continue
		}
		if name == "" || left(name) {
			continue
		}
		switch h.Typeflag {
		case tar.TypeDir:
			a.Dir(name)
		case tar.TypeSymlink:
			a.Link(name, h.Linkname)
		case tar.TypeLink:
			a.Link(name, "/"+clean(h.Linkname))
		case tar.TypeReg:
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			a.File(name, int(h.Mode), b)
		}
	}
	if len(kernels) != 1 {
		return &fault.Error{Kind: fault.Invalid, What: "find the kernel", Evidence: fmt.Sprintf("%d in /boot: %s", len(kernels), strings.Join(kernels, ", ")),
			Next: "name one kernel package with --kernel"}
	}
	return nil
}

// overlay adds the files of the folder, in the order of their names. Links stay links, and are not followed.
func (d *Debian) overlay(a *Archive) error {
	if d.Overlay == "" {
		return nil
	}
	root, err := os.OpenRoot(d.Overlay)
	if err != nil {
		return &fault.Error{Kind: fault.Invalid, Where: d.Overlay, What: "open overlay", Err: err}
	}
	defer root.Close()
	return fault.Wrap(fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || name == ".":
			return err
		case slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, name):
			return &fault.Error{Kind: fault.Invalid, What: name + " is a link in Debian", Next: "put its files into usr/" + name}
		case e.IsDir():
			a.Dir(name)
		case e.Type()&fs.ModeSymlink != 0:
			to, err := root.Readlink(name)
			a.Link(name, to)
			return err
		case e.Type().IsRegular():
			fi, err := e.Info()
			if err != nil {
				return err
			}
			b, err := root.ReadFile(name)
			a.File(name, int(fi.Mode().Perm()), b)
			return err
		default:
			return fault.Newf(fault.Invalid, "%.200q is neither a file, a folder nor a link", name)
		}
		return nil
	}), "read overlay", d.Overlay)
}
