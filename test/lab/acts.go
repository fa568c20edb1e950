package lab

import (
	"rerack.dev/rerack/test/world"
)

// Burn takes mains power from a failure domain (rack/x, powerfeed/x, site/x, switch/x, array/x,
// machine/x; a bare name is a rack): machines, BMCs, switches and arrays in it die.
func (l *Lab) Burn(domain string) error { return l.world.Burn(domain) }

// RestorePower gives it back. Machines whose restore policy is not AlwaysOff and that were on start by
// themselves and boot what is on their own disks.
func (l *Lab) RestorePower(domain string) error { return l.world.RestorePower(domain) }

// CutManagement makes the BMCs and switch management of a domain unreachable; its machines run on.
func (l *Lab) CutManagement(domain string) error { return l.world.SetManagement(domain, false) }

// RestoreManagement undoes CutManagement.
func (l *Lab) RestoreManagement(domain string) error { return l.world.SetManagement(domain, true) }

// HalfBurn makes all BMCs of a domain answer off, while the named machines run on.
func (l *Lab) HalfBurn(domain string, running ...string) error {
	return l.world.HalfBurn(domain, running...)
}

// Power is a hand on a machine's power button, or its plug: it goes past the BMC.
func (l *Lab) Power(machine string, on bool) error {
	if on {
		return l.world.Press(machine, true, "a person")
	}
	return l.world.Halt(machine)
}

// Attest records that a person gave up a machine: whoever takes it down breaks no rule.
func (l *Lab) Attest(machine string) error { return l.world.Attest(machine) }

// Report is the verdict of the checker.
type Report struct {
	Violations []world.Violation `json:"violations"`
	Machines   int               `json:"machines"`
	Running    int               `json:"running"` // workloads
	Writes     int               `json:"writes"`  // that arrived at volumes
}

// CheckInvariants looks at the whole world once more and reports every rule that was ever broken.
func (l *Lab) CheckInvariants() Report {
	r := Report{Violations: l.world.Check(), Machines: len(l.machines)}
	for _, m := range l.world.State() {
		r.Running += len(m.Runs)
	}
	for name := range l.topo.Volumes {
		_, totals := l.world.Log(name)
		for _, t := range totals {
			r.Writes += t.Writes
		}
	}
	return r
}

// Status is the present state of the lab.
type Status struct {
	Machines []MachineStatus `json:"machines"`
	On       int             `json:"on"`
	Off      int             `json:"off"`
	NoMains  int             `json:"noMains"`
	Hosts    int             `json:"hosts"`
	VMs      int             `json:"vms"`
	Running  int             `json:"running"` // workloads that hold their identity
	Serving  int             `json:"serving"` // workloads that were accepted
}

// MachineStatus is one machine's. Phase is what it does: post, dhcp, kernel, running and so on.
type MachineStatus struct {
	world.MachineState
	Rack  string `json:"rack"`
	Phase string `json:"phase,omitempty"`
}

// Status reads the state of every machine, by name.
func (l *Lab) Status() Status {
	var s Status
	for _, m := range l.world.State() {
		box := l.machines[m.Name]
		box.mu.Lock()
		phase := box.phase
		box.mu.Unlock()
		s.Machines = append(s.Machines, MachineStatus{MachineState: m, Rack: box.spec.Rack, Phase: phase})
		switch {
		case !m.Mains:
			s.NoMains++
		case m.On:
			s.On++
		default:
			s.Off++
		}
		if m.Host {
			s.Hosts++
		}
		s.VMs += len(m.VMs)
		s.Running += len(m.Runs)
		for _, r := range m.Runs {
			if r.Serving {
				s.Serving++
			}
		}
	}
	return s
}
