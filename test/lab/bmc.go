package lab

import (
	"crypto/sha256"
	"fmt"
	"net"
	"strings"

	"rerack.dev/rerack/bmc"
	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/world"
)

// panel is the machine as its BMC sees it: bmcsim.Backend on the world.
type panel struct{ m *machine }

// Identity implements bmcsim.Backend.
func (p panel) Identity() driver.Inventory { return p.m.identity }

// Power implements bmcsim.Backend.
func (p panel) Power() driver.PowerState {
	if p.m.lab.world.Power(p.m.name).Reported {
		return driver.PowerOn
	}
	return driver.PowerOff
}

// Press implements bmcsim.Backend.
func (p panel) Press(b bmcsim.Button) error {
	w, name := p.m.lab.world, p.m.name
	switch b {
	case bmcsim.PressOn:
		return w.Press(name, true, "its BMC")
	case bmcsim.PressOff, bmcsim.PressGraceful:
		return w.Press(name, false, "its BMC")
	case bmcsim.PressReset, bmcsim.PressCycle:
		if !w.Power(name).On {
			return bmcsim.ErrRefused
		}
		if err := w.Press(name, false, "its BMC"); err != nil {
			return err
		}
		return w.Press(name, true, "its BMC")
	}
	return bmcsim.ErrRefused
}

// Boot implements bmcsim.Backend.
func (p panel) Boot() driver.BootOverride {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	return p.m.boot
}

// SetBoot implements bmcsim.Backend.
func (p panel) SetBoot(b driver.BootOverride) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	p.m.boot = b
	return nil
}

// PowerRestore implements bmcsim.Backend.
func (p panel) PowerRestore() bmcsim.RestorePolicy {
	switch p.m.lab.world.Power(p.m.name).Restore {
	case world.RestoreOff:
		return bmcsim.AlwaysOff
	case world.RestoreOn:
		return bmcsim.AlwaysOn
	}
	return bmcsim.LastState
}

// SetPowerRestore implements bmcsim.Backend.
func (p panel) SetPowerRestore(r bmcsim.RestorePolicy) error {
	return p.m.lab.world.SetRestore(p.m.name, map[bmcsim.RestorePolicy]world.Restore{
		bmcsim.AlwaysOff: world.RestoreOff, bmcsim.AlwaysOn: world.RestoreOn}[r])
}

// identityOf is what the BMC tells of its machine; what the topology leaves out is made up from the
// name, the same every time.
func identityOf(name string, t *topology.Topology) driver.Inventory {
	spec := t.Machines[name].Spec
	hw := t.HardwareTypes[spec.HardwareType].Spec
	sum := sha256.Sum256([]byte("lab machine " + name))
	id := driver.Inventory{UUID: strings.ToLower(spec.UUID), Serial: spec.Serial, Manufacturer: hw.Manufacturer, Model: hw.Model}
	if id.UUID == "" {
		sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // RFC 9562 section 5.8
		id.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
	}
	if id.Serial == "" {
		id.Serial = fmt.Sprintf("LAB%X", sum[16:20])
	}
	for _, n := range spec.NICs {
		if hw, err := net.ParseMAC(string(n.MAC)); err == nil {
			id.NICs = append(id.NICs, driver.NIC{Name: n.Name, MAC: hw})
		}
	}
	for _, h := range spec.HBAs {
		id.HBAs = append(id.HBAs, driver.HBA{Name: h.Name, WWPN: string(h.WWPN)})
	}
	return id
}

// startBMCs gives every machine its controller and the topology their addresses.
func (l *Lab) startBMCs() error {
	l.farm = bmcsim.NewFarm(l.ca)
	for _, name := range l.topo.Names(topology.KindMachine) {
		m := l.topo.Machines[name]
		cred, err := l.secrets.of(m.Spec.BMC.Credentials)
		if err != nil {
			return err
		}
		if l.hasIPMISim(name) {
			if m.Spec.BMC, err = l.startIPMISim(name, m.Spec.BMC, cred); err != nil {
				return err
			}
			l.topo.Machines[name] = m
			continue
		}
		profile, err := bmcsim.ProfileNamed(l.cfg.profileOf(m))
		if err != nil {
			return err
		}
		b, err := l.farm.Add(bmcsim.Config{Name: name, Addr: l.address(m.Spec.BMC.Address), Backend: panel{l.machines[name]},
			Profile: profile, Users: []bmc.Credential{{User: cred.Username, Password: bmc.NewSecret(cred.Password)}}})
		if err != nil {
			return err
		}
		l.machines[name].bmc = b
		m.Spec.BMC.Address, m.Spec.BMC.IPMIAddress = "https://"+b.Addr(), b.Addr()
		if m.Spec.BMC.Fingerprint, err = b.Fingerprint(); err != nil {
			return err
		}
		l.topo.Machines[name] = m
	}
	return nil
}

// followBMC makes the controller as dead as its mains and its network are.
func (m *machine) followBMC() {
	m.followIPMISim()
	if m.bmc == nil {
		return
	}
	mains := true
	// The world is asked inside, where calls follow each other: the last one knows best.
	m.bmc.SetFaults(func(f *bmcsim.Faults) {
		p := m.lab.world.Power(m.name)
		m.mu.Lock()
		defer m.mu.Unlock()
		f.Drop = m.bmcDrop || !p.Reachable
		mains = p.Mains
	})
	if !mains {
		m.bmc.EndSessions()
	}
}
