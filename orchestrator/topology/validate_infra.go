package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// standing checks that things stand where their parts are: one site for a rack's feeds, a machine's
// switches and fabrics, an array's rack.
func (v *validator) standing() {
	for _, name := range v.order[KindRack] {
		r := v.t.Racks[name].Spec
		for i, f := range r.Feeds {
			v.sameSite(KindRack, name, fmt.Sprintf("spec.feeds[%d]", i), r.Site, "PowerFeed "+f, v.t.PowerFeeds[f].Spec.Site)
		}
	}
	for _, name := range v.order[KindSwitch] {
		s := v.t.Switches[name].Spec
		switch {
		case s.Rack == "" && s.Site == "":
			v.fail(KindSwitch, name, "spec", "stands nowhere", "give it a rack, or a site when it stands in no rack")
		case s.Rack != "" && s.Site != "":
			v.fail(KindSwitch, name, "spec.site", "is given twice, by the rack and by itself", "remove site")
		}
		for i, u := range s.Uplinks {
			at := fmt.Sprintf("spec.uplinks[%d].switch", i)
			if u.Switch == name {
				v.fail(KindSwitch, name, at, "the uplink leads to the switch itself", "name the switch at the far end")
			}
			v.sameSite(KindSwitch, name, at, v.t.SiteOfSwitch(name), "Switch "+u.Switch, v.t.SiteOfSwitch(u.Switch))
		}
	}
	for _, name := range v.order[KindHardwareType] {
		if hw := v.t.HardwareTypes[name].Spec; hw.SecureBoot && slices.Contains(hw.Firmware, BIOS) {
			v.fail(KindHardwareType, name, "spec.secureBoot", "BIOS has no Secure Boot, and a machine that may boot by BIOS starts anything", "firmware: [uefi]")
		}
	}
	for _, name := range v.order[KindMachine] {
		v.machine(name)
		v.hypervisor(name, v.t.SiteOf(name))
	}
	v.homes()
	for _, name := range v.order[KindArray] {
		a := v.t.Arrays[name].Spec
		if a.Rack != "" {
			v.sameSite(KindArray, name, "spec.rack", a.Site, "Rack "+a.Rack, v.t.Racks[a.Rack].Spec.Site)
		}
		for i, target := range a.Targets {
			v.sameSite(KindArray, name, fmt.Sprintf("spec.targets[%d].fabric", i), a.Site, "Fabric "+target.Fabric, v.t.Fabrics[target.Fabric].Spec.Site)
		}
	}
}

func (v *validator) machine(name string) {
	m := v.t.Machines[name].Spec
	site := v.t.SiteOf(name)
	rack := v.t.Racks[m.Rack].Spec
	units := rack.Units
	if units == 0 {
		units = 42
	}
	if m.Unit > units && rack.Site != "" {
		v.fail(KindMachine, name, "spec.unit", fmt.Sprintf("%d is above the top of rack %s", m.Unit, m.Rack), fmt.Sprintf("1 to %d", units))
	}
	for i, n := range m.NICs {
		at := fmt.Sprintf("spec.nics[%d]", i)
		v.sameSite(KindMachine, name, at+".switch", site, "Switch "+n.Switch, v.t.SiteOfSwitch(n.Switch))
		if slices.Contains(v.t.Switches[n.Switch].Spec.Protected, n.Port) {
			v.fail(KindMachine, name, at+".port", fmt.Sprintf("port %s of switch %s is protected", n.Port, n.Switch),
				"Rerack never touches a protected port, so it could not connect the machine")
		}
	}
	for i, h := range m.HBAs {
		v.sameSite(KindMachine, name, fmt.Sprintf("spec.hbas[%d].fabric", i), site, "Fabric "+h.Fabric, v.t.Fabrics[h.Fabric].Spec.Site)
	}
	if p := m.Provisioning; p.Network != "" {
		v.sameSite(KindMachine, name, "spec.provisioning.network", site, "Network "+p.Network, v.t.Networks[p.Network].Spec.Site)
		v.member(KindMachine, name, "spec.provisioning.address", p)
	}
}

// sameSite reports a part that is at another site. An unknown site is reported as a dangling reference.
func (v *validator) sameSite(kind Kind, name, path, site, part, partSite string) {
	if site != "" && partSite != "" && site != partSite {
		v.fail(kind, name, path, fmt.Sprintf("%s is at site %s, the %s at %s", part, partSite, kind, site), "both must be at one site")
	}
}

// networks checks subnets and what lies in them.
func (v *validator) networks() {
	type seen struct {
		name, site string
		subnet     netip.Prefix
	}
	var before []seen
	for _, name := range v.order[KindNetwork] {
		n := v.t.Networks[name].Spec
		for _, s := range before {
			if s.site == n.Site && s.subnet.Overlaps(n.Subnet) {
				v.fail(KindNetwork, name, "spec.subnet", fmt.Sprintf("%s overlaps %s of network %s at the same site", n.Subnet, s.subnet, s.name),
					"see "+v.where(KindNetwork, s.name, "spec.subnet"))
			}
		}
		before = append(before, seen{name, n.Site, n.Subnet})
		if n.Gateway.IsValid() {
			v.inside(KindNetwork, name, "spec.gateway", n.Gateway, name, n)
		}
	}
}

// inside checks that an address is one a member of the network can have.
func (v *validator) inside(kind Kind, name, path string, a netip.Addr, network string, n NetworkSpec) bool {
	switch {
	case !n.Subnet.IsValid():
		return false
	case !n.Subnet.Contains(a):
		v.fail(kind, name, path, fmt.Sprintf("%s is not in %s of network %s", a, n.Subnet, network), "e.g. "+free(n).String())
	case n.Subnet.Bits() < a.BitLen()-1 && a == n.Subnet.Addr():
		v.fail(kind, name, path, fmt.Sprintf("%s is the address of network %s itself", a, network), "e.g. "+free(n).String())
	case n.Subnet.Bits() < a.BitLen()-1 && a.Is4() && a == last(n.Subnet):
		v.fail(kind, name, path, fmt.Sprintf("%s is the broadcast address of network %s", a, network), "e.g. "+free(n).String())
	default:
		return true
	}
	return false
}

// member checks the address of an attachment.
func (v *validator) member(kind Kind, name, path string, a Attachment) {
	n, ok := v.t.Networks[a.Network]
	if !ok || !a.Address.IsValid() || !v.inside(kind, name, path, a.Address, a.Network, n.Spec) {
		return
	}
	if a.Address == n.Spec.Gateway {
		v.fail(kind, name, path, fmt.Sprintf("%s is the gateway of network %s", a.Address, a.Network), "e.g. "+free(n.Spec).String())
	}
}

// free is an address that a member of the network could have, for hints.
func free(n NetworkSpec) netip.Addr {
	a := n.Subnet.Addr()
	if n.Subnet.Bits() < a.BitLen()-1 {
		a = a.Next()
	}
	if a == n.Gateway {
		a = a.Next()
	}
	return a
}

// last is the highest address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// storage checks that arrays can serve what their volumes ask.
func (v *validator) storage() {
	for _, name := range v.order[KindArray] {
		a := v.t.Arrays[name].Spec
		switch a.Driver {
		case "tgt":
			if !strings.HasPrefix(a.Address, "unix:/") {
				v.fail(KindArray, name, "spec.address", fmt.Sprintf("%q is not a unix socket", clip(a.Address)), "tgt is managed through one, e.g. unix:/run/tgt/socket.0")
			}
			if len(a.Targets) > 0 {
				v.fail(KindArray, name, "spec.targets", "driver tgt has no Fibre Channel ports", "remove targets")
			}
		case "ontap":
			if problem, hint := urlProblem(a.Address, "https"); problem != "" {
				v.fail(KindArray, name, "spec.address", problem, hint)
			}
			if a.Credentials == "" {
				v.fail(KindArray, name, "spec", "driver ontap needs credentials", "credentials: name of a secret")
			}
		}
	}
	for _, name := range v.order[KindVolume] {
		v.volume(name)
	}
}

func (v *validator) volume(name string) {
	s := v.t.Volumes[name].Spec
	a, ok := v.t.Arrays[s.Array]
	if !ok {
		return // dangling, reported already
	}
	fail := func(path, problem, hint string) { v.fail(KindVolume, name, path, problem, hint) }
	switch {
	case s.Protocol == ISCSI && a.Spec.Driver == "ontap":
		fail("spec.protocol", "array "+s.Array+" with driver ontap serves fc, not iscsi", "iscsi needs an array that masks by address: driver tgt")
	case s.Protocol == FC && a.Spec.Driver == "tgt":
		fail("spec.protocol", "array "+s.Array+" with driver tgt serves iscsi, not fc", "fc needs an array of driver ontap")
	case s.Protocol == ISCSI && len(a.Spec.Portals) == 0:
		fail("spec.protocol", "array "+s.Array+" has no iSCSI portal", "add portals to the array")
	case s.Protocol == FC && len(a.Spec.Targets) == 0:
		fail("spec.protocol", "array "+s.Array+" has no Fibre Channel target port", "add targets to the array")
	}
	switch {
	case s.Protocol == ISCSI && s.Target == "":
		fail("spec", "an iSCSI volume needs target", "e.g. target: iqn.2026-01.org.example:"+name)
	case s.Protocol == FC && s.Target != "":
		fail("spec.target", "is for iSCSI volumes", "name the LUN with arrayRef")
	case s.Protocol == FC && s.ArrayRef == "":
		fail("spec", "a Fibre Channel volume needs arrayRef", "e.g. arrayRef: /vol/v1/"+name)
	}
	if s.Protocol == FC && s.CHAP != "" {
		fail("spec.chap", "is for iSCSI volumes", "leave it out")
	}
	if a.Spec.Driver == "tgt" && s.LUN == 0 {
		fail("spec.lun", "LUN 0 of a tgt target is its controller", "1 or more")
	}
}
