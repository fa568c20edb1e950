package workflows

import (
	"slices"
	"sort"

	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	san "rerack.dev/rerack/sanzoning/driver"
)

// wiring is what every device is told, keyed by device name. It is a pure function of the topology and
// of who shall hold what.
type wiring struct {
	topology *topology.Topology
	Switches map[string][]fabric.Setting
	Fabrics  map[string][]san.Zone
	Arrays   map[string][]san.Mask
}

func newWiring(t *topology.Topology) wiring {
	return wiring{t, map[string][]fabric.Setting{}, map[string][]san.Zone{}, map[string][]san.Mask{}}
}

// volumePath is one way in to a volume's data.
type VolumePath struct {
	Volume  string   `json:"volume"`
	Array   string   `json:"array"`
	Fabrics []string `json:"fabrics,omitempty"` // empty for iSCSI
}

func volumePath(t *topology.Topology, name string) VolumePath {
	v := t.Volumes[name]
	p := VolumePath{Volume: name, Array: v.Spec.Array}
	if v.Spec.Protocol == topology.FC {
		seen := map[string]bool{}
		for _, target := range t.Arrays[v.Spec.Array].Spec.Targets {
			if !seen[target.Fabric] {
				seen[target.Fabric] = true
				p.Fabrics = append(p.Fabrics, target.Fabric)
			}
		}
		sort.Strings(p.Fabrics)
	}
	return p
}

// grant sets the exact machines that may reach a volume: none of them fences it.
func (w wiring) grant(t *topology.Topology, volume string, machines []string, epoch uint64) {
	v := t.Volumes[volume]
	path := volumePath(t, volume)
	mask := san.Mask{Volume: arrayName(v), Initiators: []string{}, Epoch: epoch}
	for _, m := range machines {
		spec := t.Machines[m].Spec
		if v.Spec.Protocol == topology.ISCSI {
			mask.Initiators = append(mask.Initiators, spec.StorageAddress.String())
			continue
		}
		for _, h := range spec.HBAs {
			mask.Initiators = append(mask.Initiators, string(h.WWPN))
		}
	}
	sort.Strings(mask.Initiators)
	w.Arrays[path.Array] = append(w.Arrays[path.Array], mask)
	for _, f := range path.Fabrics {
		zone := san.Zone{Name: "vol-" + volume, Initiators: []string{}, Epoch: epoch}
		for _, m := range machines {
			for _, h := range t.Machines[m].Spec.HBAs {
				if h.Fabric == f {
					zone.Initiators = append(zone.Initiators, string(h.WWPN))
				}
			}
		}
		for _, target := range t.Arrays[path.Array].Spec.Targets {
			if target.Fabric == f {
				zone.Targets = append(zone.Targets, string(target.WWPN))
			}
		}
		sort.Strings(zone.Initiators)
		sort.Strings(zone.Targets)
		w.Fabrics[f] = append(w.Fabrics[f], zone)
	}
}

// arrayName is what the array itself calls the volume.
func arrayName(v topology.Volume) string {
	if v.Spec.Target != "" {
		return string(v.Spec.Target)
	}
	return v.Spec.ArrayRef
}

// connect sets all NICs of a machine to carry one network untagged and others tagged. A hypervisor that is
// not ours keeps its own.
func (w wiring) connect(t *topology.Topology, machine, untagged string, tagged []string, epoch uint64) {
	s := fabric.Setting{Untagged: t.Networks[untagged].Spec.VLAN, Epoch: epoch}
	seen := map[int]bool{s.Untagged: true}
	for _, n := range slices.Concat(tagged, t.Machines[machine].Spec.Hypervisor.Networks) {
		if vlan := t.Networks[n].Spec.VLAN; !seen[vlan] {
			seen[vlan] = true
			s.Tagged = append(s.Tagged, vlan)
		}
	}
	sort.Ints(s.Tagged)
	for _, nic := range t.Machines[machine].Spec.NICs {
		s.Port = nic.Port
		w.Switches[nic.Switch] = append(w.Switches[nic.Switch], s)
	}
}

// close shuts all NICs' ports of a machine.
func (w wiring) close(t *topology.Topology, machine string, epoch uint64) {
	for _, nic := range t.Machines[machine].Spec.NICs {
		w.Switches[nic.Switch] = append(w.Switches[nic.Switch], fabric.Setting{Port: nic.Port, Shut: true, Epoch: epoch})
	}
}

// wire works out what the devices are told for a placement. holders says who else holds a workload
// now, for volumes that are shared; skip names machines that dropped out.
func wire(t *topology.Topology, p policies.Placement, epoch uint64, holders map[string]policies.Where, lost losses) wiring {
	w := newWiring(t)
	on := map[string][]string{} // volume -> machines that shall reach it
	hostNets := map[string][]string{}
	for _, a := range p.Assignments {
		if lost.Machines[a.Machine] != "" || lost.Workloads[a.Workload] != "" {
			continue
		}
		spec := t.Workloads[a.Workload].Spec
		var nets []string
		for _, n := range spec.Networks {
			nets = append(nets, n.Network)
		}
		if a.VM {
			hostNets[a.Machine] = append(hostNets[a.Machine], nets...)
		} else {
			w.connect(t, a.Machine, nets[0], nets[1:], epoch)
		}
		for _, v := range spec.Volumes {
			on[v.Volume] = append(on[v.Volume], a.Machine)
		}
	}
	// A Host keeps the networks of the VMs that it already runs.
	for name, at := range holders {
		if at.VM && hostNets[at.Machine] != nil {
			for _, n := range t.Workloads[name].Spec.Networks {
				hostNets[at.Machine] = append(hostNets[at.Machine], n.Network)
			}
		}
	}
	for _, h := range p.NewHosts {
		if lost.Machines[h.Machine] == "" && hostNets[h.Machine] == nil {
			hostNets[h.Machine] = []string{}
		}
	}
	for m, nets := range hostNets {
		w.connect(t, m, t.Machines[m].Spec.Provisioning.Network, nets, epoch)
	}
	for _, e := range p.Evictions {
		if lost.Machines[e.Machine] != "" || lost.Workloads[e.Workload] != "" {
			continue
		}
		for _, v := range t.Workloads[e.Workload].Spec.Volumes {
			if _, taken := on[v.Volume]; !taken {
				on[v.Volume] = nil
			}
		}
	}
	for v, machines := range on {
		if t.Volumes[v].Spec.Shared {
			machines = append(machines, otherHolders(t, v, holders)...)
		}
		w.grant(t, v, unique(machines), epoch)
	}
	w.sort()
	return w
}

// unwire takes the volumes of the workloads away from everybody but those that share them rightfully.
func unwire(t *topology.Topology, workloads []string, epoch uint64, holders map[string]policies.Where) wiring {
	w := newWiring(t)
	done := map[string]bool{}
	for _, name := range workloads {
		for _, v := range t.Workloads[name].Spec.Volumes {
			if done[v.Volume] {
				continue
			}
			done[v.Volume] = true
			var keep []string
			if t.Volumes[v.Volume].Spec.Shared {
				keep = otherHolders(t, v.Volume, holders)
			}
			w.grant(t, v.Volume, unique(keep), epoch)
		}
	}
	w.sort()
	return w
}

// otherHolders lists the machines of all workloads that hold a shared volume now.
func otherHolders(t *topology.Topology, volume string, holders map[string]policies.Where) []string {
	var out []string
	for name, at := range holders {
		for _, v := range t.Workloads[name].Spec.Volumes {
			if v.Volume == volume {
				out = append(out, at.Machine)
			}
		}
	}
	return out
}

func (w wiring) sort() {
	for _, s := range w.Switches {
		sort.Slice(s, func(i, j int) bool { return s[i].Port < s[j].Port })
	}
	for _, z := range w.Fabrics {
		sort.Slice(z, func(i, j int) bool { return z[i].Name < z[j].Name })
	}
	for _, m := range w.Arrays {
		sort.Slice(m, func(i, j int) bool { return m[i].Volume < m[j].Volume })
	}
}

func unique(in []string) []string {
	sort.Strings(in)
	out := in[:0:0]
	for i, s := range in {
		if i == 0 || s != in[i-1] {
			out = append(out, s)
		}
	}
	return out
}
