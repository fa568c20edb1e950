package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/imagebuild"
	"rerack.dev/rerack/pxe/images"
)

func imageBuildCommand(g *global) *cobra.Command {
	var b imageBuild
	c := &cobra.Command{Use: "build hypervisor|capture|debian", Short: "Build an image: Rerack's hypervisor, what copies disks, or a minimal Debian",
		Long: `Build an image of Rerack's own from a Debian kernel and this machine's packages, or from packages that were
unpacked into a folder. The same files in give the same bytes out. It writes NAME.kernel, NAME.initrd and
NAME.yaml, the Image object; rerack image import sends the files to the server.`,
		Example: `  rerack image build hypervisor --output images
  rerack image build hypervisor --kernel-root unpacked/linux-image-amd64 --root unpacked/qemu --output images`,
		Args: cobra.ExactArgs(1), ValidArgs: []string{"hypervisor", "capture"},
		RunE: func(c *cobra.Command, args []string) error {
			built, err := b.build(args[0])
			if err != nil {
				return err
			}
			return g.show(c.OutOrStdout(), built, built.table)
		}}
	f := c.Flags()
	f.StringVar(&b.output, "output", ".", "folder to write to")
	f.StringVar(&b.name, "name", "", "name of the image; default: what it is, with -x86")
	f.StringVar(&b.kernelRoot, "kernel-root", "/", "folder that a linux-image package is unpacked in: cloud for virtual machines, the general one for hardware")
	f.StringVar(&b.root, "root", "/", "folder that QEMU's packages are unpacked in")
	f.StringVar(&b.agent, "agent", "", "the program rerack-agent; default: beside this one")
	return c
}

type imageBuild struct{ output, name, kernelRoot, root, agent string }

// builtImage is what came out.
type builtImage struct {
	Name   string    `json:"name"`
	Kernel builtFile `json:"kernel"`
	Initrd builtFile `json:"initrd"`
	YAML   string    `json:"yaml"`
}

func (b builtImage) manifest(kind string) images.Manifest {
	return images.Manifest{Name: b.Name, Type: kind, Arch: "x86_64", Cmdline: map[string]string{"console": "ttyS0", "quiet": ""}, Files: []images.Part{
		{Role: images.RoleKernel, Digest: pxe.Digest(b.Kernel.Digest), Size: b.Kernel.Size},
		{Role: images.RoleInitrd, Digest: pxe.Digest(b.Initrd.Digest), Size: b.Initrd.Size}}}
}

func (b builtImage) table(w io.Writer) {
	row(w, "FILE", "SIZE", "DIGEST")
	row(w, b.Kernel.Path, sizeOf(b.Kernel.Size), b.Kernel.Digest)
	row(w, b.Initrd.Path, sizeOf(b.Initrd.Size), b.Initrd.Digest)
	fmt.Fprint(w, "\n"+b.YAML)
}

type builtFile struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"`
}

func (b imageBuild) build(kind string) (builtImage, error) {
	out := builtImage{Name: b.name}
	if out.Name == "" {
		out.Name = kind + "-x86"
	}
	kernel, err := imagebuild.FindKernel(b.kernelRoot)
	if err != nil {
		return out, err
	}
	agent := b.agent
	if agent == "" {
		self, err := os.Executable()
		if err != nil {
			return out, fault.Wrap(err, "find rerack-agent", "beside rerack")
		}
		agent = filepath.Join(filepath.Dir(self), "rerack-agent")
	}
	var r imagebuild.Recipe
	switch kind {
	case "hypervisor":
		r = imagebuild.Hypervisor(kernel, b.root, agent)
	case "capture":
		r = imagebuild.Capture(kernel, agent)
	default:
		return out, &fault.Error{Kind: fault.Invalid, What: fmt.Sprintf("image %.40q", kind), Next: "build hypervisor or capture"}
	}
	var initrd bytes.Buffer
	if err := r.Build(&initrd); err != nil {
		return out, err
	}
	image, err := os.ReadFile(kernel.Image)
	if err != nil {
		return out, fault.Wrap(err, "read kernel", kernel.Image)
	}
	if err := os.MkdirAll(b.output, 0o755); err != nil { //nolint:gosec // no secrets
		return out, fault.Wrap(err, "make folder", b.output)
	}
	if out.Kernel, err = b.write(out.Name+".kernel", image); err != nil {
		return out, err
	}
	if out.Initrd, err = b.write(out.Name+".initrd", initrd.Bytes()); err != nil {
		return out, err
	}
	yaml, err := imageYAML(out.manifest(kind))
	if err != nil {
		return out, err
	}
	out.YAML = string(yaml)
	_, err = b.write(out.Name+".yaml", yaml)
	return out, err
}

func (b imageBuild) write(name string, data []byte) (builtFile, error) {
	path := filepath.Join(b.output, name)
	sum := sha256.Sum256(data)
	err := os.WriteFile(path, data, 0o644) //nolint:gosec // no secrets
	return builtFile{Path: path, Size: int64(len(data)), Digest: "sha256:" + hex.EncodeToString(sum[:])}, fault.Wrap(err, "write", path)
}
