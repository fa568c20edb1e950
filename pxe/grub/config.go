// Package grub writes configuration files for GRUB 2 from typed values, and reads the subset it writes.
//
// It is for machines that iPXE cannot start: those whose firmware starts signed programs only (Secure
// Boot: shim, then GRUB, then a signed kernel), and arm64. The GRUB is the one that Debian signs for
// network boot (packages grub-efi-amd64-signed and grub-efi-arm64-signed). It speaks TFTP and no HTTP,
// and reads one fixed file, /grub/grub.cfg, whoever it runs for. That file, Entry, is the same for all
// and holds no secret: it sends GRUB on to the folder that it was itself loaded from, whose name DHCP
// told this machine alone.
//
// No text from outside reaches a file except as a single-quoted word of an allow-list of characters,
// so a name can end neither a word nor a line, and nothing is ever expanded (GRUB manual 2.06, section
// 6.2 "Quoting").
package grub

import (
	"fmt"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/ipxe"
)

// EntryPath is the file that GRUB asks for first, as it is named in TFTP.
const EntryPath = "grub/grub.cfg"

// ConfigName is the file that Entry asks for, in the folder GRUB was loaded from.
const ConfigName = "grub.cfg"

// Entry returns the file at EntryPath. It asks for the machine's own file until that boots something,
// whether the server answers or not: a machine that is held waits here.
func Entry() []byte {
	return []byte("while true; do\n  source \"$cmdpath/" + ConfigName + "\"\n  sleep 1\ndone\n")
}

// Linux returns a configuration that loads a kernel and its initial RAM disks and boots them. The files
// are paths on the server GRUB was loaded from. What fails ends GRUB and hands back to the firmware:
// GRUB 2.06 as Debian signs it may not load a second kernel after one that it let go of (it uses freed
// memory), so a second try is the machine's next start.
func Linux(kernel string, initrds []string, params []ipxe.Param) ([]byte, error) {
	if err := CheckPath(kernel); err != nil {
		return nil, err
	}
	if len(initrds) > maxFiles {
		return nil, fault.Newf(fault.Invalid, "%d initial RAM disks: at most %d", len(initrds), maxFiles)
	}
	if err := ipxe.CheckParams(params); err != nil {
		return nil, err
	}
	args := []string{kernel}
	for _, p := range params {
		args = append(args, p.String())
	}
	steps := []string{command("linux", args)}
	for _, i := range initrds {
		if err := CheckPath(i); err != nil {
			return nil, err
		}
	}
	if len(initrds) > 0 {
		steps = append(steps, command("initrd", initrds))
	}
	return chain(steps), nil
}

// EFI returns a configuration that starts an EFI binary, which Secure Boot checks as the kernel.
func EFI(image string) ([]byte, error) {
	if err := CheckPath(image); err != nil {
		return nil, err
	}
	return chain([]string{command("chainloader", []string{image})}), nil
}

// Hold returns a configuration that boots nothing: Entry asks again.
func Hold() []byte { return []byte("true\n") }

// chain boots when each step before has succeeded.
func chain(steps []string) []byte {
	var b strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&b, "%sif %s; then\n", strings.Repeat("  ", i), s)
	}
	fmt.Fprintf(&b, "%sboot\n", strings.Repeat("  ", len(steps)))
	for i := range steps {
		fmt.Fprintf(&b, "%sfi\n", strings.Repeat("  ", len(steps)-1-i))
	}
	b.WriteString("exit\n")
	return []byte(b.String())
}

func command(name string, args []string) string {
	return name + " '" + strings.Join(args, "' '") + "'"
}

// Limits of single values.
const (
	maxPath  = 128 // what our TFTP server takes
	maxFiles = 16
)

const pathRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"

// CheckPath checks that p is an absolute path of characters that mean nothing to GRUB.
func CheckPath(p string) error {
	ok := len(p) > 1 && len(p) <= maxPath && p[0] == '/' && !strings.Contains(p, "//")
	for i := 0; i < len(p); i++ {
		ok = ok && strings.IndexByte(pathRunes, p[i]) >= 0
	}
	if !ok {
		return fault.Newf(fault.Invalid, "path %.80q: want / and at most 127 of letters, digits and /._-", p)
	}
	return nil
}
