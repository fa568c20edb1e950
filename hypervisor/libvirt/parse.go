package libvirt

import (
	"encoding/xml"
	"fmt"
	"net"
	"strconv"
	"strings"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// parse reads what libvirt says of a domain, as the driver's VM without its state. Of one that is not ours
// its name, UUID, size and MACs are certain, the rest is what can be told.
func (c Config) parse(text string) (driver.VM, error) {
	var d domain
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return driver.VM{}, &fault.Error{Kind: fault.Internal, What: "read a domain's definition", Err: err}
	}
	if d.Name == "" || d.UUID == "" || d.VCPUs < 1 || d.Memory.Unit != "KiB" || d.Memory.Value < 0 {
		return driver.VM{}, &fault.Error{Kind: fault.Internal, What: "read a domain's definition",
			Evidence: fmt.Sprintf("domain %.80q has UUID %.40q, %d CPUs and memory %d %.10q", d.Name, d.UUID, d.VCPUs, d.Memory.Value, d.Memory.Unit)}
	}
	s := driver.Spec{Name: d.Name, UUID: strings.ToLower(d.UUID), CPUs: d.VCPUs, MemoryMiB: (d.Memory.Value + 1023) / 1024, Arch: d.OS.Type.Arch, Firmware: "bios"}
	for _, a := range arches {
		if a.libvirt == d.OS.Type.Arch {
			s.Arch = a.ours
		}
	}
	if d.OS.Firmware == "efi" || d.OS.Loader != nil && d.OS.Loader.Type == "pflash" {
		s.Firmware = "uefi"
	}
	for _, n := range d.Devices.NICs {
		s.NICs = append(s.NICs, driver.NIC{MAC: strings.ToLower(n.MAC.Address), VLAN: c.vlan(n)})
	}
	var meta owned
	if d.Metadata != nil && d.Metadata.VM != nil && d.Metadata.VM.Name == d.Name && strings.EqualFold(d.Metadata.VM.UUID, d.UUID) {
		meta = *d.Metadata.VM
	}
	for _, x := range d.Devices.Disks {
		if v, ok := c.volume(x, meta); ok {
			s.Disks = append(s.Disks, v)
		} else if meta.Epoch != 0 {
			// A disk that we did not give it: it is there, and no volume of ours.
			s.Disks = append(s.Disks, driver.Disk{Volume: "unknown-" + x.Target.Dev, FC: &driver.FC{WWPN: "ff:ff:ff:ff:ff:ff:ff:ff", LUN: len(s.Disks)}})
		}
	}
	s.Epoch = meta.Epoch
	return driver.VM{Name: d.Name, UUID: s.UUID, Epoch: meta.Epoch, Spec: s}, nil
}

// vlan is 0 for a NIC on a network that is none of ours.
func (c Config) vlan(n nic) int {
	if c.OVS != "" {
		if n.Source.Bridge == c.OVS && n.VLAN != nil && len(n.VLAN.Tags) == 1 {
			return n.VLAN.Tags[0].ID
		}
		return 0
	}
	before, after, _ := strings.Cut(c.Bridge, "%d")
	digits, ok := strings.CutPrefix(n.Source.Bridge, before)
	if digits, ok = cutSuffix(digits, after, ok); !ok {
		return 0
	}
	return number(digits, 4094)
}

func cutSuffix(s, suffix string, ok bool) (string, bool) {
	rest, has := strings.CutSuffix(s, suffix)
	return rest, ok && has
}

// number reads one in the only way it is written; 0 for anything else.
func number(s string, most int) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > most || strconv.Itoa(n) != s {
		return 0
	}
	return n
}

// volume is the driver's view of a disk; false for one that is in none of the ways we attach volumes.
func (c Config) volume(x disk, meta owned) (driver.Disk, bool) {
	d := driver.Disk{Boot: x.Boot != nil}
	chap := ""
	for _, o := range meta.Disks {
		if o.Target == x.Target.Dev {
			d.Volume, chap = o.Volume, o.CHAP
		}
	}
	switch {
	case x.Type == "network" && x.Source.Protocol == "iscsi" && len(x.Source.Hosts) == 1:
		target, lun, ok := strings.Cut(x.Source.Name, "/")
		if !ok || lun != strconv.Itoa(number(lun, maxLUN)) {
			return d, false
		}
		d.ISCSI = &driver.ISCSI{Portal: net.JoinHostPort(x.Source.Hosts[0].Name, x.Source.Hosts[0].Port), Target: target, LUN: number(lun, maxLUN)}
		if x.Source.Initiator != nil {
			d.ISCSI.Initiator = x.Source.Initiator.IQN.Name
		}
		if x.Source.Auth != nil {
			d.ISCSI.CHAP = &driver.CHAP{Name: chap}
		}
	case x.Type == "block" && c.FCDevice != "":
		before, rest, _ := strings.Cut(c.FCDevice, "{wwpn}")
		middle := strings.TrimSuffix(rest, "{lun}")
		tail, ok := strings.CutPrefix(x.Source.Dev, before)
		if !ok || len(tail) < 16 {
			return d, false
		}
		lun, ok := strings.CutPrefix(tail[16:], middle)
		if !ok || lun != strconv.Itoa(number(lun, maxLUN)) {
			return d, false
		}
		var pairs []string
		for i := 0; i < 16; i += 2 {
			pairs = append(pairs, tail[i:i+2])
		}
		d.FC = &driver.FC{WWPN: strings.Join(pairs, ":"), LUN: number(lun, maxLUN)}
	default:
		return d, false
	}
	return d, d.Volume != "" || meta.Epoch == 0
}

// maxLUN bounds what is read back, SAM-5 section 4.7.3.
const maxLUN = 1<<14 - 1
