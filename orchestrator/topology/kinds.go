// Package topology is the declared data centre: pure data, its YAML, its validation and its diff.
// It does no I/O beyond readers it is given and imports nothing else of Rerack's.
//
// The struct tags are the single source of the YAML form, the JSON Schema, the API schema, the defaults
// and the explanations: json names the field and omitempty makes it optional, doc explains it, ref names
// the kind it points to, enum, minimum, maximum, minItems, pattern, keys (the pattern of a map's keys)
// and format bound it, form says a pattern in words, default is what holds when it is left out.
package topology

import "net/netip"

// APIVersion is the only version of the YAML form.
const APIVersion = "rerack/v1"

// Kind names a kind of object, in the singular and as written in YAML.
type Kind string

const (
	KindSite         Kind = "Site"
	KindRack         Kind = "Rack"
	KindPowerFeed    Kind = "PowerFeed"
	KindHardwareType Kind = "HardwareType"
	KindMachine      Kind = "Machine"
	KindMachinePool  Kind = "MachinePool"
	KindSwitch       Kind = "Switch"
	KindNetwork      Kind = "Network"
	KindFabric       Kind = "Fabric"
	KindArray        Kind = "Array"
	KindVolume       Kind = "Volume"
	KindImage        Kind = "Image"
	KindWorkload     Kind = "Workload"
	KindRunbook      Kind = "Runbook"
	KindPolicy       Kind = "Policy"
)

// Meta names an object. Names are unique per kind.
type Meta struct {
	Name   string            `json:"name" doc:"Unique within the kind" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" form:"1 to 63 lower-case letters, digits and dashes, no dash at either end"`
	Labels map[string]string `json:"labels,omitempty" doc:"Free key-value pairs for selectors" keys:"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"`
}

// Object is one declared thing: its kind, its name and what is wanted of it.
type Object[S any] struct {
	Kind Kind `json:"kind"`
	Meta Meta `json:"metadata"`
	Spec S    `json:"spec"`
}

// The kinds.
type (
	Site         = Object[SiteSpec]
	Rack         = Object[RackSpec]
	PowerFeed    = Object[PowerFeedSpec]
	HardwareType = Object[HardwareTypeSpec]
	Machine      = Object[MachineSpec]
	MachinePool  = Object[MachinePoolSpec]
	Switch       = Object[SwitchSpec]
	Network      = Object[NetworkSpec]
	Fabric       = Object[FabricSpec]
	Array        = Object[ArraySpec]
	Volume       = Object[VolumeSpec]
	Image        = Object[ImageSpec]
	Workload     = Object[WorkloadSpec]
	Runbook      = Object[RunbookSpec]
	Policy       = Object[PolicySpec]
)

// SiteSpec is a place with its own control plane links.
type SiteSpec struct {
	Location   string `json:"location,omitempty" doc:"Where it is, for people"`
	ProbeProxy string `json:"probeProxy,omitempty" doc:"SOCKS5 proxy inside the site through which workloads are health-checked from their own networks" format:"socks5" example:"socks5://127.0.0.1:1080"`
	AgentProxy string `json:"agentProxy,omitempty" doc:"SOCKS5 proxy inside the site through which the agents of hosts are reached, where the server is not on the networks that machines boot from" format:"socks5" example:"socks5://127.0.0.1:1080"`
}

// RackSpec is a rack: the usual failure domain.
type RackSpec struct {
	Site   string   `json:"site" doc:"Site it stands in" ref:"Site"`
	Units  int      `json:"units,omitempty" minimum:"1" maximum:"60" default:"42" doc:"Height in rack units"`
	Feeds  []string `json:"feeds,omitempty" doc:"PowerFeeds into the rack" ref:"PowerFeed"`
	Row    string   `json:"row,omitempty" doc:"Row or room, for people"`
	Policy string   `json:"policy,omitempty" doc:"Policy for evidence and fencing of this rack; the built-in one when empty" ref:"Policy"`
}

// PowerFeedSpec is one electrical feed: a failure domain shared by racks.
type PowerFeedSpec struct {
	Site  string `json:"site" doc:"Site it feeds" ref:"Site"`
	Watts int    `json:"watts,omitempty" minimum:"0" doc:"Capacity in watts; 0 = not limited"`
}

// Arch is a CPU architecture.
type Arch string

const (
	X86_64 Arch = "x86_64"
	ARM64  Arch = "arm64"
)

// Firmware is a way to boot.
type Firmware string

const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// HardwareTypeSpec is what all machines of one model have in common.
type HardwareTypeSpec struct {
	Manufacturer string     `json:"manufacturer,omitempty" doc:"Maker, for people"`
	Model        string     `json:"model,omitempty" doc:"Model, for people"`
	Arch         Arch       `json:"arch" enum:"x86_64,arm64" doc:"CPU architecture"`
	CPUs         int        `json:"cpus" minimum:"1" maximum:"4096" doc:"Logical CPUs"`
	MemoryMiB    int64      `json:"memoryMiB" minimum:"1" doc:"Memory in MiB"`
	Firmware     []Firmware `json:"firmware" minItems:"1" doc:"Ways it can boot" enum:"bios,uefi"`
	SecureBoot   bool       `json:"secureBoot,omitempty" doc:"Its firmware starts signed programs only: it boots images of kernel form and EFI binaries, by shim and GRUB"`
	Hypervisor   bool       `json:"hypervisor,omitempty" doc:"May run the hypervisor image and host virtual machines"`
	Watts        int        `json:"watts,omitempty" minimum:"0" doc:"Power drawn under load, in watts"`
}

// MachineSpec is one physical server.
type MachineSpec struct {
	Rack         string `json:"rack" doc:"Rack it stands in" ref:"Rack"`
	Unit         int    `json:"unit,omitempty" minimum:"1" maximum:"60" doc:"Lowest rack unit it occupies"`
	HardwareType string `json:"hardwareType" doc:"Its model" ref:"HardwareType"`
	Serial       string `json:"serial,omitempty" doc:"Checked against the BMC before every destructive call"`
	UUID         string `json:"uuid,omitempty" doc:"SMBIOS UUID; checked against the BMC before every destructive call" pattern:"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$" form:"8-4-4-4-12 hex digits"`
	BMC          BMC    `json:"bmc" doc:"How to reach its management controller"`
	NICs         []NIC  `json:"nics" minItems:"1" doc:"Ethernet ports; it boots from the first"`
	HBAs         []HBA  `json:"hbas,omitempty" doc:"Fibre Channel ports"`
	// StorageAddress identifies this machine to iSCSI arrays. It belongs to the hardware and not to the
	// workload: an access list by an identity that moves could not tell the old holder from the new one.
	StorageAddress netip.Addr `json:"storageAddress,omitzero" doc:"The machine's own IP address towards iSCSI arrays"`
	Provisioning   Attachment `json:"provisioning,omitzero" doc:"Network and address it has while it runs no workload of its own: as a Host, for capture, for a drill"`
	Hypervisor     Hypervisor `json:"hypervisor,omitzero" doc:"A hypervisor that it runs already and that is not Rerack's: workloads may run there as VMs"`
	Maintenance    bool       `json:"maintenance,omitempty" doc:"Never chosen as a target, and its silence is no evidence"`
}

// BMC says how to reach a management controller.
type BMC struct {
	Address     string `json:"address" doc:"Host, host:port, https URL, or amt://host for Intel AMT" format:"bmc" example:"https://10.0.9.17"`
	IPMIAddress string `json:"ipmiAddress,omitempty" doc:"host:port of IPMI when it differs from the address" format:"hostport"`
	Protocol    string `json:"protocol,omitempty" enum:"auto,redfish,ipmi,amt,bmclib" default:"auto" doc:"Protocol to speak; auto probes and remembers"`
	Credentials string `json:"credentials" doc:"Name of a secret with username and password" pattern:"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$" form:"the name of a secret: letters, digits and . _ / -"`
	Fingerprint string `json:"fingerprint,omitempty" doc:"SHA-256 of the BMC's certificate; otherwise the system's and the configured CAs are trusted" pattern:"^[0-9a-f]{64}$" form:"64 lower-case hex digits"`
}

// NIC is one Ethernet port and the switch port it is cabled to.
type NIC struct {
	Name   string `json:"name" doc:"Name on the machine" pattern:"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,63}$" form:"letters, digits and . _ / : -, at most 64" example:"eth0"`
	MAC    MAC    `json:"mac" doc:"Burnt-in Ethernet address" example:"52:54:00:12:34:56"`
	Switch string `json:"switch" doc:"Switch it is cabled to" ref:"Switch"`
	Port   string `json:"port" doc:"Port of that switch" pattern:"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,63}$" form:"letters, digits and . _ / : -, at most 64"`
}

// HBA is one Fibre Channel port and the fabric it is cabled to.
type HBA struct {
	Name   string `json:"name" doc:"Name on the machine" pattern:"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,63}$" form:"letters, digits and . _ / : -, at most 64" example:"fc0"`
	WWPN   WWPN   `json:"wwpn" doc:"Port name it logs in with" example:"20:00:00:25:b5:00:00:01"`
	Fabric string `json:"fabric" doc:"Fabric it is cabled to" ref:"Fabric"`
}

// MachinePoolSpec groups machines by label and says what they may be used for.
type MachinePoolSpec struct {
	Selector map[string]string `json:"selector" doc:"Labels a machine must all have; empty selects nothing"`
	Use      PoolUse           `json:"use" enum:"spare,production,none" doc:"spare: free to take; production: only through a repurposable workload; none: never a target"`
}

// PoolUse is what a pool's machines may be used for.
type PoolUse string

const (
	UseSpare      PoolUse = "spare"
	UseProduction PoolUse = "production"
	UseNone       PoolUse = "none"
)
