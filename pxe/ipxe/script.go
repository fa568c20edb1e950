// Package ipxe writes boot scripts for iPXE from typed values, and reads the subset it writes.
//
// No text from outside reaches a script except through a value with an allow-list of characters, so a
// name can end neither an argument nor a line, and no setting (${...}) is ever expanded. The commands
// are those of https://ipxe.org/cmd; what Debian's build of 2019 lacks is not used.
package ipxe

import (
	"fmt"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

const magic = "#!ipxe"

// Linux returns a script that loads a kernel and its initial RAM disks and boots them. Each download
// is tried twice: a link that still settles after a VLAN change costs a pause, not the boot.
func Linux(kernel string, initrds []string, params []Param) ([]byte, error) {
	if err := CheckURL(kernel); err != nil {
		return nil, err
	}
	if len(initrds) > maxFiles {
		return nil, fault.Newf(fault.Invalid, "%d initial RAM disks: at most %d", len(initrds), maxFiles)
	}
	// A kernel that is started by UEFI finds its RAM disks by these names; a BIOS one ignores them.
	args := make([]string, 0, len(initrds)+len(params))
	for i := range initrds {
		args = append(args, fmt.Sprintf("initrd=initrd%d", i))
	}
	if err := CheckParams(params); err != nil {
		return nil, err
	}
	for _, p := range params {
		args = append(args, p.String())
	}
	var b strings.Builder
	b.WriteString(magic + "\nimgfree\n")
	retried(&b, strings.Join(append([]string{"kernel", "--name", "kernel", kernel}, args...), " "))
	for i, u := range initrds {
		if err := CheckURL(u); err != nil {
			return nil, err
		}
		retried(&b, fmt.Sprintf("initrd --name initrd%d %s", i, u))
	}
	b.WriteString("boot || exit 1\n")
	return []byte(b.String()), nil
}

// SAN returns a script that boots from an iSCSI logical unit and leaves it attached (in the iBFT) for
// the operating system, login included. The URI is that of RFC 4173 section 5, whose LUN is hexadecimal.
func SAN(t Target, l Login) ([]byte, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	if err := l.Check(); err != nil {
		return nil, err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nset initiator-iqn %s || exit 1\nset keep-san 1 || exit 1\n", magic, t.Initiator)
	if l != (Login{}) {
		fmt.Fprintf(&b, "set username %s || exit 1\nset password %s || exit 1\n", l.User, l.Secret.Reveal())
	}
	retried(&b, fmt.Sprintf("sanboot iscsi:%s::%d:%x:%s", t.Portal.Addr(), t.Portal.Port(), t.LUN, t.Name))
	return []byte(b.String()), nil
}

// LocalDisk returns a script that boots the first disk the firmware knows: a LUN seen by an HBA that
// is its own boot device. Where iPXE cannot (old UEFI builds), it hands back to the firmware's order.
func LocalDisk() []byte {
	return []byte(magic + "\nsanboot --no-describe --drive 0x80 || exit 1\n")
}

// EFI returns a script that starts an EFI binary.
func EFI(image string) ([]byte, error) {
	if err := CheckURL(image); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(magic + "\n")
	retried(&b, "chain "+image)
	return []byte(b.String()), nil
}

// Disk returns a script that boots a disk image over HTTP.
func Disk(image string) ([]byte, error) {
	if err := CheckURL(image); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(magic + "\n")
	retried(&b, "sanboot --no-describe "+image)
	return []byte(b.String()), nil
}

// Hold returns a script that keeps the machine where it is and asks again every second, whether the
// server answers or not, until the answer is another script.
func Hold(script string) ([]byte, error) {
	if err := CheckURL(script); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%s\n:again\nsleep 1\nchain --replace --autofree %s || goto again\n", magic, script), nil
}

// Exit returns a script that hands back to the firmware, which tries its next boot device.
func Exit() []byte { return []byte(magic + "\nexit 1\n") }

// retried writes a command that is tried twice. It takes a label to go on at: "a || sleep 2 && a" would run a
// twice when it succeeds, see Run.
func retried(b *strings.Builder, cmd string) {
	done := fmt.Sprintf("done%d", strings.Count(b.String(), "\n"))
	fmt.Fprintf(b, "%s && goto %s ||\nsleep 2\n%s || exit 1\n:%s\n", cmd, done, cmd, done)
}
