package policies

import "rerack.dev/rerack/orchestrator/topology"

// Where a workload runs or shall run. Host marks that Machine is a Host and the workload a VM on it.
type Where struct {
	Machine string `json:"machine"`
	VM      bool   `json:"vm,omitempty"`
}

// PlacementInput is the state a placement is decided on. Maps may be nil.
type PlacementInput struct {
	Topology       *topology.Topology
	Pending        []string            // workloads that need a place
	Running        map[string]Where    // every workload that runs now and where, pending ones not among them
	Unusable       map[string]string   // machine -> why it is no target: burned, fenced, suspect, claimed by run x, BMC silent
	Hosts          map[string]HostRoom // machines that run our hypervisor now, or will in this plan (booted already)
	BootHosts      bool                // spare machines may be turned into Hosts
	HostReserveMiB int64               // memory a Host keeps for itself
}

// HostRoom is the free room of a running Host, after the VMs on it.
type HostRoom struct {
	FreeCPUs   int
	FreeMemory int64 // MiB
}

// Placement is the decision. All slices are in a stable order.
type Placement struct {
	Assignments []Assignment `json:"assignments"`
	NewHosts    []NewHost    `json:"newHosts,omitempty"`
	Evictions   []Eviction   `json:"evictions,omitempty"`
	LeftOut     []LeftOut    `json:"leftOut,omitempty"`
}

// Assignment is one workload's target and why.
type Assignment struct {
	Workload string `json:"workload"`
	Where
	Reason string `json:"reason"`
}

// NewHost is a machine that boots the hypervisor first.
type NewHost struct {
	Machine string `json:"machine"`
	Reason  string `json:"reason"`
}

// Eviction is a repurposable workload that gives up its machine.
type Eviction struct {
	Workload string `json:"workload"`
	Machine  string `json:"machine"`
	For      string `json:"for"` // the workload, or "host", that takes the machine
	Reason   string `json:"reason"`
}

// LeftOut is a workload that stays down and the constraint that binds it.
type LeftOut struct {
	Workload   string `json:"workload"`
	Constraint string `json:"constraint"` // one of the Constraint names, e.g. "memory", "arch", "machines"
	Reason     string `json:"reason"`
}
