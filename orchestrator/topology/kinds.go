// Package topology is the declared data centre: pure data, its YAML, its validation and its diff.
// It does no I/O beyond readers it is given and imports nothing else of Rerack's.
//
// The struct tags are the single source of the YAML form, the JSON Schema and the API schema:
// json names the field, doc explains it, enum/minimum/maximum/pattern bound it, required is the
// absence of omitempty.
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
	Name   string            `json:"name" doc:"Unique within the kind: lower-case letters, digits and dashes" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"`
	Labels map[string]string `json:"labels,omitempty" doc:"Free key-value pairs for selectors"`
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
	ProbeProxy string `json:"probeProxy,omitempty" doc:"SOCKS5 proxy inside the site through which workloads are health-checked from their own networks" example:"socks5://127.0.0.1:1080"`
}

// RackSpec is a rack: the usual failure domain.
type RackSpec struct {
	Site   string   `json:"site" doc:"Site it stands in"`
	Units  int      `json:"units,omitempty" minimum:"1" maximum:"60" doc:"Height in rack units, default 42"`
	Feeds  []string `json:"feeds,omitempty" doc:"PowerFeeds into the rack"`
	Row    string   `json:"row,omitempty" doc:"Row or room, for people"`
	Policy string   `json:"policy,omitempty" doc:"Policy for evidence and fencing of this rack; the built-in one when empty"`
}

// PowerFeedSpec is one electrical feed: a failure domain shared by racks.
type PowerFeedSpec struct {
	Site  string `json:"site"`
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
	Manufacturer string     `json:"manufacturer,omitempty"`
	Model        string     `json:"model,omitempty"`
	Arch         Arch       `json:"arch" enum:"x86_64,arm64"`
	CPUs         int        `json:"cpus" minimum:"1" maximum:"4096" doc:"Logical CPUs"`
	MemoryMiB    int64      `json:"memoryMiB" minimum:"1" doc:"Memory in MiB"`
	Firmware     []Firmware `json:"firmware" doc:"Ways it can boot" enum:"bios,uefi"`
	Hypervisor   bool       `json:"hypervisor,omitempty" doc:"May run the hypervisor image and host virtual machines"`
	Watts        int        `json:"watts,omitempty" minimum:"0" doc:"Power drawn under load"`
}

// MachineSpec is one physical server.
type MachineSpec struct {
	Rack         string `json:"rack"`
	Unit         int    `json:"unit,omitempty" minimum:"1" maximum:"60" doc:"Lowest rack unit it occupies"`
	HardwareType string `json:"hardwareType"`
	Serial       string `json:"serial,omitempty" doc:"Checked against the BMC before every destructive call"`
	UUID         string `json:"uuid,omitempty" doc:"SMBIOS UUID; checked against the BMC before every destructive call"`
	BMC          BMC    `json:"bmc"`
	NICs         []NIC  `json:"nics"`
	HBAs         []HBA  `json:"hbas,omitempty"`
	// StorageAddress identifies this machine to iSCSI arrays. It belongs to the hardware and not to the
	// workload: an access list by an identity that moves could not tell the old holder from the new one.
	StorageAddress netip.Addr `json:"storageAddress,omitzero" doc:"The machine's own IP address towards iSCSI arrays"`
	Provisioning   Attachment `json:"provisioning,omitzero" doc:"Network and address it has while it runs no workload of its own: as a Host, for capture, for a drill"`
	Maintenance    bool       `json:"maintenance,omitempty" doc:"Never chosen as a target, and its silence is no evidence"`
}

// BMC says how to reach a management controller.
type BMC struct {
	Address     string `json:"address" doc:"Host, host:port or https URL" example:"https://10.0.9.17"`
	IPMIAddress string `json:"ipmiAddress,omitempty" doc:"host:port of IPMI when it differs from the address"`
	Protocol    string `json:"protocol,omitempty" enum:"auto,redfish,ipmi,bmclib" doc:"auto (default) probes and remembers"`
	Credentials string `json:"credentials" doc:"Name of a secret with username and password"`
	Fingerprint string `json:"fingerprint,omitempty" doc:"SHA-256 of the BMC's certificate, hex; otherwise the system's and the configured CAs are trusted"`
}

// NIC is one Ethernet port and the switch port it is cabled to.
type NIC struct {
	Name   string `json:"name"`
	MAC    MAC    `json:"mac"`
	Switch string `json:"switch"`
	Port   string `json:"port"`
}

// HBA is one Fibre Channel port and the fabric it is cabled to.
type HBA struct {
	Name   string `json:"name"`
	WWPN   WWPN   `json:"wwpn"`
	Fabric string `json:"fabric"`
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

// SwitchSpec is one network switch.
type SwitchSpec struct {
	Rack        string   `json:"rack,omitempty" doc:"Rack it stands in; empty for a core switch outside any rack"`
	Site        string   `json:"site,omitempty" doc:"Site, when it stands in no rack"`
	Driver      string   `json:"driver" enum:"ovs"`
	Address     string   `json:"address" doc:"Management endpoint" example:"tcp:10.0.9.2:6640"`
	Bridge      string   `json:"bridge,omitempty" doc:"Bridge to manage (ovs), default br0"`
	Credentials string   `json:"credentials,omitempty"`
	Uplinks     []Uplink `json:"uplinks,omitempty" doc:"Links towards the core; closing the far ends cuts the switch off"`
	Protected   []string `json:"protected,omitempty" doc:"Ports Rerack must never touch: its own way in"`
}

// Uplink is one cable from this switch to another.
type Uplink struct {
	Port     string `json:"port"`
	Switch   string `json:"switch" doc:"Switch at the far end"`
	PeerPort string `json:"peerPort" doc:"Port at the far end"`
}

// NetworkSpec is a VLAN with its subnet.
type NetworkSpec struct {
	Site    string       `json:"site"`
	VLAN    int          `json:"vlan" minimum:"1" maximum:"4094"`
	Subnet  netip.Prefix `json:"subnet" example:"10.1.0.0/24"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	DNS     []netip.Addr `json:"dns,omitempty"`
	MTU     int          `json:"mtu,omitempty" minimum:"576" maximum:"9216" doc:"Default 1500"`
}

// FabricSpec is one Fibre Channel fabric, managed through one of its switches.
type FabricSpec struct {
	Site        string `json:"site"`
	Driver      string `json:"driver" enum:"brocade"`
	Address     string `json:"address" example:"https://10.0.9.3"`
	VirtualID   int    `json:"virtualFabric,omitempty" minimum:"1" maximum:"128" doc:"Virtual fabric id, 0 = none"`
	Credentials string `json:"credentials"`
	Fingerprint string `json:"fingerprint,omitempty" doc:"SHA-256 of the certificate, hex"`
}

// Protocol is how a volume is reached.
type Protocol string

const (
	ISCSI Protocol = "iscsi"
	FC    Protocol = "fc"
)

// ArraySpec is one storage system.
type ArraySpec struct {
	Site        string        `json:"site"`
	Rack        string        `json:"rack,omitempty" doc:"Rack it stands in: it burns with it"`
	Driver      string        `json:"driver" enum:"tgt,ontap"`
	Address     string        `json:"address" doc:"Management endpoint: a unix socket for tgt, an https URL for ontap" example:"unix:/run/tgt/socket.0"`
	Credentials string        `json:"credentials,omitempty"`
	Fingerprint string        `json:"fingerprint,omitempty" doc:"SHA-256 of the certificate, hex"`
	Portals     []string      `json:"portals,omitempty" doc:"iSCSI portals, host:port"`
	Targets     []ArrayTarget `json:"targets,omitempty" doc:"Fibre Channel target ports"`
}

// ArrayTarget is one FC port of an array.
type ArrayTarget struct {
	WWPN   WWPN   `json:"wwpn"`
	Fabric string `json:"fabric"`
}

// VolumeSpec is a LUN.
type VolumeSpec struct {
	Array    string   `json:"array"`
	Protocol Protocol `json:"protocol" enum:"iscsi,fc"`
	Target   IQN      `json:"target,omitempty" doc:"iSCSI target name; one target per volume"`
	ArrayRef string   `json:"arrayRef,omitempty" doc:"The array's own name of the LUN when it is not an iSCSI target" example:"/vol/v1/lun7"`
	LUN      int      `json:"lun" minimum:"0" maximum:"16383"`
	SizeGiB  int      `json:"sizeGiB,omitempty" minimum:"1"`
	Shared   bool     `json:"shared,omitempty" doc:"May be written by several holders at once (a cluster filesystem)"`
}

// ImageType is what an image is.
type ImageType string

const (
	ImageKernel     ImageType = "kernel"     // kernel + initrds + command line
	ImageSAN        ImageType = "san"        // boots from the workload's own boot volume
	ImageHypervisor ImageType = "hypervisor" // kernel form, makes the machine a Host
)

// ImageSpec is what to boot. Files are named by digest and live in the image store.
type ImageSpec struct {
	Type     ImageType         `json:"type" enum:"kernel,san,hypervisor"`
	Arch     Arch              `json:"arch" enum:"x86_64,arm64"`
	Firmware []Firmware        `json:"firmware,omitempty" enum:"bios,uefi" doc:"Ways it can boot; empty means all"`
	Kernel   Digest            `json:"kernel,omitempty"`
	Initrds  []Digest          `json:"initrds,omitempty"`
	Cmdline  map[string]string `json:"cmdline,omitempty" doc:"Kernel parameters; an empty value is a flag"`
}

// RunsOn is where a workload may run.
type RunsOn string

const (
	Physical RunsOn = "physical"
	Virtual  RunsOn = "virtual"
	Any      RunsOn = "any"
)

// WorkloadSpec is a server that somebody needs, independent of hardware.
type WorkloadSpec struct {
	Home         string            `json:"home,omitempty" doc:"Machine it runs on when first declared, and goes home to"`
	RunsOn       RunsOn            `json:"runsOn" enum:"physical,virtual,any"`
	Arch         Arch              `json:"arch" enum:"x86_64,arm64"`
	Firmware     Firmware          `json:"firmware,omitempty" enum:"bios,uefi" doc:"Needed boot firmware; empty means any"`
	CPUs         int               `json:"cpus" minimum:"1" maximum:"4096"`
	MemoryMiB    int64             `json:"memoryMiB" minimum:"1"`
	Hostname     string            `json:"hostname,omitempty" doc:"Default: the name"`
	UUID         string            `json:"uuid,omitempty" doc:"Identity shown to the guest where hardware allows; derived from the name when empty"`
	InitiatorIQN IQN               `json:"initiatorIQN,omitempty" doc:"iSCSI initiator name that travels with the workload"`
	Networks     []Attachment      `json:"networks" doc:"Networks it must reach; the first is the one it boots from"`
	Volumes      []VolumeUse       `json:"volumes,omitempty"`
	Image        string            `json:"image"`
	Priority     int               `json:"priority,omitempty" minimum:"0" maximum:"1000" doc:"Higher comes back first; default 0"`
	Repurposable bool              `json:"repurposable,omitempty" doc:"May be evicted so that its machine can run something more important"`
	Requires     map[string]string `json:"requires,omitempty" doc:"Labels the target machine must have"`
	SpreadGroup  string            `json:"spreadGroup,omitempty" doc:"Workloads of one group never share a failure domain of the given scope"`
	SpreadScope  string            `json:"spreadScope,omitempty" enum:"machine,rack,powerfeed" doc:"Default rack"`
	DependsOn    []string          `json:"dependsOn,omitempty" doc:"Workloads that must be healthy before this one starts"`
	Health       Health            `json:"health,omitzero"`
}

// Attachment is a workload's presence on a network: part of its identity.
type Attachment struct {
	Network string     `json:"network"`
	Address netip.Addr `json:"address"`
	MAC     MAC        `json:"mac,omitempty" doc:"MAC when it runs as a virtual machine; derived from the name when empty"`
}

// VolumeUse is a volume of a workload.
type VolumeUse struct {
	Volume   string `json:"volume"`
	Boot     bool   `json:"boot,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Health says how to see that the workload serves. The zero value trusts the phone-home.
type Health struct {
	HTTPPort int    `json:"httpPort,omitempty" minimum:"1" maximum:"65535" doc:"GET on its first address must answer 2xx"`
	Path     string `json:"path,omitempty" doc:"Default /"`
	TCPPort  int    `json:"tcpPort,omitempty" minimum:"1" maximum:"65535" doc:"A TCP connection must be accepted"`
}

// RunbookSpec is a named recovery procedure.
type RunbookSpec struct {
	Scope           []string `json:"scope" doc:"Failure domains it is for" example:"rack/rack-a"`
	Policy          string   `json:"policy,omitempty" doc:"Policy of the recovery; the built-in one when empty"`
	HypervisorImage string   `json:"hypervisorImage,omitempty" doc:"Image that makes a machine a Host; without it no host is booted for virtual machines"`
	Triggers        Triggers `json:"triggers"`
	Approvals       int      `json:"approvals,omitempty" minimum:"0" maximum:"5" doc:"People who must approve before the first destructive act"`
	RTO             Duration `json:"rto,omitempty" doc:"Goal for the whole recovery" example:"15m"`
}

// Triggers says who may start a runbook.
type Triggers struct {
	Person   bool `json:"person"`
	API      bool `json:"api,omitempty"`
	Alert    bool `json:"alert,omitempty"`
	Detector bool `json:"detector,omitempty" doc:"The failure detector itself, after a verdict of burned"`
}

// PolicySpec holds every waiting time and threshold of detection, fencing and recovery.
type PolicySpec struct {
	Evidence EvidencePolicy `json:"evidence,omitzero"`
	Fencing  FencingPolicy  `json:"fencing,omitzero"`
	Recovery RecoveryPolicy `json:"recovery,omitzero"`
}

// EvidencePolicy decides when a failure domain counts as burned (rules F1 and F6).
type EvidencePolicy struct {
	PollEvery       Duration `json:"pollEvery,omitempty" doc:"How often devices are read, default 10s"`
	SilentAfter     Duration `json:"silentAfter,omitempty" doc:"A BMC or switch counts as silent after this long without an answer, default 30s"`
	HoldFor         Duration `json:"holdFor,omitempty" doc:"All evidence must hold this long before the verdict, default 30s"`
	MaxAge          Duration `json:"maxAge,omitempty" doc:"Evidence older than this counts as unknown, default 60s"`
	MinKinds        int      `json:"minKinds,omitempty" minimum:"2" maximum:"5" doc:"Independent kinds needed for burned, default 2"`
	MassPercent     int      `json:"massPercent,omitempty" minimum:"1" maximum:"100" doc:"More than this share of all machines silent at once means that we are cut off, default 34"`
	SuspectDeadline Duration `json:"suspectDeadline,omitempty" doc:"A run that is still not certain by then ends as suspect, default 5m"`
}

// FencingPolicy decides when a machine counts as fenced (rules F2 and F3).
type FencingPolicy struct {
	OffReadings int      `json:"offReadings,omitempty" minimum:"1" maximum:"10" doc:"Consecutive off readings that make off, default 3"`
	OffInterval Duration `json:"offInterval,omitempty" doc:"Time between them, default 5s"`
	PowerLimit  Duration `json:"powerLimit,omitempty" doc:"How long a power-off may take before the other fences must do, default 60s"`
	DeviceLimit Duration `json:"deviceLimit,omitempty" doc:"How long one switch, fabric or array may take, default 60s"`
}

// RecoveryPolicy bounds a recovery.
type RecoveryPolicy struct {
	BootDeadline   Duration `json:"bootDeadline,omitempty" doc:"Power-on to phone-home, default 15m"`
	HealthDeadline Duration `json:"healthDeadline,omitempty" doc:"Phone-home to healthy, default 5m"`
	Rounds         int      `json:"rounds,omitempty" minimum:"1" maximum:"20" doc:"How often what failed to boot is planned again on other machines, default 4"`
	BootsAtOnce    int      `json:"bootsAtOnce,omitempty" minimum:"1" maximum:"5000" doc:"Machines and VMs powered on in parallel, default 64"`
	PowerOnGap     Duration `json:"powerOnGap,omitempty" doc:"Pause between power-ons of one rack, for inrush current, default 0"`
	ResendOn       Duration `json:"resendOn,omitempty" doc:"A power-on that is not seen is sent again after this, default 30s"`
	HostReserveMiB int64    `json:"hostReserveMiB,omitempty" minimum:"0" doc:"Memory the hypervisor keeps for itself, default 2048"`
}
