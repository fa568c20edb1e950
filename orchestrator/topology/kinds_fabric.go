package topology

import "net/netip"

// SwitchSpec is one network switch.
type SwitchSpec struct {
	Rack        string   `json:"rack,omitempty" doc:"Rack it stands in; empty for a core switch outside any rack" ref:"Rack"`
	Site        string   `json:"site,omitempty" doc:"Site, when it stands in no rack" ref:"Site"`
	Driver      string   `json:"driver" enum:"ovs" doc:"How it is managed"`
	Address     string   `json:"address" doc:"Management endpoint" format:"ovsdb" example:"tcp:10.0.9.2:6640"`
	Bridge      string   `json:"bridge,omitempty" default:"br0" doc:"Bridge to manage (ovs)" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$" form:"an interface name of at most 15 characters"`
	Credentials string   `json:"credentials,omitempty" doc:"Name of a secret" pattern:"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$" form:"the name of a secret: letters, digits and . _ / -"`
	Uplinks     []Uplink `json:"uplinks,omitempty" doc:"Links towards the core; closing the far ends cuts the switch off"`
	Protected   []string `json:"protected,omitempty" doc:"Ports Rerack must never touch: its own way in" pattern:"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,63}$" form:"letters, digits and . _ / : -, at most 64"`
}

// Uplink is one cable from this switch to another.
type Uplink struct {
	Port     string `json:"port" doc:"Port at this end" pattern:"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,63}$" form:"letters, digits and . _ / : -, at most 64"`
	Switch   string `json:"switch" doc:"Switch at the far end" ref:"Switch"`
	PeerPort string `json:"peerPort" doc:"Port at the far end" pattern:"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,63}$" form:"letters, digits and . _ / : -, at most 64"`
}

// NetworkSpec is a VLAN with its subnet.
type NetworkSpec struct {
	Site    string       `json:"site" doc:"Site it spans" ref:"Site"`
	VLAN    int          `json:"vlan" minimum:"1" maximum:"4094" doc:"VLAN id"`
	Subnet  netip.Prefix `json:"subnet" doc:"Its addresses" example:"10.1.0.0/24"`
	Gateway netip.Addr   `json:"gateway,omitzero" doc:"Default route of its members"`
	DNS     []netip.Addr `json:"dns,omitempty" doc:"Name servers"`
	MTU     int          `json:"mtu,omitempty" minimum:"576" maximum:"9216" default:"1500" doc:"Largest packet, in bytes"`
}

// FabricSpec is one Fibre Channel fabric, managed through one of its switches.
type FabricSpec struct {
	Site        string `json:"site" doc:"Site it spans" ref:"Site"`
	Driver      string `json:"driver" enum:"brocade" doc:"How it is managed"`
	Address     string `json:"address" doc:"Management endpoint of its principal switch" format:"https" example:"https://10.0.9.3"`
	VirtualID   int    `json:"virtualFabric,omitempty" minimum:"1" maximum:"128" doc:"Virtual fabric id; none when left out"`
	Credentials string `json:"credentials" doc:"Name of a secret with username and password" pattern:"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$" form:"the name of a secret: letters, digits and . _ / -"`
	Fingerprint string `json:"fingerprint,omitempty" doc:"SHA-256 of the certificate" pattern:"^[0-9a-f]{64}$" form:"64 lower-case hex digits"`
}

// Protocol is how a volume is reached.
type Protocol string

const (
	ISCSI Protocol = "iscsi"
	FC    Protocol = "fc"
)

// ArraySpec is one storage system.
type ArraySpec struct {
	Site        string        `json:"site" doc:"Site it stands in" ref:"Site"`
	Rack        string        `json:"rack,omitempty" doc:"Rack it stands in: it burns with it" ref:"Rack"`
	Driver      string        `json:"driver" enum:"tgt,ontap" doc:"How it is managed; tgt serves iSCSI only"`
	Address     string        `json:"address" doc:"Management endpoint: a unix socket for tgt, an https URL for ontap" example:"unix:/run/tgt/socket.0"`
	Credentials string        `json:"credentials,omitempty" doc:"Name of a secret with username and password" pattern:"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$" form:"the name of a secret: letters, digits and . _ / -"`
	Fingerprint string        `json:"fingerprint,omitempty" doc:"SHA-256 of the certificate" pattern:"^[0-9a-f]{64}$" form:"64 lower-case hex digits"`
	Portals     []string      `json:"portals,omitempty" doc:"iSCSI portals, host:port" format:"hostport"`
	Targets     []ArrayTarget `json:"targets,omitempty" doc:"Fibre Channel target ports"`
}

// ArrayTarget is one FC port of an array.
type ArrayTarget struct {
	WWPN   WWPN   `json:"wwpn" doc:"Port name" example:"50:0a:09:81:00:00:00:01"`
	Fabric string `json:"fabric" doc:"Fabric it is cabled to" ref:"Fabric"`
}

// VolumeSpec is a LUN.
type VolumeSpec struct {
	Array    string   `json:"array" doc:"Array it lives on" ref:"Array"`
	Protocol Protocol `json:"protocol" enum:"iscsi,fc" doc:"How it is reached"`
	Target   IQN      `json:"target,omitempty" doc:"iSCSI target name; one target per volume"`
	ArrayRef string   `json:"arrayRef,omitempty" doc:"The array's own name of the LUN when it is not an iSCSI target" pattern:"^[A-Za-z0-9/][A-Za-z0-9._/:-]{0,254}$" form:"letters, digits and . _ / : -" example:"/vol/v1/lun7"`
	LUN      int      `json:"lun" minimum:"0" maximum:"16383" doc:"Logical unit number its holder sees"`
	SizeGiB  int      `json:"sizeGiB,omitempty" minimum:"1" doc:"Size in GiB"`
	CHAP     string   `json:"chap,omitempty" doc:"Name of a secret with the CHAP username and password of its target (iscsi); firmware and hosts log in with it" pattern:"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$" form:"the name of a secret: letters, digits and . _ / -"`
	Shared   bool     `json:"shared,omitempty" doc:"May be written by several holders at once (a cluster filesystem)"`
}
