package capture

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// LocalDisk is a disk that a machine has.
type LocalDisk struct {
	Name   string // sda, vda, nvme0n1
	Serial string
	WWN    string
}

func (d LocalDisk) String() string {
	s := d.Name
	if d.Serial != "" {
		s += " serial:" + d.Serial
	}
	if d.WWN != "" {
		s += " wwn:" + d.WWN
	}
	return s
}

// Disks lists the disks that the kernel shows below sys, usually /sys. What is no hardware of its own - loop
// devices, RAM disks, mapped ones - and what has removable media is not among them.
func Disks(sys string) ([]LocalDisk, error) {
	entries, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil {
		return nil, fault.Wrap(err, "list disks", sys)
	}
	var out []LocalDisk
	for _, e := range entries {
		dir := filepath.Join(sys, "block", e.Name())
		if _, err := os.Stat(filepath.Join(dir, "device")); err != nil || strings.HasPrefix(e.Name(), "sr") {
			continue
		}
		d := LocalDisk{Name: e.Name()}
		// virtio_blk and NVMe have the serial number as a file, SCSI disks as vital product data.
		for _, f := range []string{"serial", "device/serial"} {
			if d.Serial == "" {
				d.Serial = text(filepath.Join(dir, f))
			}
		}
		if d.Serial == "" {
			d.Serial = page80(filepath.Join(dir, "device", "vpd_pg80"))
		}
		for _, f := range []string{"wwid", "device/wwid"} {
			if wwn := plainWWN(text(filepath.Join(dir, f))); d.WWN == "" && wwnForm.MatchString(wwn) {
				d.WWN = wwn
			}
		}
		out = append(out, d)
	}
	return out, nil
}

func text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.Trim(string(b), "\x00\n"))
}

// page80 reads the unit serial number page (SPC-4 section 7.8.15): a header of four bytes, the last two of
// which are the length.
func page80(path string) string {
	b, err := os.ReadFile(path)
	if err != nil || len(b) < 4 || b[1] != 0x80 {
		return ""
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	return strings.TrimSpace(strings.Trim(string(b[4:min(4+n, len(b))]), "\x00"))
}

// Find returns the disk below sys that want names. It returns fault.NotFound when there is none, and
// fault.Conflict when there are several: the first that comes may be the wrong one.
func Find(sys string, want Disk) (LocalDisk, error) {
	all, err := Disks(sys)
	if err != nil {
		return LocalDisk{}, err
	}
	fit := slices.DeleteFunc(slices.Clone(all), func(d LocalDisk) bool {
		if want.WWN != "" {
			return d.WWN != want.WWN
		}
		return d.Serial != want.Serial
	})
	switch len(fit) {
	case 1:
		return fit[0], nil
	case 0:
		return LocalDisk{}, &fault.Error{Kind: fault.NotFound, What: "disk not found: " + want.String(), Evidence: "the machine has " + words(all),
			Next: "name one of these, or look whether the image has its controller's driver"}
	}
	return LocalDisk{}, &fault.Error{Kind: fault.Conflict, What: fmt.Sprintf("%d disks match %s", len(fit), want), Evidence: words(fit),
		Next: "name the disk by what it alone has, or unplug a path to it"}
}

func words(ds []LocalDisk) string {
	if len(ds) == 0 {
		return "no disk"
	}
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = d.String()
	}
	return strings.Join(out, ", ")
}
