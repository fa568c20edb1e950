// Package importer finds the files of an image where people have them: in files, in an ISO image, at a URL, in
// an OCI registry. It runs where the operator is and hands on streams; the server never opens a path or an
// address that it was sent (CVE-2025-44021).
package importer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/images"
)

// headLen is how much of a file tells its format: the descriptor of an ISO image begins at 32 KiB.
const headLen = 34 << 10

// magic is a format by bytes at an offset.
type magic struct {
	at   int
	text string
	name string
}

// refused are formats that a disk image of another name may have. A converter that believed their headers read
// files of the controller into images (CVE-2024-44082): there is none here, so they are refused by name.
func refused() []magic {
	return []magic{
		{0, "QFI\xfb", "qcow2"}, {0, "QED\x00", "QED"}, {0, "KDMV", "VMDK"}, {0, "COWD", "VMDK"},
		{0, "# Disk DescriptorFile", "VMDK"}, {0x40, "\x7f\x10\xda\xbe", "VDI"}, {0, "vhdxfile", "VHDX"},
		{0, "conectix", "VHD"}, {0, "WithoutFreeSpace", "Parallels"}, {0, "WithouFreSpacExt", "Parallels"},
		{0, "LUKS\xba\xbe", "LUKS"}, {0, "\x1f\x8b", "gzip"}, {0, "\xfd7zXZ\x00", "xz"}, {0, "\x28\xb5\x2f\xfd", "zstd"},
		{0, "BZh", "bzip2"}, {0, "\x04\x22\x4d\x18", "lz4"}, {0, "PK\x03\x04", "zip"}, {257, "ustar", "tar"},
		{0, "\x7fELF", "ELF"}, {0, "<!DOCTYPE", "HTML"}, {0, "<html", "HTML"},
	}
}

// initrds are what the kernel unpacks: cpio archives, plain or compressed (Linux init/initramfs.c and lib/decompress.c).
func initrds() []magic {
	return []magic{{0, "070701", "cpio"}, {0, "070702", "cpio"}, {0, "\x1f\x8b", "gzip"}, {0, "\xfd7zXZ\x00", "xz"},
		{0, "\x28\xb5\x2f\xfd", "zstd"}, {0, "BZh", "bzip2"}, {0, "\x02\x21\x4c\x18", "lz4"}, {0, "\x5d\x00\x00", "lzma"},
		{0, "\x89LZO\x00\x0d\x0a\x1a\x0a", "lzo"}}
}

func (m magic) in(head []byte) bool {
	return len(head) >= m.at+len(m.text) && string(head[m.at:m.at+len(m.text)]) == m.text
}

// Sniff looks at the first bytes of a file, and refuses what cannot be started as the role says with
// fault.Unsupported. head is the whole file or its first 34 KiB at least.
func Sniff(role images.Role, head []byte) error {
	refuse := func(found, next string) error {
		return &fault.Error{Kind: fault.Unsupported, What: "take it as " + string(role), Evidence: "it is " + found, Next: next}
	}
	ok := false
	switch role {
	case images.RoleKernel:
		ok = isBzImage(head) || isPE(head) || isARM64(head)
	case images.RoleEFI:
		ok = isPE(head)
	case images.RoleInitrd:
		for _, m := range initrds() {
			ok = ok || m.in(head)
		}
	case images.RoleDisk, images.RoleISO:
		for _, m := range refused() {
			if m.in(head) {
				return refuse(m.name, "convert it to a raw image first, where it was made; the controller converts nothing")
			}
		}
		ok = isISO(head) || role == images.RoleDisk && isPartitioned(head)
	}
	if ok {
		return nil
	}
	return refuse(describe(head), map[images.Role]string{
		images.RoleKernel: "name a bzImage, an EFI binary or an arm64 Image",
		images.RoleInitrd: "name a cpio archive, plain or compressed",
		images.RoleDisk:   "name a raw image that starts with a boot sector or a partition table",
		images.RoleISO:    "name an ISO 9660 image",
		images.RoleEFI:    "name an EFI binary"}[role])
}

func describe(head []byte) string {
	for _, m := range append(refused(), initrds()...) {
		if m.in(head) {
			return m.name
		}
	}
	switch {
	case len(head) == 0:
		return "empty"
	case isISO(head):
		return "an ISO image"
	case isBzImage(head):
		return "a Linux kernel"
	case isPE(head):
		return "an EFI or Windows binary"
	}
	return fmt.Sprintf("unknown, and begins with %q", head[:min(len(head), 8)])
}

// isBzImage: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
func isBzImage(b []byte) bool {
	return len(b) > 0x206 && string(b[0x202:0x206]) == "HdrS" && b[0x1fe] == 0x55 && b[0x1ff] == 0xaa
}

// isPE: PE Format, section "MS-DOS Stub (Image Only)": the offset of the signature is at 0x3c.
func isPE(b []byte) bool {
	if len(b) < 0x40 || b[0] != 'M' || b[1] != 'Z' {
		return false
	}
	at := int64(binary.LittleEndian.Uint32(b[0x3c:]))
	return at+4 <= int64(len(b)) && string(b[at:at+4]) == "PE\x00\x00"
}

// isARM64: Linux Documentation/arch/arm64/booting.rst, "Call the kernel image".
func isARM64(b []byte) bool { return magic{0x38, "ARM\x64", ""}.in(b) }

// isISO: ECMA-119 section 9.1.2, the identifier of the volume descriptor in sector 16.
func isISO(b []byte) bool { return magic{16*sector + 1, "CD001", ""}.in(b) }

// isPartitioned: a boot sector's signature, or a GPT header (UEFI 2.10 section 5.3.2) on sectors of 512 or 4096 bytes.
func isPartitioned(b []byte) bool {
	return magic{510, "\x55\xaa", ""}.in(b) || magic{512, "EFI PART", ""}.in(b) || magic{4096, "EFI PART", ""}.in(b)
}

// Checked is r, whose first read fails when Sniff refuses what r begins with.
func Checked(role images.Role, r io.Reader) io.Reader {
	return &checked{role: role, r: bufio.NewReaderSize(r, 2*headLen)}
}

type checked struct {
	role images.Role
	r    *bufio.Reader
	done bool
}

func (c *checked) Read(b []byte) (int, error) {
	if !c.done {
		head, err := c.r.Peek(headLen)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if err := Sniff(c.role, bytes.Clone(head)); err != nil {
			return 0, err
		}
		c.done = true
	}
	return c.r.Read(b)
}
