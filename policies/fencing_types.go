package policies

// PortRef names a switch port.
type PortRef struct {
	Switch string `json:"switch"`
	Port   string `json:"port"`
}

// Isolation says which ports to close so that a machine has no network left.
type Isolation struct {
	Machine    string    `json:"machine"`
	Ports      []PortRef `json:"ports,omitempty"`
	Upstream   bool      `json:"upstream"`             // the machine's own switch is dead, so the far ends of its uplinks are closed
	Impossible string    `json:"impossible,omitempty"` // why no set of ports does it without hitting others
}

// Fence is one confirmed or missing fence of one machine. Confirmed means read back from the device.
type Fence struct {
	Kind      FenceKind `json:"kind"`
	Confirmed bool      `json:"confirmed"`
	Detail    string    `json:"detail,omitempty"` // what was read back, or why it could not be
}

// FenceKind is a kind of fence (rule F2).
type FenceKind string

const (
	FencePower   FenceKind = "power"   // off, read back as rule F3 asks
	FenceNetwork FenceKind = "network" // every data port closed on every edge switch
	FenceStorage FenceKind = "storage" // every volume unmasked and unzoned
)

// FenceNeeds is what the workload that ran on the machine makes compulsory.
type FenceNeeds struct {
	Machine  string `json:"machine"`
	Workload string `json:"workload,omitempty"`
	Network  bool   `json:"network"` // a network identity moves
	Storage  bool   `json:"storage"` // shared storage moves
}

// FenceVerdict says whether a machine's former workloads may start elsewhere.
type FenceVerdict struct {
	Machine string   `json:"machine"`
	Met     bool     `json:"met"`
	Reason  string   `json:"reason"`
	Missing []string `json:"missing,omitempty"`
}
