package topology

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// claim is one use of something that only one may have.
type claim struct {
	what   string // "MAC address 52:54:00:00:00:01"
	within string // what it must be single in: a machine, a workload; "" for the whole topology
	kind   Kind
	name   string
	path   string
	remedy string // what else would be right
}

// doubles reports everything that is used twice and must not be.
func (v *validator) doubles() {
	var claims []claim
	take := func(c claim) {
		if !strings.HasSuffix(c.what, " ") { // optional and left out
			claims = append(claims, c)
		}
	}
	v.machineClaims(take)
	v.workloadClaims(take)
	v.fabricClaims(take)
	v.storageClaims(take)
	v.twice(claims)
}

func (v *validator) machineClaims(take func(claim)) {
	for _, name := range v.order[KindMachine] {
		m := v.t.Machines[name].Spec
		site := v.t.SiteOf(name)
		take(claim{kind: KindMachine, name: name, path: "spec.serial", what: "serial number " + m.Serial})
		take(claim{kind: KindMachine, name: name, path: "spec.uuid", what: "machine UUID " + strings.ToLower(m.UUID)})
		take(claim{kind: KindMachine, name: name, path: "spec.bmc.address", what: "BMC address " + endpoint(m.BMC.Address, "443")})
		take(claim{kind: KindMachine, name: name, path: "spec.bmc.ipmiAddress", what: "IPMI address " + strings.ToLower(m.BMC.IPMIAddress)})
		if m.Existing() {
			take(claim{kind: KindMachine, name: name, path: "spec.hypervisor.address", what: strings.TrimSpace("hypervisor " + strings.ToLower(m.Hypervisor.Address+" "+m.Hypervisor.Host))})
		}
		if m.Unit != 0 {
			take(claim{kind: KindMachine, name: name, path: "spec.unit", what: "rack unit " + m.Rack + "/" + strconv.Itoa(m.Unit)})
		}
		if m.StorageAddress.IsValid() {
			take(claim{kind: KindMachine, name: name, path: "spec.storageAddress", what: "address " + m.StorageAddress.String() + " at site " + site})
		}
		if m.Provisioning.Address.IsValid() {
			take(claim{kind: KindMachine, name: name, path: "spec.provisioning.address", what: "address " + v.onNetwork(m.Provisioning)})
		}
		for i, n := range m.NICs {
			at := fmt.Sprintf("spec.nics[%d]", i)
			take(claim{kind: KindMachine, name: name, path: at + ".name", what: "port name " + n.Name, within: name})
			take(claim{kind: KindMachine, name: name, path: at + ".mac", what: "MAC address " + string(n.MAC)})
			take(claim{kind: KindMachine, name: name, path: at + ".port", what: "switch port " + n.Switch + "/" + n.Port})
		}
		for i, h := range m.HBAs {
			at := fmt.Sprintf("spec.hbas[%d]", i)
			take(claim{kind: KindMachine, name: name, path: at + ".name", what: "port name " + h.Name, within: name})
			take(claim{kind: KindMachine, name: name, path: at + ".wwpn", what: "WWPN " + string(h.WWPN)})
		}
	}
}

func (v *validator) workloadClaims(take func(claim)) {
	for _, name := range v.order[KindWorkload] {
		w := v.t.Workloads[name].Spec
		take(claim{kind: KindWorkload, name: name, path: "spec.home", what: "home " + w.Home})
		take(claim{kind: KindWorkload, name: name, path: "spec.uuid", what: "workload UUID " + strings.ToLower(w.UUID)})
		take(claim{kind: KindWorkload, name: name, path: "spec.initiatorIQN", what: "iSCSI name " + string(w.InitiatorIQN)})
		for i, a := range w.Networks {
			at := fmt.Sprintf("spec.networks[%d]", i)
			take(claim{kind: KindWorkload, name: name, path: at + ".network", what: "network " + a.Network, within: name})
			take(claim{kind: KindWorkload, name: name, path: at + ".address", what: "address " + v.onNetwork(a)})
			take(claim{kind: KindWorkload, name: name, path: at + ".mac", what: "MAC address " + string(a.MAC)})
		}
		for i, u := range w.Volumes {
			at := fmt.Sprintf("spec.volumes[%d].volume", i)
			again := slices.ContainsFunc(w.Volumes[:i], func(o VolumeUse) bool { return o.Volume == u.Volume })
			vol, ok := v.t.Volumes[u.Volume]
			take(claim{kind: KindWorkload, name: name, path: at, what: "volume " + u.Volume, within: name})
			if again || !ok {
				continue
			}
			if vol.Spec.Protocol == FC {
				take(claim{kind: KindWorkload, name: name, path: at, what: fmt.Sprintf("LUN %d of array %s", vol.Spec.LUN, vol.Spec.Array), within: name})
			}
			if !vol.Spec.Shared {
				take(claim{kind: KindWorkload, name: name, path: at, what: "volume " + u.Volume,
					remedy: "set shared: true on the volume only if its filesystem allows several writers"})
			}
		}
		for i, d := range w.DependsOn {
			take(claim{kind: KindWorkload, name: name, path: fmt.Sprintf("spec.dependsOn[%d]", i), what: "workload " + d, within: name})
		}
	}
}

const oneEnd = "declare a cable between switches at one end only"

func (v *validator) fabricClaims(take func(claim)) {
	for _, name := range v.order[KindSwitch] {
		s := v.t.Switches[name].Spec
		take(claim{kind: KindSwitch, name: name, path: "spec.address", what: "bridge " + cmp.Or(s.Bridge, "br0") + " at " + s.Address})
		for i, u := range s.Uplinks {
			at := fmt.Sprintf("spec.uplinks[%d]", i)
			take(claim{kind: KindSwitch, name: name, path: at + ".port", what: "switch port " + name + "/" + u.Port, remedy: oneEnd})
			take(claim{kind: KindSwitch, name: name, path: at + ".peerPort", what: "switch port " + u.Switch + "/" + u.PeerPort, remedy: oneEnd})
		}
	}
	for _, name := range v.order[KindNetwork] {
		n := v.t.Networks[name].Spec
		take(claim{kind: KindNetwork, name: name, path: "spec.vlan", what: "VLAN " + fmt.Sprintf("%d at site %s", n.VLAN, n.Site)})
		if n.Gateway.IsValid() {
			take(claim{kind: KindNetwork, name: name, path: "spec.gateway", what: "address " + n.Gateway.String() + " at site " + n.Site})
		}
	}
}

func (v *validator) storageClaims(take func(claim)) {
	for _, name := range v.order[KindFabric] {
		f := v.t.Fabrics[name].Spec
		take(claim{kind: KindFabric, name: name, path: "spec.address", what: "virtual fabric " + fmt.Sprintf("%d at %s", f.VirtualID, endpoint(f.Address, "443"))})
	}
	for _, name := range v.order[KindArray] {
		a := v.t.Arrays[name].Spec
		take(claim{kind: KindArray, name: name, path: "spec.address", what: "array address " + strings.ToLower(a.Address)})
		for i, p := range a.Portals {
			take(claim{kind: KindArray, name: name, path: fmt.Sprintf("spec.portals[%d]", i), what: "portal " + strings.ToLower(p)})
		}
		for i, target := range a.Targets {
			take(claim{kind: KindArray, name: name, path: fmt.Sprintf("spec.targets[%d].wwpn", i), what: "WWPN " + string(target.WWPN)})
		}
	}
	for _, name := range v.order[KindVolume] {
		s := v.t.Volumes[name].Spec
		take(claim{kind: KindVolume, name: name, path: "spec.target", what: "iSCSI name " + string(s.Target)})
		if s.ArrayRef != "" {
			take(claim{kind: KindVolume, name: name, path: "spec.arrayRef", what: "LUN " + s.ArrayRef + " of array " + s.Array})
		}
	}
}

// onNetwork makes an address unique within its site: two sites may use the same private addresses.
func (v *validator) onNetwork(a Attachment) string {
	return a.Address.String() + " at site " + v.t.Networks[a.Network].Spec.Site
}

// endpoint makes two ways to write a management address one.
func endpoint(s, port string) string {
	if u, err := url.Parse(s); err == nil && u.Host != "" {
		s = u.Host
	}
	if !hostPort(s) {
		s += ":" + port
	}
	return strings.ToLower(s)
}

// twice reports each claim but the first of the same thing, with the place of the first.
func (v *validator) twice(claims []claim) {
	type thing struct{ what, within string }
	first := make(map[thing]claim, len(claims))
	for _, c := range claims {
		k := thing{c.what, c.within}
		f, taken := first[k]
		if !taken {
			first[k] = c
			continue
		}
		if v.before(c, f) {
			f, c, first[k] = c, f, c
		}
		hint := "also " + v.where(f.kind, f.name, f.path)
		if f.remedy != "" && c.remedy != "" {
			hint += "; " + c.remedy
		}
		v.fail(c.kind, c.name, c.path, c.what+" is used twice", hint)
	}
}

// before orders two claims by the place they were written.
func (v *validator) before(a, b claim) bool {
	pa, pb := v.places[objectKey{a.kind, a.name}], v.places[objectKey{b.kind, b.name}]
	if pa.root == nil || pb.root == nil {
		return false
	}
	la, lb := pa.root.find(a.path), pb.root.find(b.path)
	return cmp.Or(cmp.Compare(pa.file, pb.file), cmp.Compare(la.line, lb.line), cmp.Compare(la.col, lb.col)) < 0
}
