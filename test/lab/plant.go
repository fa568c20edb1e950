package lab

import (
	"slices"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/world"
)

// homesOf lists the machines that are home to a workload with this volume: who reaches it before
// Rerack moves anything.
func (l *Lab) homesOf(volume string) []string {
	var out []string
	for _, name := range l.topo.Names(topology.KindWorkload) {
		w := l.topo.Workloads[name].Spec
		if w.Home == "" {
			continue
		}
		for _, use := range w.Volumes {
			if use.Volume == volume {
				out = append(out, w.Home)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// initiatorsOf is the mask that lets the homes of a volume in.
func (l *Lab) initiatorsOf(volume string) []string {
	var out []string
	for _, m := range l.homesOf(volume) {
		spec := l.topo.Machines[m].Spec
		if l.topo.Volumes[volume].Spec.Protocol == topology.ISCSI {
			out = append(out, spec.StorageAddress.String())
			continue
		}
		for _, h := range spec.HBAs {
			out = append(out, string(h.WWPN))
		}
	}
	return out
}

// zonesOf are the zones of a fabric that join the homes of each volume with its array's targets.
func (l *Lab) zonesOf(fabric string) []world.Zone {
	var out []world.Zone
	for _, name := range l.topo.Names(topology.KindVolume) {
		v := l.topo.Volumes[name].Spec
		homes := l.homesOf(name)
		if v.Protocol != topology.FC || len(homes) == 0 {
			continue
		}
		z := world.Zone{Name: "vol-" + name, Epoch: firstEpoch}
		for _, m := range homes {
			for _, h := range l.topo.Machines[m].Spec.HBAs {
				if h.Fabric == fabric {
					z.Members = append(z.Members, string(h.WWPN))
				}
			}
		}
		for _, t := range l.topo.Arrays[v.Array].Spec.Targets {
			if t.Fabric == fabric {
				z.Members = append(z.Members, string(t.WWPN))
			}
		}
		out = append(out, z)
	}
	return out
}
