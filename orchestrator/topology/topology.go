package topology

// Topology is a whole declared data centre. The maps are keyed by name. It is never changed after it
// was built: a new revision is a new value, so that readers need no lock.
type Topology struct {
	Sites         map[string]Site
	Racks         map[string]Rack
	PowerFeeds    map[string]PowerFeed
	HardwareTypes map[string]HardwareType
	Machines      map[string]Machine
	MachinePools  map[string]MachinePool
	Switches      map[string]Switch
	Networks      map[string]Network
	Fabrics       map[string]Fabric
	Arrays        map[string]Array
	Volumes       map[string]Volume
	Images        map[string]Image
	Workloads     map[string]Workload
	Runbooks      map[string]Runbook
	Policies      map[string]Policy
}

// New returns an empty topology with all maps made.
func New() *Topology {
	return &Topology{
		Sites: map[string]Site{}, Racks: map[string]Rack{}, PowerFeeds: map[string]PowerFeed{},
		HardwareTypes: map[string]HardwareType{}, Machines: map[string]Machine{},
		MachinePools: map[string]MachinePool{}, Switches: map[string]Switch{},
		Networks: map[string]Network{}, Fabrics: map[string]Fabric{}, Arrays: map[string]Array{},
		Volumes: map[string]Volume{}, Images: map[string]Image{}, Workloads: map[string]Workload{},
		Runbooks: map[string]Runbook{}, Policies: map[string]Policy{},
	}
}
