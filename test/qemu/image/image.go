// Package image builds the smallest Linux that is a workload: Debian's kernel, its driver for virtio
// network cards, busybox and a first process which takes an address, phones home and serves its health
// check. The same files in give the same bytes out.
package image

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"os"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/imagebuild"
)

// Sources are the files that an image is made of.
type Sources struct {
	Kernel  string   // a bzImage
	Modules string   // the kernel's own folder below lib/modules
	Busybox string   // statically linked
	Roots   []string // folders like /, for programs with their libraries
}

//go:embed init.sh
var initScript []byte

//go:embed udhcpc.sh
var dhcpScript []byte

// drivers are what the kernel needs as modules to reach the network.
func drivers() []string { return []string{"virtio_pci", "virtio_net"} }

// applets are the commands of busybox that the scripts use.
func applets() []string {
	return []string{"sh", "mount", "insmod", "ifconfig", "route", "udhcpc", "wget", "sed", "cat", "printf", "sleep", "httpd", "dd", "sort", "tail"}
}

// Find looks for a kernel with its modules below each root in turn, see imagebuild.FindKernel, and for
// busybox.
func Find(roots ...string) (Sources, error) {
	k, err := imagebuild.FindKernel(roots...)
	return Sources{Kernel: k.Image, Modules: k.Modules, Busybox: "/bin/busybox",
		Roots: append(slices.Clone(roots), "/")}, err // a package that is unpacked needs libraries of those installed
}

// diskDrivers are what it needs besides to reach a disk, over iSCSI or in a virtual machine.
func diskDrivers() []string {
	return []string{"sd_mod", "ata_piix", "virtio_blk", "iscsi_ibft", "iscsi_tcp", "crc32c_intel"}
}

// Build returns the kernel and the initial RAM disk of a system without a disk.
func Build(s Sources) (kernel, initrd []byte, err error) { return build(s, drivers(), nil) }

// BuildForDisk returns those of a system that is installed on a disk, see Loader.WriteDisk. It finds its disk
// where the firmware booted it from over iSCSI, as the iBFT says, or else among the machine's own.
func BuildForDisk(s Sources) (kernel, initrd []byte, err error) {
	extra, err := imagebuild.Closure(s.Roots, "/sbin/iscsistart")
	if err != nil {
		return nil, nil, err
	}
	return build(s, append(drivers(), diskDrivers()...), extra)
}

func build(s Sources, drivers []string, extra []imagebuild.File) (kernel, initrd []byte, err error) {
	if kernel, err = os.ReadFile(s.Kernel); err != nil {
		return nil, nil, fault.Wrap(err, "read kernel", s.Kernel)
	}
	modules, err := imagebuild.Modules(s.Modules, drivers, nil)
	if err != nil {
		return nil, nil, err
	}
	busybox, err := os.ReadFile(s.Busybox)
	if err != nil {
		return nil, nil, &fault.Error{Kind: fault.NotFound, Where: s.Busybox, What: "read busybox", Err: err, Next: "install busybox-static"}
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, nil, fault.Wrap(err, "compress", "initial RAM disk")
	}
	a := imagebuild.NewArchive(z)
	for _, d := range []string{"bin", "lib", "lib64", "dev", "proc", "sys", "etc", "modules", "www"} {
		a.Dir(d)
	}
	a.File("bin/busybox", 0o755, busybox)
	for _, name := range applets() {
		a.Link("bin/"+name, "busybox")
	}
	for _, p := range extra {
		a.File(p.Name, 0o755, p.Data)
	}
	var order strings.Builder
	for _, m := range modules {
		a.File("modules/"+m.Name+".ko", 0o644, m.Data)
		order.WriteString(m.Name + "\n")
	}
	a.File("modules/order", 0o644, []byte(order.String()))
	a.File("etc/udhcpc", 0o755, dhcpScript)
	a.File("init", 0o755, initScript)
	if err = a.Close(); err == nil {
		err = z.Close()
	}
	return kernel, out.Bytes(), fault.Wrap(err, "write", "initial RAM disk")
}
