// Package imagebuild makes the images of machines that boot for Rerack itself: a kernel as a distribution
// ships it, and an initial RAM disk with what it needs and nothing else. The same files in give the same
// bytes out.
package imagebuild

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pid1"
)

// Kernel is a Linux kernel.
type Kernel struct {
	Image   string // a bzImage
	Modules string // its own folder below lib/modules
}

// FindKernel looks for a kernel with its modules below each root in turn, as Debian's linux-image packages
// lay them out. The newest version by name is taken. fault.NotFound says what to install.
func FindKernel(roots ...string) (Kernel, error) {
	for _, root := range roots {
		kernels, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
		if err != nil {
			return Kernel{}, &fault.Error{Kind: fault.Invalid, Where: root, What: "look for a kernel", Err: err}
		}
		slices.Sort(kernels)
		for _, k := range slices.Backward(kernels) {
			version := strings.TrimPrefix(filepath.Base(k), "vmlinuz-")
			for _, lib := range []string{"lib", "usr/lib"} {
				found := Kernel{Image: k, Modules: filepath.Join(root, lib, "modules", version)}
				if _, err := os.Stat(found.Modules); err == nil {
					return found, nil
				}
			}
		}
	}
	return Kernel{}, &fault.Error{Kind: fault.NotFound, Where: strings.Join(roots, ", "), What: "find a Linux kernel with its modules",
		Next: "install linux-image-cloud-amd64 for virtual machines or linux-image-amd64 for hardware, or unpack that package and name the folder"}
}

// Recipe is what an image is made of.
type Recipe struct {
	Kernel Kernel
	// Root holds the system that programs and files are from; "/" is this machine's.
	Root string
	// Agent is the program rerack-agent, linked statically, and Role what it is told to be.
	Agent string
	Role  []string
	// Always are kernel modules for every machine. Hardware are those for who has the hardware; the kernel
	// need not have all of them.
	Always, Hardware []string
	// Programs are dynamically linked programs and libraries in Root; all they need comes along.
	Programs []string
	// Files are other files in Root.
	Files []string
}

// Validate says of everything in Root that is missing what to install: fault.NotFound.
func (r *Recipe) Validate() error {
	switch {
	case r.Kernel.Image == "" || r.Kernel.Modules == "":
		return fault.New(fault.Invalid, "image: Kernel is missing")
	case r.Root == "":
		return fault.New(fault.Invalid, "image: Root is missing")
	case r.Agent == "" || len(r.Role) == 0:
		return fault.New(fault.Invalid, "image: Agent or Role is missing")
	}
	var missing, install []string
	for _, f := range slices.Concat(r.Programs, r.Files) {
		if _, err := root(r.Root).find(f); err != nil {
			missing = append(missing, f)
			if p := packageOf(f); !slices.Contains(install, p) {
				install = append(install, p)
			}
		}
	}
	if len(missing) > 0 {
		return &fault.Error{Kind: fault.NotFound, Where: r.Root, What: "find " + strings.Join(missing, ", "),
			Next: "apt install " + strings.Join(install, " ") + ", or unpack these packages and name the folder"}
	}
	if _, err := os.Stat(r.Agent); err != nil {
		return &fault.Error{Kind: fault.NotFound, Where: r.Agent, What: "find rerack-agent", Err: err, Next: "build it: CGO_ENABLED=0 go build ./cmd/rerack-agent"}
	}
	return nil
}

// roleFile is where the agent looks for what it is to be.
const roleFile = "etc/rerack-agent"

// Build writes the initial RAM disk, compressed with zstd, which Linux unpacks since 5.9. The kernel is
// taken as it is.
func (r *Recipe) Build(w io.Writer) error {
	if err := r.Validate(); err != nil {
		return err
	}
	// One thread: how the work was shared out would show in the bytes.
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return fault.Wrap(err, "compress", "initial RAM disk")
	}
	a := NewArchive(z)
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "var/tmp", "etc"} {
		a.Dir(d)
	}
	// The kernel gives its first process a console from here; the rest of the devices come with devtmpfs.
	a.Device("dev/console", 5, 1) // Documentation/admin-guide/devices.txt
	a.Device("dev/null", 1, 3)
	err = errors.Join(r.agent(a), r.modules(a), r.system(a), a.Close())
	return fault.Wrap(errors.Join(err, z.Close()), "build", "initial RAM disk")
}

func (r *Recipe) agent(a *Archive) error {
	b, err := os.ReadFile(r.Agent)
	a.File("init", 0o755, b)
	a.File(roleFile, 0o644, []byte(strings.Join(r.Role, "\n")+"\n"))
	return err
}

// modules adds the kernel's modules with their index, and the firmware that they ask for, as far as it is
// there: most hardware does without.
func (r *Recipe) modules(a *Archive) error {
	modules, err := Modules(r.Kernel.Modules, r.Always, r.Hardware)
	if err != nil {
		return err
	}
	var index pid1.Index
	for _, m := range modules {
		a.File("modules/"+m.Name+".ko", 0o644, m.Data)
		entry := pid1.Module{Name: m.Name, Needs: m.Needs, Always: slices.Contains(r.Always, m.Name)}
		if slices.Contains(r.Hardware, m.Name) {
			entry.Aliases = m.Aliases
		}
		index.Modules = append(index.Modules, entry)
		for _, f := range m.Firmware {
			for _, from := range []string{filepath.Join(r.Kernel.Modules, "../../.."), r.Root} {
				b, err := root(from).read(filepath.Join("lib/firmware", f))
				if err == nil {
					a.File(filepath.Join("lib/firmware", f), 0o644, b)
				} else if !errors.Is(err, fs.ErrNotExist) {
					return fault.Wrap(err, "read firmware", f)
				}
			}
		}
	}
	a.File("modules/"+pid1.IndexName, 0o644, index.Bytes())
	return nil
}

func (r *Recipe) system(a *Archive) error {
	from := root(r.Root)
	programs, err := roots{from}.closure(r.Programs)
	if err != nil {
		return err
	}
	slices.Sort(programs)
	for _, name := range append(programs, r.Files...) {
		b, err := from.read(name)
		if err != nil {
			return fault.Wrap(err, "read", name)
		}
		perm := 0o644
		if slices.Contains(programs, name) {
			perm = 0o755
		}
		a.File(name, perm, b)
	}
	return nil
}
