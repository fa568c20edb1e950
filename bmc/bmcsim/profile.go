package bmcsim

import "fmt"

// Profile is a vendor's way of doing Redfish and IPMI, as far as it differs where it matters.
type Profile struct {
	Name         string
	Vendor       string // ServiceRoot.Vendor; old firmware has none
	OEM          string // key under ServiceRoot.Oem
	Manufacturer string
	Model        string
	SystemID     string
	ChassisID    string

	Settings       string // the boot override lives in System/<Settings>; a PATCH of the system changes nothing
	RequireMode    bool   // an override without a mode is accepted and ignored
	RejectMode     bool   // a PATCH with a mode is 400
	RequireIfMatch bool   // a PATCH without If-Match is 428
	ActionInfo     bool   // reset types are told by ActionInfo only
	ConflictOnSame bool   // pressing for the present state is 409
	SKUSerial      bool   // the service tag is in SKU; SerialNumber is the board's
	NoRestore      bool   // no PowerRestorePolicy over Redfish
	Ports          bool   // addresses are in NetworkAdapter Ports, not in NetworkDeviceFunctions
	NoIPMIBoot     bool   // IPMI accepts boot flags and ignores them
	VendorAPI      bool   // ASRock Rack's own HTTPS API under /api is there too
	AMT            bool   // Intel AMT and nothing else: neither Redfish nor IPMI
	NoGraceful     bool   // AMT whose operating system runs no agent: it offers no graceful shutdown
	NoBootOrder    bool   // AMT that does not show its boot order
	MaxSessions    int    // of Redfish or AMT; 0 means 16
}

// Generic follows the DMTF's mockups.
func Generic() Profile {
	return Profile{Name: "generic", Manufacturer: "Contoso", Model: "3500RX", SystemID: "437XR1138R2", ChassisID: "1U"}
}

// Dell is an iDRAC 10: /Settings, service tag in SKU, IPMI boot flags without effect.
func Dell() Profile {
	return Profile{Name: "dell-idrac", Vendor: "Dell", OEM: "Dell", Manufacturer: "Dell Inc.", Model: "PowerEdge R770",
		SystemID: "System.Embedded.1", ChassisID: "System.Embedded.1", Settings: "Settings", ConflictOnSame: true, SKUSerial: true,
		NoIPMIBoot: true, MaxSessions: 8}
}

// HPE is an iLO 6: properties it holds read-only spoil the whole PATCH.
func HPE() Profile {
	return Profile{Name: "hpe-ilo", Vendor: "HPE", OEM: "Hpe", Manufacturer: "HPE", Model: "ProLiant DL380 Gen11", SystemID: "1", ChassisID: "1",
		RejectMode: true, ConflictOnSame: true, NoRestore: true, MaxSessions: 13}
}

// Supermicro wants the mode said.
func Supermicro() Profile {
	return Profile{Name: "supermicro", Vendor: "Supermicro", OEM: "Supermicro", Manufacturer: "Supermicro", Model: "SYS-121H-TNR", SystemID: "1", ChassisID: "1",
		RequireMode: true, ActionInfo: true}
}

// AMI is MegaRAC: the future state is in /SD and a PATCH needs If-Match.
func AMI() Profile {
	return Profile{Name: "ami", Vendor: "AMI", OEM: "Ami", Manufacturer: "ASRockRack", Model: "E3C246D4I-NL", SystemID: "Self", ChassisID: "Self", VendorAPI: true,
		Settings: "SD", RequireIfMatch: true, ActionInfo: true, Ports: true}
}

// Lenovo is an XCC.
func Lenovo() Profile {
	return Profile{Name: "lenovo", OEM: "Lenovo", Manufacturer: "Lenovo", Model: "ThinkSystem SR650 V3", SystemID: "1", ChassisID: "1",
		RequireIfMatch: true, ActionInfo: true}
}

// AMT is a workstation with Intel AMT 16.
func AMT() Profile {
	return Profile{Name: "intel-amt", Manufacturer: "LENOVO", Model: "30GA000XGE", AMT: true, NoRestore: true, MaxSessions: 4}
}

// Profiles returns those that speak Redfish.
func Profiles() []Profile {
	return []Profile{Generic(), Dell(), HPE(), Supermicro(), AMI(), Lenovo()}
}

// ProfileNamed finds a profile by its Name.
func ProfileNamed(name string) (Profile, error) {
	for _, p := range append(Profiles(), AMT()) {
		if p.Name == name {
			return p, nil
		}
	}
	return Profile{}, fmt.Errorf("no BMC profile %q", name)
}

func (p Profile) systemPath() string  { return "/redfish/v1/Systems/" + p.SystemID }
func (p Profile) chassisPath() string { return "/redfish/v1/Chassis/" + p.ChassisID }
