package driver

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"rerack.dev/rerack/internal/fault"
)

// Spec is the whole definition of a VM: exactly the workload's identity, networks and volumes. MACs, WWPNs and
// iSCSI names are in their canonical form, lower case.
type Spec struct {
	Name      string `json:"name"` // the workload's name
	UUID      string `json:"uuid"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int64  `json:"memoryMiB"`
	Arch      string `json:"arch"`     // x86_64, arm64
	Firmware  string `json:"firmware"` // bios, uefi
	NICs      []NIC  `json:"nics"`
	Disks     []Disk `json:"disks"`
	Epoch     uint64 `json:"epoch"`
	// Virtio says that its system has drivers for paravirtual disks. A host that would emulate a controller may
	// use them; it is no part of what is compared.
	Virtio bool `json:"virtio,omitempty"`
}

// NIC is one virtual NIC on a VLAN of the host's uplink.
type NIC struct {
	MAC  string `json:"mac"`
	VLAN int    `json:"vlan"`
}

// Disk is a volume the host attaches for the VM. Exactly one of the two ways is set.
type Disk struct {
	Volume string `json:"volume"`
	ISCSI  *ISCSI `json:"iscsi,omitempty"`
	FC     *FC    `json:"fc,omitempty"`
	Boot   bool   `json:"boot"`
}

// ISCSI names a target and its LUN, and as whom the host logs in to it.
type ISCSI struct {
	Portal    string `json:"portal"` // host:port
	Target    string `json:"target"` // IQN
	LUN       int    `json:"lun"`
	Initiator string `json:"initiator,omitempty"` // the workload's IQN; the host's own when empty
	CHAP      *CHAP  `json:"chap,omitempty"`
}

// FC names a target port and its LUN.
type FC struct {
	WWPN string `json:"wwpn"`
	LUN  int    `json:"lun"`
}

// What no host is asked for, and what no host is believed to have.
const (
	MaxCPUs      = 1 << 14
	MaxMemoryMiB = 1 << 30 // 1 PiB
	maxNICs      = 64
	maxDisks     = 256
	maxLUN       = 1<<14 - 1 // SAM-5 section 4.7.3, flat space addressing
)

var (
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	macForm  = regexp.MustCompile(`^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$`) // even: not a group's address
	wwpnForm = regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2}){7}$`)
	iscsi    = regexp.MustCompile(`^(iqn|eui|naa)\.[a-z0-9.:_-]{1,219}$`) // RFC 7143 section 4.2.7
	volume   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// CheckName refuses what cannot be the name of a VM of ours.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return &fault.Error{Kind: fault.Invalid, What: "VM name", Evidence: fmt.Sprintf("%.80q", name),
			Next: "1 to 63 lower-case letters, digits and dashes, no dash at either end"}
	}
	return nil
}

// Validate returns fault.Invalid and names the first wrong field.
func (s Spec) Validate() error {
	if err := CheckName(s.Name); err != nil {
		return err
	}
	bad := func(field string, v any) error {
		return &fault.Error{Kind: fault.Invalid, What: "VM " + s.Name + ": " + field, Evidence: fmt.Sprintf("%.100q", fmt.Sprint(v))}
	}
	switch {
	case !uuidForm.MatchString(s.UUID) || strings.Trim(s.UUID, "0-") == "":
		return bad("uuid", s.UUID)
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return bad("cpus", s.CPUs)
	case s.MemoryMiB < 1 || s.MemoryMiB > MaxMemoryMiB:
		return bad("memoryMiB", s.MemoryMiB)
	case s.Arch != "x86_64" && s.Arch != "arm64":
		return bad("arch", s.Arch)
	case s.Firmware != "bios" && s.Firmware != "uefi":
		return bad("firmware", s.Firmware)
	case s.Epoch == 0:
		return bad("epoch", "0 stands for none")
	case len(s.NICs) > maxNICs:
		return bad("nics", len(s.NICs))
	case len(s.Disks) > maxDisks:
		return bad("disks", len(s.Disks))
	}
	macs := map[string]bool{}
	for _, n := range s.NICs {
		switch {
		case !macForm.MatchString(n.MAC) || strings.Trim(n.MAC, "0:") == "":
			return bad("mac", n.MAC)
		case macs[n.MAC]:
			return bad("mac", n.MAC+" twice")
		case n.VLAN < 1 || n.VLAN > 4094:
			return bad("vlan", n.VLAN)
		}
		macs[n.MAC] = true
	}
	return s.validateDisks(bad)
}

func (s Spec) validateDisks(bad func(string, any) error) error {
	volumes, units, boots := map[string]bool{}, map[string]bool{}, 0
	for _, d := range s.Disks {
		var unit string
		switch {
		case !volume.MatchString(d.Volume):
			return bad("volume", d.Volume)
		case volumes[d.Volume]:
			return bad("volume", d.Volume+" twice")
		case (d.ISCSI == nil) == (d.FC == nil):
			return bad("volume "+d.Volume, "want exactly one of iscsi and fc")
		case d.ISCSI != nil:
			if !hostPort(d.ISCSI.Portal) {
				return bad("portal of volume "+d.Volume, d.ISCSI.Portal)
			}
			if !iscsi.MatchString(d.ISCSI.Target) {
				return bad("target of volume "+d.Volume, d.ISCSI.Target)
			}
			if d.ISCSI.LUN < 0 || d.ISCSI.LUN > maxLUN {
				return bad("lun of volume "+d.Volume, d.ISCSI.LUN)
			}
			if i := d.ISCSI.Initiator; i != "" && !iscsi.MatchString(i) {
				return bad("initiator of volume "+d.Volume, i)
			}
			if why := d.ISCSI.CHAP.wrong(); why != "" {
				return bad("CHAP of volume "+d.Volume, why)
			}
			unit = fmt.Sprint(d.ISCSI.Target, " ", d.ISCSI.LUN)
		case !wwpnForm.MatchString(d.FC.WWPN) || strings.Trim(d.FC.WWPN, "0:") == "":
			return bad("wwpn of volume "+d.Volume, d.FC.WWPN)
		case d.FC.LUN < 0 || d.FC.LUN > maxLUN:
			return bad("lun of volume "+d.Volume, d.FC.LUN)
		default:
			unit = fmt.Sprint(d.FC.WWPN, " ", d.FC.LUN)
		}
		if units[unit] {
			return bad("volume "+d.Volume, unit+" is another volume's too")
		}
		if d.Boot {
			boots++
		}
		volumes[d.Volume], units[unit] = true, true
	}
	if boots > 1 {
		return bad("disks", "two boot")
	}
	return nil
}

func hostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || len(s) > 260 {
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
		return false
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return !a.IsUnspecified() && !a.IsMulticast()
	}
	for label := range strings.SplitSeq(host, ".") {
		if !nameForm.MatchString(strings.ToLower(label)) {
			return false
		}
	}
	return true
}

// Equal reports whether two definitions are the same in all but the case of the UUID, Virtio and the values of
// secrets, the order of NICs and disks included: a guest sees it.
func (s Spec) Equal(o Spec) bool {
	return s.Name == o.Name && strings.EqualFold(s.UUID, o.UUID) && s.CPUs == o.CPUs && s.MemoryMiB == o.MemoryMiB && s.Arch == o.Arch &&
		s.Firmware == o.Firmware && s.Epoch == o.Epoch && slices.Equal(s.NICs, o.NICs) && slices.EqualFunc(s.Disks, o.Disks, Disk.equal)
}

func (d Disk) equal(o Disk) bool {
	return d.Volume == o.Volume && d.Boot == o.Boot && d.ISCSI.equal(o.ISCSI) && same(d.FC, o.FC)
}

func (i *ISCSI) equal(o *ISCSI) bool {
	if i == nil || o == nil || i.CHAP == nil || o.CHAP == nil {
		return same(i, o)
	}
	a, b := *i, *o
	a.CHAP, b.CHAP = nil, nil
	return a == b && i.CHAP.Name == o.CHAP.Name
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// Shares names the part of its identity that a VM shares with s, "" for none: no two may.
func (s Spec) Shares(vm VM) string {
	if strings.EqualFold(vm.UUID, s.UUID) || strings.EqualFold(vm.Spec.UUID, s.UUID) {
		return "UUID " + s.UUID
	}
	for _, n := range s.NICs {
		if slices.ContainsFunc(vm.Spec.NICs, func(o NIC) bool { return strings.EqualFold(o.MAC, n.MAC) }) {
			return "MAC " + n.MAC
		}
	}
	return ""
}

// Clone shares nothing with s.
func (s Spec) Clone() Spec {
	s.NICs, s.Disks = slices.Clone(s.NICs), slices.Clone(s.Disks)
	for i, d := range s.Disks {
		if d.ISCSI != nil {
			c := *d.ISCSI
			if c.CHAP != nil {
				login := *c.CHAP
				c.CHAP = &login
			}
			s.Disks[i].ISCSI = &c
		}
		if d.FC != nil {
			c := *d.FC
			s.Disks[i].FC = &c
		}
	}
	return s
}
