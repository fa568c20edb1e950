package topology

// HypervisorDriver is a family of hypervisors that exist already.
type HypervisorDriver string

const (
	Libvirt HypervisorDriver = "libvirt"
	VSphere HypervisorDriver = "vsphere"
)

// Hypervisor says how to reach a hypervisor that a machine runs already, and that somebody else looks
// after: Rerack runs VMs of its own there, and neither turns the machine on or off nor boots it.
type Hypervisor struct {
	Driver      HypervisorDriver `json:"driver" enum:"libvirt,vsphere" doc:"What it is managed with"`
	Address     string           `json:"address" doc:"libvirt: unix:///path or tls://host[:port]; vsphere: the https URL of vCenter or of the host" pattern:"^(unix:///|tls://|https://)[^?#]+$" form:"unix:///path, tls://host[:port] or https://host[:port]" example:"tls://kvm1.example.org"`
	Credentials string           `json:"credentials,omitempty" doc:"Name of a secret with username and password (vsphere); libvirt knows Rerack by its certificate" pattern:"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$" form:"the name of a secret: letters, digits and . _ / -"`
	Fingerprint string           `json:"fingerprint,omitempty" doc:"SHA-256 of its certificate; otherwise the system's and the configured CAs are trusted" pattern:"^[0-9a-f]{64}$" form:"64 lower-case hex digits"`
	Host        string           `json:"host,omitempty" doc:"Inventory name of the host in vCenter; not needed when the address is the host's own" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$" form:"letters, digits and . _ -" example:"esx1.example.org"`
	Datastore   string           `json:"datastore,omitempty" doc:"Datastore for the VMs' own files (vsphere)" pattern:"^[A-Za-z0-9][A-Za-z0-9._ -]{0,79}$" form:"letters, digits and . _ - and spaces" example:"local-1"`
	Bridge      string           `json:"bridge,omitempty" doc:"Name of the bridge of a VLAN, %d being its number (libvirt)" pattern:"^[a-z0-9._-]{0,11}%d[a-z0-9._-]{0,11}$" form:"lower-case letters, digits and . _ -, with %d once" example:"br-vlan%d"`
	OVS         string           `json:"ovs,omitempty" doc:"Open vSwitch bridge on which VMs are tagged with their VLAN, in the place of bridge (libvirt)" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$" form:"at most 15 letters, digits and . _ -" example:"br-int"`
	FCDevice    string           `json:"fcDevice,omitempty" doc:"Device path of a Fibre Channel LUN, {wwpn} being the target port's 16 hex digits and {lun} its number (libvirt)" pattern:"^/[A-Za-z0-9._:/-]*\\{wwpn\\}[A-Za-z0-9._:/-]*\\{lun\\}$" form:"an absolute path with {wwpn} once, ending in {lun}" example:"/dev/disk/by-path/pci-0000:3b:00.0-fc-0x{wwpn}-lun-{lun}"`
	CPUShare    int              `json:"cpuShare,omitempty" minimum:"1" maximum:"16" default:"1" doc:"Virtual CPUs to one of its CPUs"`
	ReserveMiB  int64            `json:"reserveMiB,omitempty" minimum:"0" doc:"Memory in MiB that VMs do not get"`
	Networks    []string         `json:"networks,omitempty" doc:"Networks that its ports carry tagged for what else runs on it" ref:"Network"`
}

// Existing reports whether the machine runs a hypervisor that is not Rerack's own.
func (m MachineSpec) Existing() bool { return m.Hypervisor.Driver != "" }
