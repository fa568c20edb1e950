package lab

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/qemu/ipmisim"
)

// BMCLabel on a Machine or its HardwareType, with the value BMCIPMISim, says that OpenIPMI's ipmi_sim is the
// machine's BMC where the machine is real. It speaks IPMI only, and what it reads back of a boot device is not
// what was set: Rerack turns such a machine off, and boots none through it.
const (
	BMCLabel   = "bmc"
	BMCIPMISim = "ipmi_sim"
)

func (l *Lab) hasIPMISim(name string) bool {
	m := l.topo.Machines[name]
	of := m.Meta.Labels[BMCLabel]
	if of == "" {
		of = l.topo.HardwareTypes[m.Spec.HardwareType].Meta.Labels[BMCLabel]
	}
	return of == BMCIPMISim && l.isReal(m.Spec)
}

// startIPMISim starts a machine's ipmi_sim and returns how it is reached.
func (l *Lab) startIPMISim(name string, at topology.BMC, cred Credential) (topology.BMC, error) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return at, fault.Wrap(err, "find a port", "BMC of "+name)
	}
	listen, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err := errors.Join(err, c.Close()); err != nil {
		return at, err
	}
	dir, err := filepath.Abs(filepath.Join(l.cfg.Dir, "ipmi_sim", name))
	if err != nil {
		return at, fault.Wrap(err, "find directory", l.cfg.Dir)
	}
	m := l.machines[name]
	sim, err := ipmisim.Start(ipmisim.Config{Name: name, Dir: dir, Listen: listen, User: cred.Username, Password: cred.Password,
		UUID: m.identity.UUID, Backend: buttons{m}, Logger: l.log})
	if err != nil {
		return at, err
	}
	l.onClose(sim.Close)
	m.ipmi = sim
	at.Address, at.IPMIAddress, at.Protocol, at.Fingerprint = sim.Addr(), "", string(bmc.IPMI), ""
	return at, nil
}

// followIPMISim makes ipmi_sim as dead as its mains and its network are.
func (m *machine) followIPMISim() {
	if m.ipmi == nil {
		return
	}
	p := m.lab.world.Power(m.name)
	if !p.Mains || !p.Reachable {
		m.ipmi.Kill()
		return
	}
	if err := errors.Join(m.ipmi.Refresh(), m.ipmi.Revive()); err != nil {
		m.log.Error("ipmi_sim does not follow", "err", err)
	}
}

// buttons is the machine as ipmi_sim sees it: ipmisim.Backend on the world.
type buttons struct{ m *machine }

// On implements ipmisim.Backend.
func (b buttons) On() bool { return panel(b).Power() == driver.PowerOn }

// SetPower implements ipmisim.Backend.
func (b buttons) SetPower(on bool) {
	if on {
		b.press(bmcsim.PressOn)
	} else {
		b.press(bmcsim.PressOff)
	}
}

// ShutDown implements ipmisim.Backend.
func (b buttons) ShutDown() { b.press(bmcsim.PressGraceful) }

// Reset implements ipmisim.Backend.
func (b buttons) Reset() { b.press(bmcsim.PressReset) }

func (b buttons) press(p bmcsim.Button) {
	if err := panel(b).Press(p); err != nil {
		b.m.log.Warn("ipmi_sim's button does nothing", "button", p, "err", err)
	}
}

// SetBoot implements ipmisim.Backend.
func (b buttons) SetBoot(d ipmisim.BootDevice) {
	o := driver.BootOverride{Once: true, Mode: driver.FirmwareBIOS}
	switch d {
	case ipmisim.BootPXE:
		o.Device = driver.BootPXE
	case ipmisim.BootDisk:
		o.Device = driver.BootDisk
	case ipmisim.BootNone:
		o = driver.BootOverride{Device: driver.BootDefault}
	default:
		b.m.log.Warn("ipmi_sim wants an unknown boot device", "device", d)
		return
	}
	if err := panel(b).SetBoot(o); err != nil {
		b.m.log.Warn("boot device not set", "err", err)
	}
}
