package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/orchestrator/topology"
	qemu "rerack.dev/rerack/test/qemu/machine"
	"rerack.dev/rerack/test/world"
)

// runReal is a life of a real machine: QEMU runs until the world takes the power.
func (m *machine) runReal(ctx context.Context, b *box) {
	boot, ok := m.bootReal(ctx, b)
	if !ok {
		<-ctx.Done()
		return
	}
	m.mu.Lock()
	m.heardIn = b
	m.mu.Unlock()
	err := m.real.Run(ctx, boot)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		m.log.Error("real machine failed", "err", err)
		b.enter("broken")
		<-ctx.Done()
	default: // its system turned it off
		if err := m.lab.world.Halt(m.name); err != nil {
			m.log.Error("power-off not recorded", "err", err)
		}
	}
}

// bootReal passes the time until the firmware boots, and says what. It is false when nothing will.
func (m *machine) bootReal(ctx context.Context, b *box) (qemu.Boot, bool) {
	o := driver.BootOverride{Device: driver.BootDisk}
	if !m.warm() {
		b.enter("post")
		if m.fault().noBoot || !pause(ctx, m.lab.cfg.Post+m.fault().slow) {
			return qemu.Boot{}, false
		}
		o = m.takeBoot()
	}
	switch o.Device {
	case driver.BootDisk:
		on := m.takeInstall()
		if on == nil {
			b.enter("no boot device")
			return qemu.Boot{}, false
		}
		return qemu.Boot{Device: qemu.Disk, Kernel: &qemu.Kernel{Path: m.lab.real.kernelPath(), Initrd: m.lab.real.initrdPath(),
			Cmdline: m.lab.installedCmdline(on)}}, true
	case driver.BootHTTP:
		return qemu.Boot{Device: qemu.HTTP}, true
	}
	b.enter("network boot")
	return qemu.Boot{Device: qemu.Network}, true
}

// installedCmdline is what the boot loader on a machine's own disk would say to the test system: its
// workload and its address as they were when it was installed.
func (l *Lab) installedCmdline(on *install) string {
	c := fmt.Sprintf("console=ttyS0 quiet no_timer_check tsc=reliable rerack.workload=%s rerack.epoch=%d", on.workload, on.epoch)
	w := l.topo.Workloads[on.workload].Spec
	if len(w.Networks) == 0 {
		return c
	}
	at := w.Networks[0]
	n := l.topo.Networks[at.Network].Spec
	c += fmt.Sprintf(" lab.address=%s/%s", at.Address, net.IP(net.CIDRMask(n.Subnet.Bits(), 32)))
	if n.Gateway.IsValid() {
		c += " lab.gateway=" + n.Gateway.String()
	}
	if w.Health.HTTPPort != 0 {
		c += fmt.Sprintf(" lab.port=%d", w.Health.HTTPPort)
	}
	return c
}

// heard reads what the test system says on its console: the truth of what runs on a real machine.
func (m *machine) heard(line string) {
	said, ok := strings.CutPrefix(line, "rerack: ")
	if !ok {
		return
	}
	m.mu.Lock()
	b := m.heardIn
	m.mu.Unlock()
	m.log.Debug("console", "line", said)
	verb, rest, _ := strings.Cut(said, " ")
	var err error
	switch verb {
	case "kernel", "dhcp":
		b.enter(verb)
	case "start":
		var workload string
		var epoch uint64
		if workload, epoch, err = parseStart(rest); err == nil {
			b.enter("phone-home")
			err = m.lab.world.Start(b.life, "", workload, epoch)
		}
	case "serving":
		b.enter("running")
		err = m.lab.world.Serve(b.life, "", true)
	}
	if err != nil {
		m.log.Debug("console line not recorded", "line", said, "err", err)
	}
}

// parseStart reads "workload=<name> epoch=<n>".
func parseStart(s string) (workload string, epoch uint64, err error) {
	for _, f := range strings.Fields(s) {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "workload":
			workload = value
		case "epoch":
			if epoch, err = strconv.ParseUint(value, 10, 64); err != nil {
				return "", 0, err
			}
		}
	}
	return workload, epoch, nil
}

// realService is how a workload on a real machine is reached: over the frames of its own network.
func (l *Lab) realService(r world.Run, vlan int, at netip.AddrPort) service {
	return service{Workload: r.Workload, Epoch: r.Epoch, Machine: r.Machine,
		dial: func() (net.Conn, error) {
			ctx, cancel := context.WithTimeout(l.ctx, socksTimeout)
			defer cancel()
			return l.real.nets[vlan].Dial(ctx, at)
		}}
}

// isRealImage says whether an image is the test system of real machines.
func (l *Lab) isRealImage(i topology.Image) bool {
	return l.real != nil && i.Meta.Labels[RealLabel] == RealQEMU
}
