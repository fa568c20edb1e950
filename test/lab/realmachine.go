package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/secret"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe/ipxe"
	qemu "rerack.dev/rerack/test/qemu/machine"
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
		boot, err := m.lab.bootInstalled(on)
		if err != nil {
			m.log.Error("cannot boot", "err", err)
			b.enter("broken")
		}
		return boot, err == nil
	case driver.BootHTTP:
		return qemu.Boot{Device: qemu.HTTP}, true
	}
	b.enter("network boot")
	return qemu.Boot{Device: qemu.Network}, true
}

// bootInstalled is what the machine boots by itself: the system on its own disk, or on the LUN that its firmware
// is set to, which the emulator is told in place of a firmware's memory.
func (l *Lab) bootInstalled(on *install) (qemu.Boot, error) {
	for _, u := range l.topo.Workloads[on.workload].Spec.Volumes {
		v := l.topo.Volumes[u.Volume].Spec
		if u.Boot && l.isRealArray(l.topo.Arrays[v.Array]) {
			return l.bootLUN(on.workload, v)
		}
	}
	return qemu.Boot{Device: qemu.Disk, Kernel: &qemu.Kernel{Path: l.real.kernelPath(), Initrd: l.real.initrdPath(),
		Cmdline: ownParams + fmt.Sprintf("rerack.epoch=%d ", on.epoch) + l.systemParams(on.workload)}}, nil
}

// bootLUN boots from an iSCSI target with iPXE, as a network card does that keeps its target in its own memory.
func (l *Lab) bootLUN(workload string, v topology.VolumeSpec) (qemu.Boot, error) {
	var b qemu.Boot
	w := l.topo.Workloads[workload].Spec
	net0 := l.topo.Networks[w.Networks[0].Network].Spec
	portal, err := netip.ParseAddrPort(l.topo.Arrays[v.Array].Spec.Portals[0])
	if err != nil {
		return b, &fault.Error{Kind: fault.Invalid, Where: "array " + v.Array, What: "portal", Err: err}
	}
	account, err := l.accountOf(v)
	if err != nil {
		return b, err
	}
	var login ipxe.Login
	if account.User != "" {
		login = ipxe.Login{User: account.User, Secret: secret.New(account.Secret)}
	}
	boot, err := ipxe.SAN(ipxe.Target{Portal: portal, Name: string(v.Target), LUN: uint16(v.LUN), Initiator: string(w.InitiatorIQN)}, login)
	if err != nil {
		return b, err
	}
	head, rest, _ := strings.Cut(string(boot), "\n")
	script := fmt.Sprintf("%s\nset net0/ip %s\nset net0/netmask %s\nset net0/gateway %s\nifopen net0\n%s", head, w.Networks[0].Address,
		net.IP(net.CIDRMask(net0.Subnet.Bits(), 32)), net0.Gateway, rest)
	path := filepath.Join(l.real.dir, workload+".ipxe")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		return b, fault.Wrap(err, "write", path)
	}
	return qemu.Boot{Device: qemu.Disk, Kernel: &qemu.Kernel{Path: filepath.Join(l.cfg.QEMU.Loaders, "ipxe.lkrn"), Initrd: path}}, nil
}

// systemParams are what an installed system knows: its workload, its address, and what it serves.
func (l *Lab) systemParams(workload string) string {
	c := "rerack.workload=" + workload
	w := l.topo.Workloads[workload].Spec
	if len(w.Networks) > 0 {
		at := w.Networks[0]
		n := l.topo.Networks[at.Network].Spec
		c += fmt.Sprintf(" lab.address=%s/%s", at.Address, net.IP(net.CIDRMask(n.Subnet.Bits(), 32)))
		if n.Gateway.IsValid() {
			c += " lab.gateway=" + n.Gateway.String()
		}
	}
	if w.Health.HTTPPort != 0 {
		c += fmt.Sprintf(" lab.port=%d", w.Health.HTTPPort)
	}
	return c
}
