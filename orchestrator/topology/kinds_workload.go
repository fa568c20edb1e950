package topology

import "net/netip"

// ImageType is what an image is.
type ImageType string

const (
	ImageKernel     ImageType = "kernel"     // kernel + initrds + command line
	ImageSAN        ImageType = "san"        // boots from the workload's own boot volume
	ImageHypervisor ImageType = "hypervisor" // kernel form, makes the machine a Host
	ImageCapture    ImageType = "capture"    // kernel form, copies a machine's local disk into a volume
	ImageDisk       ImageType = "disk"       // a raw disk image, read over HTTP by iPXE
	ImageISO        ImageType = "iso"        // an ISO 9660 image, read over HTTP by iPXE
	ImageEFI        ImageType = "efi"        // an EFI binary, started by UEFI firmware
)

// ImageSpec is what to boot. Files are named by digest and live in the image store.
type ImageSpec struct {
	Type     ImageType         `json:"type" enum:"kernel,san,hypervisor,capture,disk,iso,efi" doc:"kernel: kernel and initrds; san: the workload's own boot volume; hypervisor: a kernel that makes the machine a Host; capture: a kernel that copies its local disk into a volume; disk, iso: an image that the boot loader reads over HTTP; efi: an EFI binary"`
	Arch     Arch              `json:"arch" enum:"x86_64,arm64" doc:"CPU architecture it runs on"`
	Firmware []Firmware        `json:"firmware,omitempty" enum:"bios,uefi" doc:"Ways it can boot; empty means all"`
	Kernel   Digest            `json:"kernel,omitempty" doc:"Kernel file"`
	Initrds  []Digest          `json:"initrds,omitempty" doc:"Initial RAM disks, in order"`
	File     Digest            `json:"file,omitempty" doc:"The file of an image of type disk, iso or efi"`
	Cmdline  map[string]string `json:"cmdline,omitempty" doc:"Kernel parameters; an empty value is a flag" keys:"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$" pattern:"^[A-Za-z0-9_.,:/=@%+~*\\[\\]-]*$" form:"letters, digits and _ . , : / = @ % + ~ * [ ] -, no spaces"`
}

// OneFile reports whether the image is a single file that is started as it is, without parameters.
func (t ImageType) OneFile() bool { return t == ImageDisk || t == ImageISO || t == ImageEFI }

// Signed reports whether machines with Secure Boot can boot the image: what their chain of shim and GRUB
// starts is a kernel or an EFI binary. Whether it is signed shows when it boots.
func (t ImageType) Signed() bool {
	switch t {
	case ImageKernel, ImageHypervisor, ImageCapture, ImageEFI:
		return true
	case ImageSAN, ImageDisk, ImageISO:
	}
	return false
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
	Home         string            `json:"home,omitempty" doc:"Machine it runs on when first declared, and goes home to" ref:"Machine"`
	RunsOn       RunsOn            `json:"runsOn" enum:"physical,virtual,any" doc:"Where it may run"`
	Arch         Arch              `json:"arch" enum:"x86_64,arm64" doc:"CPU architecture it needs"`
	Firmware     Firmware          `json:"firmware,omitempty" enum:"bios,uefi" doc:"Needed boot firmware; empty means any"`
	CPUs         int               `json:"cpus" minimum:"1" maximum:"4096" doc:"Logical CPUs it needs"`
	MemoryMiB    int64             `json:"memoryMiB" minimum:"1" doc:"Memory it needs, in MiB"`
	Hostname     string            `json:"hostname,omitempty" doc:"Host name it is told; its name when left out" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$" form:"a DNS name in lower case"`
	UUID         string            `json:"uuid,omitempty" doc:"Identity shown to the guest where hardware allows; derived from the name when empty" pattern:"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$" form:"8-4-4-4-12 hex digits"`
	InitiatorIQN IQN               `json:"initiatorIQN,omitempty" doc:"iSCSI initiator name that travels with the workload"`
	Networks     []Attachment      `json:"networks" minItems:"1" doc:"Networks it must reach; the first is the one it boots from"`
	Volumes      []VolumeUse       `json:"volumes,omitempty" doc:"Volumes it uses"`
	Image        string            `json:"image" doc:"What it boots" ref:"Image"`
	Virtio       bool              `json:"virtio,omitempty" doc:"Its system has drivers for virtio disks: as a virtual machine it gets these, and boots faster than from an emulated controller"`
	Priority     int               `json:"priority,omitempty" minimum:"0" maximum:"1000" default:"0" doc:"Higher comes back first"`
	Repurposable bool              `json:"repurposable,omitempty" doc:"May be evicted so that its machine can run something more important"`
	Requires     map[string]string `json:"requires,omitempty" doc:"Labels the target machine must have"`
	SpreadGroup  string            `json:"spreadGroup,omitempty" doc:"Workloads of one group never share a failure domain of the given scope" pattern:"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" form:"lower-case letters, digits and dashes"`
	SpreadScope  string            `json:"spreadScope,omitempty" enum:"machine,rack,powerfeed" default:"rack" doc:"Failure domain the spread group keeps apart"`
	DependsOn    []string          `json:"dependsOn,omitempty" doc:"Workloads that must be healthy before this one starts" ref:"Workload"`
	Health       Health            `json:"health,omitzero" doc:"How to see that it serves; left out, its phone-home is trusted"`
}

// Attachment is a workload's presence on a network: part of its identity.
type Attachment struct {
	Network string     `json:"network" doc:"Network it is a member of" ref:"Network"`
	Address netip.Addr `json:"address" doc:"Its address there" example:"10.1.0.17"`
	MAC     MAC        `json:"mac,omitempty" doc:"MAC when it runs as a virtual machine; derived from the name when empty"`
}

// VolumeUse is a volume of a workload.
type VolumeUse struct {
	Volume   string `json:"volume" doc:"The volume" ref:"Volume"`
	Boot     bool   `json:"boot,omitempty" doc:"It boots from this volume (image type san)"`
	ReadOnly bool   `json:"readOnly,omitempty" doc:"It never writes"`
}

// Health says how to see that the workload serves. The zero value trusts the phone-home.
type Health struct {
	HTTPPort int    `json:"httpPort,omitempty" minimum:"1" maximum:"65535" doc:"GET on its first address must answer 2xx"`
	Path     string `json:"path,omitempty" default:"/" doc:"Path of that GET" pattern:"^/[!-~]*$" form:"a path that starts with / and has no spaces"`
	TCPPort  int    `json:"tcpPort,omitempty" minimum:"1" maximum:"65535" doc:"A TCP connection must be accepted"`
}

// RunbookSpec is a named recovery procedure.
type RunbookSpec struct {
	Scope           []string `json:"scope" minItems:"1" doc:"Failure domains it is for: rack/, site/, powerfeed/, switch/ or machine/ and a name" example:"rack/rack-a"`
	Policy          string   `json:"policy,omitempty" doc:"Policy of the recovery; the built-in one when empty" ref:"Policy"`
	HypervisorImage string   `json:"hypervisorImage,omitempty" doc:"Image that makes a machine a Host; without it no host is booted for virtual machines" ref:"Image"`
	Triggers        Triggers `json:"triggers" doc:"Who may start it"`
	Approvals       int      `json:"approvals,omitempty" minimum:"0" maximum:"5" doc:"People who must approve before the first destructive act"`
	RTO             Duration `json:"rto,omitempty" doc:"Goal for the whole recovery" example:"15m"`
}

// Triggers says who may start a runbook.
type Triggers struct {
	Person   bool `json:"person" doc:"A person, by UI or CLI"`
	API      bool `json:"api,omitempty" doc:"A program, by the API"`
	Alert    bool `json:"alert,omitempty" doc:"An alert webhook"`
	Detector bool `json:"detector,omitempty" doc:"The failure detector itself, after a verdict of burned"`
}

// PolicySpec holds every waiting time and threshold of detection, fencing and recovery.
type PolicySpec struct {
	Evidence EvidencePolicy `json:"evidence,omitzero" doc:"When a failure domain counts as burned"`
	Fencing  FencingPolicy  `json:"fencing,omitzero" doc:"When a machine counts as fenced"`
	Recovery RecoveryPolicy `json:"recovery,omitzero" doc:"Bounds of a recovery"`
}

// EvidencePolicy decides when a failure domain counts as burned (rules F1 and F6).
type EvidencePolicy struct {
	PollEvery       Duration `json:"pollEvery,omitempty" default:"10s" doc:"How often devices are read"`
	SilentAfter     Duration `json:"silentAfter,omitempty" default:"30s" doc:"A BMC or switch counts as silent after this long without an answer"`
	HoldFor         Duration `json:"holdFor,omitempty" default:"30s" doc:"All evidence must hold this long before the verdict"`
	MaxAge          Duration `json:"maxAge,omitempty" default:"60s" doc:"Evidence older than this counts as unknown"`
	MinKinds        int      `json:"minKinds,omitempty" minimum:"2" maximum:"5" default:"2" doc:"Independent kinds needed for burned"`
	MassPercent     int      `json:"massPercent,omitempty" minimum:"1" maximum:"100" default:"34" doc:"More than this share of all machines silent at once means that we are cut off"`
	SuspectDeadline Duration `json:"suspectDeadline,omitempty" default:"5m" doc:"A run that is still not certain by then ends as suspect"`
}

// FencingPolicy decides when a machine counts as fenced (rules F2 and F3).
type FencingPolicy struct {
	OffReadings int      `json:"offReadings,omitempty" minimum:"1" maximum:"10" default:"3" doc:"Consecutive off readings that make off"`
	OffInterval Duration `json:"offInterval,omitempty" default:"5s" doc:"Time between them"`
	PowerLimit  Duration `json:"powerLimit,omitempty" default:"60s" doc:"How long a power-off may take before the other fences must do"`
	DeviceLimit Duration `json:"deviceLimit,omitempty" default:"60s" doc:"How long one switch, fabric or array may take"`
}

// RecoveryPolicy bounds a recovery.
type RecoveryPolicy struct {
	BootDeadline   Duration `json:"bootDeadline,omitempty" default:"15m" doc:"Power-on to phone-home"`
	HealthDeadline Duration `json:"healthDeadline,omitempty" default:"5m" doc:"Phone-home to healthy"`
	Rounds         int      `json:"rounds,omitempty" minimum:"1" maximum:"20" default:"4" doc:"How often what failed to boot is planned again on other machines"`
	BootsAtOnce    int      `json:"bootsAtOnce,omitempty" minimum:"1" maximum:"5000" default:"64" doc:"Machines and VMs powered on in parallel"`
	PowerOnGap     Duration `json:"powerOnGap,omitempty" default:"0s" doc:"Pause between power-ons of one rack, for inrush current"`
	ResendOn       Duration `json:"resendOn,omitempty" default:"30s" doc:"A power-on that is not seen is sent again after this"`
	HostReserveMiB int64    `json:"hostReserveMiB,omitempty" minimum:"0" default:"2048" doc:"Memory the hypervisor keeps for itself, in MiB"`
}
