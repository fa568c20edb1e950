package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// A disk has its boot loader before Records, and its kernel behind them, found by their places and not by a
// file system: what the system writes is then nothing but its records.
//
//	0            boot sector, and the rest of the loader behind it
//	Records      RecordCount records
//	KernelAt     kernel, then the initial RAM disk at the next sector
const (
	sectorSize = 512
	// Records is where the system keeps what it wrote, in sectors; see LastRecord.
	Records     = 2048
	RecordCount = 1024
	kernelAt    = 4096
	// DiskSize is more than one cylinder of 255 heads with 63 sectors: iPXE reads nothing off less. In bytes.
	DiskSize = 48 << 20
)

// Loader is GRUB for BIOS, as Debian's packages grub-pc-bin and grub-common have it.
type Loader struct {
	Modules string // usr/lib/grub/i386-pc
	Mkimage string // grub-mkimage
}

// FindLoader looks for GRUB below each root in turn.
func FindLoader(roots ...string) (Loader, error) {
	for _, root := range roots {
		l := Loader{Modules: filepath.Join(root, "usr/lib/grub/i386-pc"), Mkimage: filepath.Join(root, "usr/bin/grub-mkimage")}
		if exist(filepath.Join(l.Modules, "boot.img"), l.Mkimage) {
			return l, nil
		}
	}
	return Loader{}, &fault.Error{Kind: fault.NotFound, Where: strings.Join(roots, ", "), What: "find GRUB for BIOS",
		Next: "install grub-pc-bin and grub-common, or unpack those packages and name the folder"}
}

func exist(paths ...string) bool {
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil {
			return false
		}
	}
	return true
}

// WriteDisk makes a raw disk that boots by BIOS, from a machine's own disk or from a LUN, and runs the test
// system with these kernel parameters. The file must not exist.
func (l Loader) WriteDisk(ctx context.Context, path string, kernel, initrd []byte, cmdline string) error {
	sectors := func(b []byte) int { return (len(b) + sectorSize - 1) / sectorSize }
	initrdAt := kernelAt + sectors(kernel)
	if (initrdAt+sectors(initrd))*sectorSize > DiskSize {
		return fault.Newf(fault.Invalid, "kernel and initial RAM disk do not fit on a disk of %d bytes", DiskSize)
	}
	loader, err := l.core(ctx, fmt.Sprintf("serial\nterminal_output serial\nlinux (hd0)%d+%d %s\ninitrd (hd0)%d+%d\nboot\n",
		kernelAt, sectors(kernel), cmdline, initrdAt, sectors(initrd)))
	if err != nil {
		return err
	}
	boot, err := os.ReadFile(filepath.Join(l.Modules, "boot.img"))
	if err != nil || len(boot) != sectorSize {
		return &fault.Error{Kind: fault.Invalid, Where: l.Modules, What: "read boot.img", Err: err}
	}
	if len(loader) > (Records-1)*sectorSize {
		return fault.Newf(fault.Invalid, "the boot loader has %d bytes", len(loader))
	}
	// One partition over all, so that a firmware that asks for one finds it: active, of type Linux.
	entry := boot[446:462]
	copy(entry, []byte{0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], Records)
	binary.LittleEndian.PutUint32(entry[12:], DiskSize/sectorSize-Records)
	binary.LittleEndian.PutUint16(boot[510:], 0xaa55)
	records := bytes.Repeat(blank(), RecordCount)
	copy(records, fmt.Sprintf("rerack record %06d by nobody", 0))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.Wrap(err, "make disk", path)
	}
	defer f.Close()
	for at, b := range map[int][]byte{0: boot, 1: loader, Records: records, kernelAt: kernel, initrdAt: initrd} {
		if _, err := f.WriteAt(b, int64(at)*sectorSize); err != nil {
			return fault.Wrap(err, "write disk", path)
		}
	}
	if err := f.Truncate(DiskSize); err != nil {
		return fault.Wrap(err, "write disk", path)
	}
	return fault.Wrap(f.Close(), "write disk", path)
}

// core builds the part of GRUB that lies behind the boot sector.
func (l Loader) core(ctx context.Context, script string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "rerack-grub-")
	if err != nil {
		return nil, fault.Wrap(err, "make directory", "for the boot loader")
	}
	defer os.RemoveAll(dir)
	early, core := filepath.Join(dir, "early.cfg"), filepath.Join(dir, "core.img")
	if err := os.WriteFile(early, []byte(script), 0o600); err != nil {
		return nil, fault.Wrap(err, "write", early)
	}
	cmd := exec.CommandContext(ctx, l.Mkimage, "-d", l.Modules, "-O", "i386-pc", "-p", "(hd0)/boot", "-c", early, "-o", core,
		"biosdisk", "linux", "serial", "terminal", "boot")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, &fault.Error{Kind: fault.Internal, Where: l.Mkimage, What: "build the boot loader", Evidence: string(bytes.TrimSpace(out)), Err: err}
	}
	b, err := os.ReadFile(core)
	return b, fault.Wrap(err, "read", core)
}

// blank is the place of a record that nobody has written yet: a line of one sector, as every record is.
func blank() []byte { return fmt.Appendf(nil, "%-*s\n", sectorSize-1, "") }

// readRecord reads a sector as init.sh writes it.
func readRecord(b []byte) (n int, by string, ok bool) {
	line := strings.TrimSpace(string(b))
	if _, err := fmt.Sscanf(line, "rerack record %d by", &n); err != nil {
		return 0, "", false
	}
	_, by, _ = strings.Cut(line, " by ")
	return n, by, true
}

// LastRecord reads the newest record off a disk's file, which may be in use.
func LastRecord(path string) (n int, by string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", fault.Wrap(err, "open disk", path)
	}
	defer f.Close()
	b := make([]byte, sectorSize*RecordCount)
	if _, err := f.ReadAt(b, Records*sectorSize); err != nil {
		return 0, "", fault.Wrap(err, "read records", path)
	}
	n = -1
	for i := range RecordCount {
		if m, who, ok := readRecord(b[i*sectorSize : (i+1)*sectorSize]); ok && m > n {
			n, by = m, who
		}
	}
	if n < 0 {
		return 0, "", &fault.Error{Kind: fault.NotFound, Where: path, What: "read records", Evidence: "there is none"}
	}
	return n, by, nil
}
