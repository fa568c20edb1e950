package lab

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/world"
)

// heard reads what is said on a real machine's console: the truth of what runs there. The test system speaks in
// lines that begin with "rerack: "; a hypervisor logs what its machines do, and passes their lines on.
func (m *machine) heard(line string) {
	m.mu.Lock()
	b := m.heardIn
	m.mu.Unlock()
	if b == nil {
		return
	}
	if rest, ok := strings.CutPrefix(line, "vm "); ok {
		if vm, said, ok := strings.Cut(rest, ": "); ok {
			b.says(vm, said)
			return
		}
	}
	if strings.HasPrefix(line, "time=") {
		b.hosts(line)
		return
	}
	b.says("", line)
}

// says records what a test system says, on the machine itself or in a virtual machine of it.
func (b *box) says(vm, line string) {
	said, ok := strings.CutPrefix(line, "rerack: ")
	if !ok {
		return
	}
	b.log.Debug("console", "vm", vm, "line", said)
	enter := func(phase string) {
		if vm == "" {
			b.enter(phase)
		}
	}
	verb, rest, _ := strings.Cut(said, " ")
	var err error
	switch verb {
	case "kernel", "dhcp":
		enter(verb)
	case "start":
		var workload string
		var epoch uint64
		if workload, epoch, err = parseStart(rest); err == nil {
			if epoch == 0 {
				epoch = b.lab.epochOf(workload)
			}
			enter("phone-home")
			err = b.lab.world.Start(b.life, vm, workload, epoch)
		}
	case "serving":
		enter("running")
		err = b.lab.world.Serve(b.life, vm, true)
	}
	if err != nil {
		b.log.Debug("console line not recorded", "vm", vm, "line", said, "err", err)
	}
}

// hosts records what a hypervisor logs, in the form of slog's TextHandler.
func (b *box) hosts(line string) {
	_, line, _ = strings.Cut(line, " msg=")
	var err error
	switch {
	case strings.HasPrefix(line, "serving "):
		b.enter("host")
		err = b.lab.world.BecomeHost(b.life)
	case strings.HasPrefix(line, `"VM is on" `):
		vm := world.VM{Name: value(line, "vm")}
		if vm.Epoch, err = strconv.ParseUint(value(line, "epoch"), 10, 64); err != nil {
			break
		}
		for _, n := range b.lab.topo.Workloads[vm.Name].Spec.Networks {
			vm.VLANs = append(vm.VLANs, b.lab.topo.Networks[n.Network].Spec.VLAN)
		}
		err = b.lab.world.StartVM(b.life, vm)
	case strings.HasPrefix(line, `"VM is off" `):
		err = b.lab.world.StopVM(b.life, value(line, "vm"))
	}
	if err != nil {
		b.log.Debug("console line not recorded", "line", line, "err", err)
	}
}

// value is that of a key in a line of key=value pairs.
func value(line, key string) string {
	_, rest, _ := strings.Cut(line, " "+key+"=")
	v, _, _ := strings.Cut(rest, " ")
	return v
}

// parseStart reads "workload=<name> epoch=<n>". A system on a disk knows no epoch and leaves it empty: 0.
func parseStart(s string) (workload string, epoch uint64, err error) {
	for _, f := range strings.Fields(s) {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "workload":
			workload = value
		case "epoch":
			if value == "" {
				continue
			}
			if epoch, err = strconv.ParseUint(value, 10, 64); err != nil {
				return "", 0, err
			}
		}
	}
	return workload, epoch, nil
}

// realService is how a workload on a real machine is reached: over the frames of its own network.
func (l *Lab) realService(r world.Run, vlan int, at netip.AddrPort) service {
	return service{Workload: r.Workload, Epoch: r.Epoch, Machine: r.Machine, dial: l.dialInside(vlan, at)}
}

// agentAt is how what listens on a real machine itself is reached: at its address of provisioning.
func (l *Lab) agentAt(at netip.AddrPort) (service, bool) {
	for _, m := range l.machines {
		if p := m.spec.Provisioning; m.real != nil && p.Address == at.Addr() {
			return service{Machine: m.name, dial: l.dialInside(l.topo.Networks[p.Network].Spec.VLAN, at)}, true
		}
	}
	return service{}, false
}

func (l *Lab) dialInside(vlan int, at netip.AddrPort) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		ctx, cancel := context.WithTimeout(l.ctx, socksTimeout)
		defer cancel()
		return l.real.nets[vlan].Dial(ctx, at)
	}
}

// isRealImage says whether an image is the real system of real machines.
func (l *Lab) isRealImage(i topology.Image) bool {
	return l.real != nil && i.Meta.Labels[RealLabel] == RealQEMU
}
