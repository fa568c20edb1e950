package importer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/images"
)

const (
	sector     = 2048    // ECMA-119 section 6.1.2
	maxDir     = 4 << 20 // bytes of a directory
	maxDepth   = 16      // levels of a path; ECMA-119 section 6.8.2.1 has eight, Rock Ridge more
	recordLen  = 34      // least length of a directory record with a name of one byte (section 9.1)
	rootRecord = 156     // offset in the primary volume descriptor (section 8.4.18)
	descriptor = 16      // first sector of the volume descriptors (section 6.2.1)
	maxDescr   = 64      // volume descriptors to look at

	flagDir   = 1 << 1 // section 9.1.6
	flagMulti = 1 << 7 // more than one extent
)

// ISO reads files from an ISO 9660 image by path. No name in the image ever becomes a path on this machine
// (CVE-2026-48681): names are only compared with the one that is looked for.
type ISO struct {
	r    io.ReaderAt
	size int64
	root entry
}

// entry is a directory record.
type entry struct {
	name string
	at   int64 // bytes
	size int64
	dir  bool
	many bool // in several extents
}

// OpenISO reads the descriptor of an image of size bytes.
func OpenISO(r io.ReaderAt, size int64) (*ISO, error) {
	iso := &ISO{r: r, size: size}
	b := make([]byte, sector)
	for i := range int64(maxDescr) {
		if err := iso.read(b, (descriptor+i)*sector); err != nil {
			return nil, err
		}
		if string(b[1:6]) != "CD001" || b[0] == 255 { // the terminator of the set
			break
		}
		if b[0] != 1 { // section 8.4.1: primary
			continue
		}
		root, _, err := iso.record(b[rootRecord : rootRecord+recordLen])
		if err == nil && !root.dir {
			err = damagedISO("its root is no directory")
		}
		iso.root = root
		return iso, err
	}
	return nil, &fault.Error{Kind: fault.Unsupported, What: "read ISO image", Evidence: "no primary volume descriptor", Next: "name an ISO 9660 image"}
}

func damagedISO(evidence string) error {
	return &fault.Error{Kind: fault.Invalid, What: "read ISO image", Evidence: evidence, Next: "get the image again"}
}

func (i *ISO) read(b []byte, at int64) error {
	if at < 0 || at+int64(len(b)) > i.size {
		return damagedISO(fmt.Sprintf("it is cut off: byte %d of %d is needed", at+int64(len(b)), i.size))
	}
	if _, err := i.r.ReadAt(b, at); err != nil {
		return fault.Wrap(err, "read", "ISO image")
	}
	return nil
}

// record reads one directory record (section 9.1) and its length.
func (i *ISO) record(b []byte) (entry, int, error) {
	if len(b) < recordLen || int(b[0]) < recordLen || int(b[0]) > len(b) || int(b[32]) == 0 || 33+int(b[32]) > int(b[0]) {
		return entry{}, 0, damagedISO("a directory record does not fit")
	}
	n := int(b[0])
	e := entry{at: int64(binary.LittleEndian.Uint32(b[2:])) * sector, size: int64(binary.LittleEndian.Uint32(b[10:])),
		dir: b[25]&flagDir != 0, many: b[25]&flagMulti != 0}
	end := 33 + int(b[32])
	e.name = string(b[33:end])
	if end%2 == 1 { // padded to an even length (section 9.1.12)
		end++
	}
	if rock := rockName(b[min(end, n):n]); rock != "" {
		e.name = rock
	} else if len(e.name) > 1 || e.name > "\x01" { // the names 0 and 1 are the directory itself and the one above
		e.name, _, _ = strings.Cut(e.name, ";")
		e.name = strings.TrimSuffix(e.name, ".")
	}
	if e.at+e.size > i.size {
		return e, n, damagedISO(fmt.Sprintf("it is cut off: %.80q ends at byte %d of %d", e.name, e.at+e.size, i.size))
	}
	return e, n, nil
}

// rockName is the name in the entries NM of a system use field (IEEE P1282 section 4.1.4, SUSP section 4), or "".
// A name that goes on in a continuation area is not followed: those of boot files are short.
func rockName(b []byte) string {
	var name strings.Builder
	for len(b) >= 4 {
		n := int(b[2])
		if n < 4 || n > len(b) {
			break
		}
		if string(b[:2]) == "NM" && n >= 5 && b[4]&^1 == 0 { // neither "." nor ".."
			name.Write(b[5:n])
		}
		b = b[n:]
	}
	return name.String()
}

// list reads a directory.
func (i *ISO) list(d entry) ([]entry, error) {
	if d.size > maxDir {
		return nil, damagedISO(fmt.Sprintf("directory %.80q has %d bytes", d.name, d.size))
	}
	b := make([]byte, d.size)
	if err := i.read(b, d.at); err != nil {
		return nil, err
	}
	var out []entry
	for at := 0; at < len(b); {
		if b[at] == 0 { // no record crosses a sector (section 6.8.1.1)
			at += sector - at%sector
			continue
		}
		e, n, err := i.record(b[at:min(len(b), at+sector-at%sector)])
		if err != nil {
			return nil, err
		}
		at += n
		if e.name != "\x00" && e.name != "\x01" {
			out = append(out, e)
		}
	}
	return out, nil
}

// Find returns the content of the file at a path with slashes; letters match whatever their case.
func (i *ISO) Find(name string) (*io.SectionReader, error) {
	parts := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	if len(parts) > maxDepth {
		return nil, fault.Newf(fault.Invalid, "path %.80q is too deep", name)
	}
	at := i.root
	for n, part := range parts {
		es, err := i.list(at)
		if err != nil {
			return nil, err
		}
		found := false
		for _, e := range es {
			if strings.EqualFold(e.name, part) && e.dir == (n < len(parts)-1) {
				at, found = e, true
				break
			}
		}
		if !found {
			return nil, &fault.Error{Kind: fault.NotFound, Where: "ISO image", What: fmt.Sprintf("find %.200q", name)}
		}
	}
	if at.many {
		return nil, &fault.Error{Kind: fault.Unsupported, Where: "ISO image", What: fmt.Sprintf("read %.200q", name), Evidence: "it lies in several extents"}
	}
	return io.NewSectionReader(i.r, at.at, at.size), nil
}

// known are the places where makers of installation and live images keep their kernel and initial RAM disk.
func known() [][2]string {
	return [][2]string{
		{"install.amd/vmlinuz", "install.amd/initrd.gz"}, // Debian installer
		{"install.a64/vmlinuz", "install.a64/initrd.gz"},
		{"live/vmlinuz", "live/initrd.img"},                       // Debian live
		{"casper/vmlinuz", "casper/initrd"},                       // Ubuntu
		{"images/pxeboot/vmlinuz", "images/pxeboot/initrd.img"},   // RHEL and its kin, Fedora
		{"boot/x86_64/loader/linux", "boot/x86_64/loader/initrd"}, // SUSE
		{"boot/aarch64/linux", "boot/aarch64/initrd"},
		{"boot/vmlinuz-lts", "boot/initramfs-lts"}, // Alpine
		{"arch/boot/x86_64/vmlinuz-linux", "arch/boot/x86_64/initramfs-linux.img"},
	}
}

// FromISO takes a kernel and its initial RAM disks out of an ISO image: those at the given paths, or with no kernel
// named, the ones found where Debian, Ubuntu, RHEL and others keep theirs.
func FromISO(file, kernel string, initrd []string) ([]File, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "read ISO image", Err: err}
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fault.Wrap(err, "read ISO image", file)
	}
	iso, err := OpenISO(f, fi.Size())
	if err != nil {
		return nil, fault.Wrap(err, "open", file)
	}
	if kernel == "" {
		for _, k := range known() {
			if _, err := iso.Find(k[0]); err == nil {
				if _, err := iso.Find(k[1]); err == nil {
					kernel, initrd = k[0], []string{k[1]}
					break
				}
			}
		}
	}
	if kernel == "" {
		return nil, &fault.Error{Kind: fault.NotFound, Where: file, What: "find a kernel and its initial RAM disk",
			Next: "name them with --kernel-path and --initrd-path, or boot the image as it is with --whole"}
	}
	var out []File
	for n, name := range append([]string{kernel}, initrd...) {
		r, err := iso.Find(name)
		if err != nil {
			return nil, fault.Wrap(err, "open", file)
		}
		role := images.RoleInitrd
		if n == 0 {
			role = images.RoleKernel
		}
		out = append(out, within(role, file, name, r))
	}
	return out, nil
}

// within is a part of a file.
func within(role images.Role, file, name string, at *io.SectionReader) File {
	_, offset, size := at.Outer()
	f := File{Role: role, Name: name, Size: size}
	f.Open = func(context.Context) (io.ReadCloser, error) {
		whole, err := os.Open(file)
		if err != nil {
			return nil, &fault.Error{Kind: fault.Invalid, What: "read ISO image", Err: err}
		}
		return &proven{ReadCloser: struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(whole, offset, size), whole}, file: f, sum: sha256.New()}, nil
	}
	return f
}
