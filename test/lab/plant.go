package lab

import (
	"slices"

	"rerack.dev/rerack/orchestrator/topology"
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
