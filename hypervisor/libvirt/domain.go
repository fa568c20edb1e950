package libvirt

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net"
	"strconv"
	"strings"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
)

// domain is the definition of a domain, as far as it is ours to say or to know.
type domain struct {
	XMLName  xml.Name  `xml:"domain"`
	Type     string    `xml:"type,attr"`
	Name     string    `xml:"name"`
	UUID     string    `xml:"uuid"`
	Metadata *metadata `xml:"metadata"`
	Memory   quantity  `xml:"memory"`
	VCPUs    int       `xml:"vcpu"`
	OS       system    `xml:"os"`
	Features *features `xml:"features"`
	CPU      *cpu      `xml:"cpu"`
	Clock    *clock    `xml:"clock"`
	Devices  devices   `xml:"devices"`
}

// metadata says that a domain is ours. Name and UUID are in it because a clone keeps its metadata.
type metadata struct {
	VM *owned `xml:"https://rerack.dev/libvirt/1 vm"`
}

type owned struct {
	Name  string        `xml:"name,attr"`
	UUID  string        `xml:"uuid,attr"`
	Epoch uint64        `xml:"epoch,attr"`
	Disks []ownedVolume `xml:"disk"`
}

// ownedVolume is what a disk's own element cannot say.
type ownedVolume struct {
	Target string `xml:"target,attr"`
	Volume string `xml:"volume,attr"`
	CHAP   string `xml:"chap,attr,omitempty"` // name of the secret, as the caller keeps it
}

type quantity struct {
	Unit  string `xml:"unit,attr"`
	Value int64  `xml:",chardata"`
}

type system struct {
	Firmware string    `xml:"firmware,attr,omitempty"`
	Type     osType    `xml:"type"`
	Wants    *firmware `xml:"firmware"`
	Loader   *loader   `xml:"loader"`
}

type osType struct {
	Arch    string `xml:"arch,attr"`
	Machine string `xml:"machine,attr,omitempty"`
	Value   string `xml:",chardata"`
}

type firmware struct {
	Features []feature `xml:"feature"`
}

type feature struct {
	Enabled string `xml:"enabled,attr"`
	Name    string `xml:"name,attr"`
}

type loader struct {
	Type string `xml:"type,attr,omitempty"`
}

type features struct {
	ACPI *struct{} `xml:"acpi"`
}

type cpu struct {
	Mode string `xml:"mode,attr,omitempty"`
}

type clock struct {
	Offset string `xml:"offset,attr"`
}

type devices struct {
	Disks       []disk       `xml:"disk"`
	Controllers []controller `xml:"controller"`
	NICs        []nic        `xml:"interface"`
	Serials     []serial     `xml:"serial"`
}

type controller struct {
	Type  string `xml:"type,attr"`
	Model string `xml:"model,attr,omitempty"`
}

type serial struct {
	Type string `xml:"type,attr"`
}

type disk struct {
	Type   string      `xml:"type,attr"`
	Device string      `xml:"device,attr"`
	Driver *diskDriver `xml:"driver"`
	Source diskSource  `xml:"source"`
	Target diskTarget  `xml:"target"`
	Boot   *boot       `xml:"boot"`
}

type diskDriver struct {
	Name  string `xml:"name,attr"`
	Type  string `xml:"type,attr"`
	Cache string `xml:"cache,attr,omitempty"`
}

type diskSource struct {
	Protocol  string      `xml:"protocol,attr,omitempty"`
	Name      string      `xml:"name,attr,omitempty"` // of iSCSI: IQN/LUN
	Dev       string      `xml:"dev,attr,omitempty"`
	Hosts     []portal    `xml:"host"`
	Initiator *initiator  `xml:"initiator"`
	Auth      *diskSecret `xml:"auth"`
}

type portal struct {
	Name string `xml:"name,attr"`
	Port string `xml:"port,attr"`
}

type initiator struct {
	IQN struct {
		Name string `xml:"name,attr"`
	} `xml:"iqn"`
}

type diskSecret struct {
	User   string `xml:"username,attr"`
	Secret struct {
		Type  string `xml:"type,attr"`
		UUID  string `xml:"uuid,attr,omitempty"`
		Usage string `xml:"usage,attr,omitempty"`
	} `xml:"secret"`
}

type diskTarget struct {
	Dev string `xml:"dev,attr"`
	Bus string `xml:"bus,attr,omitempty"`
}

type boot struct {
	Order int `xml:"order,attr"`
}

type nic struct {
	Type        string       `xml:"type,attr"`
	MAC         nicMAC       `xml:"mac"`
	Source      nicSource    `xml:"source"`
	VLAN        *nicVLAN     `xml:"vlan"`
	VirtualPort *virtualPort `xml:"virtualport"`
	Model       *nicModel    `xml:"model"`
	Boot        *boot        `xml:"boot"`
}

type nicMAC struct {
	Address string `xml:"address,attr"`
}

type nicSource struct {
	Bridge string `xml:"bridge,attr,omitempty"`
}

type nicVLAN struct {
	Tags []nicTag `xml:"tag"`
}

type nicTag struct {
	ID int `xml:"id,attr"`
}

type virtualPort struct {
	Type string `xml:"type,attr"`
}

type nicModel struct {
	Type string `xml:"type,attr"`
}

// arches maps our names to libvirt's and back.
var arches = [...]struct{ ours, libvirt, machine string }{{"x86_64", "x86_64", "q35"}, {"arm64", "aarch64", "virt"}}

// domain is the definition of a VM of ours. It boots from its first NIC, as a machine does, and its boot
// volume comes after that.
func (c Config) domain(s driver.Spec) (string, error) {
	d := domain{Type: c.Type, Name: s.Name, UUID: s.UUID, Memory: quantity{"MiB", s.MemoryMiB}, VCPUs: s.CPUs,
		Metadata: &metadata{&owned{Name: s.Name, UUID: strings.ToLower(s.UUID), Epoch: s.Epoch}},
		Features: &features{ACPI: &struct{}{}}, CPU: &cpu{"host-passthrough"}, Clock: &clock{"utc"}}
	if c.Type == "qemu" {
		d.CPU = &cpu{"maximum"}
	}
	for _, a := range arches {
		if a.ours == s.Arch {
			d.OS.Type = osType{a.libvirt, a.machine, "hvm"}
		}
	}
	if s.Firmware == "uefi" {
		d.OS.Firmware = "efi"
		if s.Arch == "x86_64" { // the network boot chain is not signed by who is enrolled there
			d.OS.Wants = &firmware{[]feature{{"no", "enrolled-keys"}, {"no", "secure-boot"}}}
		}
	} else if s.Arch != "x86_64" {
		d.Features = nil // ACPI needs firmware that brings it
	}
	d.Devices.Serials = []serial{{"pty"}}
	for i, n := range s.NICs {
		x := nic{Type: "bridge", MAC: nicMAC{n.MAC}, Model: &nicModel{"virtio"}}
		if c.OVS != "" {
			x.Source.Bridge, x.VLAN, x.VirtualPort = c.OVS, &nicVLAN{[]nicTag{{n.VLAN}}}, &virtualPort{"openvswitch"}
		} else {
			x.Source.Bridge = strings.Replace(c.Bridge, "%d", strconv.Itoa(n.VLAN), 1)
		}
		if i == 0 {
			x.Boot = &boot{1}
		}
		d.Devices.NICs = append(d.Devices.NICs, x)
	}
	if len(s.Disks) > 0 {
		d.Devices.Controllers = []controller{{"scsi", "virtio-scsi"}}
	}
	for i, v := range s.Disks {
		x, err := c.disk(s.Name, v)
		if err != nil {
			return "", err
		}
		x.Target = diskTarget{diskName(i), "scsi"}
		o := ownedVolume{Target: x.Target.Dev, Volume: v.Volume}
		if v.ISCSI != nil && v.ISCSI.CHAP != nil {
			o.CHAP = v.ISCSI.CHAP.Name
		}
		d.Devices.Disks, d.Metadata.VM.Disks = append(d.Devices.Disks, x), append(d.Metadata.VM.Disks, o)
	}
	text, err := xml.Marshal(d)
	if err != nil {
		return "", &fault.Error{Kind: fault.Internal, What: "write the definition", Err: err}
	}
	return string(text), nil
}

func (c Config) disk(vm string, d driver.Disk) (disk, error) {
	// The guest's writes are durable when it is told so, and two hosts never share a page cache.
	x := disk{Device: "disk", Driver: &diskDriver{"qemu", "raw", "none"}}
	if d.Boot {
		x.Boot = &boot{2}
	}
	if d.FC != nil {
		if c.FCDevice == "" {
			return x, &fault.Error{Kind: fault.Unsupported, What: "volume " + d.Volume, Evidence: "it is on Fibre Channel, and the host has no device path for that",
				Next: "declare fcDevice of the machine's hypervisor"}
		}
		x.Type = "block"
		x.Source.Dev = strings.NewReplacer("{wwpn}", strings.ReplaceAll(d.FC.WWPN, ":", ""), "{lun}", strconv.Itoa(d.FC.LUN)).Replace(c.FCDevice)
		return x, nil
	}
	host, port, err := net.SplitHostPort(d.ISCSI.Portal)
	if err != nil {
		return x, refuse(fault.Invalid, "portal of volume "+d.Volume)
	}
	x.Type = "network"
	x.Source = diskSource{Protocol: "iscsi", Name: fmt.Sprintf("%s/%d", d.ISCSI.Target, d.ISCSI.LUN), Hosts: []portal{{host, port}}}
	if d.ISCSI.Initiator != "" {
		x.Source.Initiator = &initiator{}
		x.Source.Initiator.IQN.Name = d.ISCSI.Initiator
	}
	if chap := d.ISCSI.CHAP; chap != nil {
		if chap.User == "" {
			return x, refuse(fault.Invalid, "CHAP of volume "+d.Volume+" has no secret")
		}
		x.Source.Auth = &diskSecret{User: chap.User}
		x.Source.Auth.Secret.Type, x.Source.Auth.Secret.Usage = "iscsi", loginUsage(vm, d.Volume)
	}
	return x, nil
}

// diskName is a Linux disk name: sda … sdz, sdaa ….
func diskName(i int) string {
	s := ""
	for i++; i > 0; i = (i - 1) / 26 {
		s = string(rune('a'+(i-1)%26)) + s
	}
	return "sd" + s
}

// differs says in what a definition that reads back is not the one that was asked.
func differs(asked, got driver.Spec) string {
	if asked.Equal(got) {
		return ""
	}
	a, _ := json.Marshal(asked.Public()) // plain structs
	g, _ := json.Marshal(got.Public())
	return fmt.Sprintf("%s was asked, %s reads back", a, g)
}
