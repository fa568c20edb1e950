package topology

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Domain is a failure domain: what is lost together when it burns. All slices are sorted.
type Domain struct {
	Name     string // "rack/rack-a"
	Kind     string // "rack", "site", "powerfeed", "switch" or "machine"
	Object   string // "rack-a"
	Site     string // site it is in
	Racks    []string
	Machines []string
	Switches []string
	Arrays   []string
}

// Domain finds a failure domain by its name:
//
//	site/x       everything at the site
//	rack/x       machines, switches and arrays in the rack
//	powerfeed/x  everything in the racks that no other feed serves
//	switch/x     the switch and the machines that are cabled to no other switch
//	machine/x    the machine
//
// The error is an Errors with a hint when there is no such thing.
func (t *Topology) Domain(name string) (Domain, error) {
	kind, object, _ := strings.Cut(name, "/")
	d := Domain{Name: name, Kind: kind, Object: object}
	if problem, hint := t.domainProblem(name); problem != "" {
		return Domain{}, Errors{{Problem: problem, Hint: hint}}
	}
	switch kind {
	case "site":
		d.Site = object
		for name, r := range t.Racks {
			if r.Spec.Site == object {
				d.Racks = append(d.Racks, name)
			}
		}
	case "rack":
		d.Site, d.Racks = t.Racks[object].Spec.Site, []string{object}
	case "powerfeed":
		d.Site = t.PowerFeeds[object].Spec.Site
		for name, r := range t.Racks {
			if len(unique(slices.Clone(r.Spec.Feeds))) == 1 && r.Spec.Feeds[0] == object {
				d.Racks = append(d.Racks, name)
			}
		}
	case "switch":
		d.Site, d.Switches, d.Machines = t.SiteOfSwitch(object), []string{object}, t.machinesOnlyOn(object)
		return d, nil
	case "machine":
		d.Site, d.Machines = t.SiteOf(object), []string{object}
		return d, nil
	}
	slices.Sort(d.Racks)
	t.fillFromRacks(&d)
	return d, nil
}

// fillFromRacks adds what stands in the domain's racks, and for a site what stands in none.
func (t *Topology) fillFromRacks(d *Domain) {
	in := func(rack, site string) bool {
		return rack != "" && slices.Contains(d.Racks, rack) || rack == "" && d.Kind == "site" && site == d.Object
	}
	for _, r := range d.Racks {
		d.Machines = append(d.Machines, t.index().inRack[r]...)
	}
	for name, s := range t.Switches {
		if in(s.Spec.Rack, s.Spec.Site) {
			d.Switches = append(d.Switches, name)
		}
	}
	for name, a := range t.Arrays {
		if in(a.Spec.Rack, a.Spec.Site) {
			d.Arrays = append(d.Arrays, name)
		}
	}
	slices.Sort(d.Machines)
	slices.Sort(d.Switches)
	slices.Sort(d.Arrays)
}

// domainProblem says what is wrong with a domain's name.
func (t *Topology) domainProblem(name string) (problem, hint string) {
	kinds := map[string]Kind{"site": KindSite, "rack": KindRack, "powerfeed": KindPowerFeed, "switch": KindSwitch, "machine": KindMachine}
	kind, object, ok := strings.Cut(name, "/")
	k, known := kinds[kind]
	switch {
	case !ok:
		return fmt.Sprintf("%q is not a failure domain", clip(name)), "kind/name, e.g. rack/rack-a"
	case !known:
		return fmt.Sprintf("%q is no kind of failure domain", clip(kind)), didYouMean(kind, slices.Collect(maps.Keys(kinds)))
	}
	if _, _, ok := t.Object(k, object); !ok {
		return fmt.Sprintf("there is no %s %q", k, clip(object)), didYouMean(object, t.Names(k))
	}
	return "", ""
}

// Domains names every failure domain, sorted within each kind: sites, power feeds, racks, switches.
func (t *Topology) Domains() []string {
	var out []string
	add := func(prefix string, names []string) {
		for _, n := range names {
			out = append(out, prefix+n)
		}
	}
	add("site/", t.Names(KindSite))
	add("powerfeed/", t.Names(KindPowerFeed))
	add("rack/", t.Names(KindRack))
	add("switch/", t.Names(KindSwitch))
	return out
}

func (t *Topology) machinesOnlyOn(sw string) []string {
	var out []string
	for name, m := range t.Machines {
		if !slices.ContainsFunc(m.Spec.NICs, func(n NIC) bool { return n.Switch != sw }) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// SiteOf is the site of a machine, by its rack.
func (t *Topology) SiteOf(machine string) string {
	return t.Racks[t.Machines[machine].Spec.Rack].Spec.Site
}

// SiteOfSwitch is the site of a switch, by its rack if it stands in one.
func (t *Topology) SiteOfSwitch(sw string) string {
	s := t.Switches[sw].Spec
	if s.Rack != "" {
		return t.Racks[s.Rack].Spec.Site
	}
	return s.Site
}

// MachinesByPort maps the ports of a switch to the machines cabled to them.
func (t *Topology) MachinesByPort(sw string) map[string]string {
	out := map[string]string{}
	for p, m := range t.index().byPort {
		if p.Switch == sw {
			out[p.Port] = m
		}
	}
	return out
}

// MachineAtPort is the machine cabled to a port, or "".
func (t *Topology) MachineAtPort(p Port) string { return t.index().byPort[p] }

// SwitchPortsOf lists the ports a machine is cabled to, in the order of its NICs.
func (t *Topology) SwitchPortsOf(machine string) []Port {
	nics := t.Machines[machine].Spec.NICs
	out := make([]Port, len(nics))
	for i, n := range nics {
		out[i] = Port{n.Switch, n.Port}
	}
	return out
}

// WorkloadAtHome is the workload whose home the machine is.
func (t *Topology) WorkloadAtHome(machine string) (string, bool) {
	w, ok := t.index().homes[machine]
	return w, ok
}

// PoolsOf lists the pools whose selectors match the machine, sorted.
func (t *Topology) PoolsOf(machine string) []string {
	if f := t.index().machines[machine]; f != nil {
		return slices.Clone(f.pools)
	}
	return nil
}

// UseOf says what the machine may be used for: the strictest use of its pools; production when it is in
// none; none when there is no such machine.
func (t *Topology) UseOf(machine string) PoolUse {
	if f := t.index().machines[machine]; f != nil {
		return f.use
	}
	return UseNone
}
