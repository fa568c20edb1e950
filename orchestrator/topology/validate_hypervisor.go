package topology

import (
	"fmt"
	"strings"
)

// hypervisor checks a hypervisor that exists already: it is said what its driver needs, and nothing else.
func (v *validator) hypervisor(name, site string) {
	m := v.t.Machines[name].Spec
	if !m.Existing() {
		return
	}
	h := m.Hypervisor
	fail := func(field, problem, hint string) {
		v.fail(KindMachine, name, "spec.hypervisor"+field, problem, hint)
	}
	foreign := func(field, value string) {
		if value != "" {
			fail("."+field, "is not for driver "+string(h.Driver), "leave it out")
		}
	}
	switch h.Driver {
	case Libvirt:
		v.libvirtAddress(name, h)
		if (h.Bridge == "") == (h.OVS == "") {
			fail("", "driver libvirt needs one of bridge and ovs", "bridge: br-vlan%d")
		}
		foreign("credentials", h.Credentials)
		foreign("host", h.Host)
		foreign("datastore", h.Datastore)
	case VSphere:
		if problem, hint := urlProblem(h.Address, "https"); problem != "" {
			fail(".address", problem, hint)
		}
		if h.Credentials == "" {
			fail("", "driver vsphere needs credentials", "credentials: name of a secret")
		}
		if h.Datastore == "" {
			fail("", "driver vsphere needs datastore", "datastore: where the VMs' own files go")
		}
		foreign("bridge", h.Bridge)
		foreign("ovs", h.OVS)
		foreign("fcDevice", h.FCDevice)
	}
	if m.Provisioning.Network == "" {
		fail("", "its ports have no untagged network", "name it in provisioning")
	}
	if hw, ok := v.t.HardwareTypes[m.HardwareType]; ok && !hw.Spec.Hypervisor {
		fail("", "hardware type "+m.HardwareType+" may not run a hypervisor", "hypervisor: true there")
	}
	for i, n := range h.Networks {
		v.sameSite(KindMachine, name, fmt.Sprintf("spec.hypervisor.networks[%d]", i), site, "Network "+n, v.t.Networks[n].Spec.Site)
	}
}

func (v *validator) libvirtAddress(name string, h Hypervisor) {
	at := "spec.hypervisor.address"
	if path, ok := strings.CutPrefix(h.Address, "unix://"); ok {
		if h.Fingerprint != "" {
			v.fail(KindMachine, name, "spec.hypervisor.fingerprint", "a unix socket has no certificate", "leave it out")
		}
		if !strings.HasPrefix(path, "/") {
			v.fail(KindMachine, name, at, "the path is not absolute", "e.g. unix:///run/libvirt/libvirt-sock")
		}
		return
	}
	if problem, hint := urlProblem(h.Address, "tls"); problem != "" {
		v.fail(KindMachine, name, at, problem, hint)
	}
}

// homes checks that no workload is at home on bare metal that is somebody else's hypervisor.
func (v *validator) homes() {
	for _, name := range v.order[KindWorkload] {
		if home := v.t.Workloads[name].Spec.Home; home != "" && v.t.Machines[home].Spec.Existing() {
			v.fail(KindWorkload, name, "spec.home", "machine "+home+" runs a hypervisor that exists already",
				"leave home out: it runs there as a VM when Rerack has placed it")
		}
	}
}
