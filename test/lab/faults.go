package lab

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"rerack.dev/rerack/bmc/bmcsim"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/internal/fault"
)

// Fault makes something misbehave until it is cleared. kind is bmc, machine, host, switch, fabric or array;
// arg is a number or a duration where the fault takes one.
//
//	bmc      hang, hang-after-press, drop, delay <d>, refuse <n>, reset-conn <n>, lie-off, stuck-changing,
//	         drop-power-on <n>, ignore-graceful, revert-boot, auth-fail
//	machine  no-boot, no-phone-home, panic, sick, no-disk, slow <d>
//	host     hang, delay <d>, refuse <n>, lose-reply <n>, full, idle, lie-off, lie-on, lie-nothing
//	switch, fabric, array: see the errors, which name those there are
func (l *Lab) Fault(kind, name, fault, arg string) error {
	return l.setFault(kind, name, fault, arg, true)
}

// ClearFault ends a fault; fault "" or "all" ends every one of the thing.
func (l *Lab) ClearFault(kind, name, fault string) error {
	if fault == "all" {
		fault = ""
	}
	return l.setFault(kind, name, fault, "", false)
}

// setting is one fault as it was asked for: the number is 0 for off.
type setting struct {
	on bool
	n  int
	d  time.Duration
}

// knobs are the faults of one sort of thing, by name.
type knobs[F any] map[string]func(*F, setting)

func (k knobs[F]) apply(f *F, name string, s setting) error {
	if name == "" && !s.on {
		var none F
		*f = none
		return nil
	}
	turn := k[name]
	if turn == nil {
		return fault.Newf(fault.NotFound, "no fault %q: there are %s", name, strings.Join(slices.Sorted(maps.Keys(k)), ", "))
	}
	turn(f, s)
	return nil
}

func bmcKnobs() knobs[bmcsim.Faults] {
	return knobs[bmcsim.Faults]{
		"hang":             func(f *bmcsim.Faults, s setting) { f.Hang = s.on },
		"hang-after-press": func(f *bmcsim.Faults, s setting) { f.HangAfterPress = s.on },
		"drop":             func(f *bmcsim.Faults, s setting) { f.Drop = s.on },
		"delay":            func(f *bmcsim.Faults, s setting) { f.Delay = s.d },
		"refuse":           func(f *bmcsim.Faults, s setting) { f.Refuse503 = s.n },
		"reset-conn":       func(f *bmcsim.Faults, s setting) { f.ResetConn = s.n },
		"lie-off":          func(f *bmcsim.Faults, s setting) { f.LieOff = s.on },
		"stuck-changing":   func(f *bmcsim.Faults, s setting) { f.StuckChanging = s.on },
		"drop-power-on":    func(f *bmcsim.Faults, s setting) { f.DropOnInOffWindow = s.n },
		"ignore-graceful":  func(f *bmcsim.Faults, s setting) { f.IgnoreGraceful = s.on },
		"revert-boot":      func(f *bmcsim.Faults, s setting) { f.RevertBoot = s.on },
		"auth-fail":        func(f *bmcsim.Faults, s setting) { f.AuthFail = s.on },
	}
}

func machineKnobs() knobs[machineFaults] {
	return knobs[machineFaults]{
		"no-boot":       func(f *machineFaults, s setting) { f.noBoot = s.on },
		"no-phone-home": func(f *machineFaults, s setting) { f.noPhoneHome = s.on },
		"panic":         func(f *machineFaults, s setting) { f.panics = s.on },
		"sick":          func(f *machineFaults, s setting) { f.sick = s.on },
		"no-disk":       func(f *machineFaults, s setting) { f.noDisk = s.on },
		"slow":          func(f *machineFaults, s setting) { f.slow = s.d },
	}
}

func hostKnobs() knobs[hypersim.Faults] {
	lie := func(what hypersim.Lie) func(*hypersim.Faults, setting) {
		return func(f *hypersim.Faults, s setting) {
			f.Lie = ""
			if s.on {
				f.Lie = what
			}
		}
	}
	return knobs[hypersim.Faults]{
		"hang":        func(f *hypersim.Faults, s setting) { f.Hang = s.on },
		"delay":       func(f *hypersim.Faults, s setting) { f.Delay = s.d },
		"refuse":      func(f *hypersim.Faults, s setting) { f.Refuse = s.n },
		"lose-reply":  func(f *hypersim.Faults, s setting) { f.LoseReply = s.n },
		"full":        func(f *hypersim.Faults, s setting) { f.Full = s.on },
		"idle":        func(f *hypersim.Faults, s setting) { f.Idle = s.on },
		"lie-off":     lie(hypersim.AllOff),
		"lie-on":      lie(hypersim.AllOn),
		"lie-nothing": lie(hypersim.Nothing),
	}
}

func (l *Lab) setFault(kind, name, what, arg string, on bool) error {
	s := setting{on: on}
	if on {
		s.n = 1
		if arg != "" {
			d, derr := time.ParseDuration(arg)
			n, nerr := strconv.Atoi(arg)
			if derr != nil && nerr != nil {
				return fault.Newf(fault.Invalid, "%q is neither a number nor a duration", arg)
			}
			s.d, s.n = d, n
		}
	}
	switch kind {
	case "bmc", "machine", "host":
		m := l.machines[name]
		switch {
		case m == nil:
			return fault.Newf(fault.NotFound, "no machine %q", name)
		case kind == "bmc":
			return m.setBMCFault(what, s)
		case kind == "host":
			return m.setHostFault(what, s)
		}
		if m.real != nil && on && what != "no-boot" && what != "slow" {
			return fault.Newf(fault.Unsupported, "machine %s is real: it has no fault %q", name, what)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		return machineKnobs().apply(&m.faults, what, s)
	case "switch":
		return l.switchFault(name, what, s)
	case "fabric":
		return l.fabricFault(name, what, s)
	case "array":
		return l.arrayFault(name, what, s)
	}
	return fault.Newf(fault.Invalid, "no kind %q: there are array, bmc, fabric, host, machine, switch", kind)
}

// setBMCFault keeps apart what was asked for from what the world makes of the BMC: one that has no
// mains stays dropped when its faults are cleared.
func (m *machine) setBMCFault(what string, s setting) (err error) {
	if m.bmc == nil {
		return fault.Newf(fault.Unsupported, "the BMC of %s is an ipmi_sim: it has no faults to set", m.name)
	}
	m.bmc.SetFaults(func(f *bmcsim.Faults) {
		if err = bmcKnobs().apply(f, what, s); err != nil {
			return
		}
		p := m.lab.world.Power(m.name)
		m.mu.Lock()
		defer m.mu.Unlock()
		if what == "drop" || what == "" {
			m.bmcDrop = s.on
		}
		f.Drop = m.bmcDrop || !p.Reachable
	})
	return err
}

// Counters are what every device counted, and what every power button was told.
type Counters map[string]map[string]int

// Counters reads them; the keys are bmc/<machine>, machine/<machine>, switch/<name>, fabric/<name>,
// array/<name>, and volume/<name> with the writes that arrived under each epoch as epoch-<n>.
func (l *Lab) Counters() Counters {
	out := Counters{}
	for name, m := range l.machines {
		if m.bmc != nil {
			out["bmc/"+name] = m.bmc.Counts()
		}
		p := l.world.Power(name).Presses
		out["machine/"+name] = map[string]int{"press-on": p.On, "press-off": p.Off, "boots": int(l.world.Power(name).Boot)}
	}
	l.countDevices(out)
	for name := range l.topo.Volumes {
		writes := map[string]int{}
		_, totals := l.world.Log(name)
		for _, t := range totals {
			writes["epoch-"+strconv.FormatUint(t.Epoch, 10)] = t.Writes
		}
		out["volume/"+name] = writes
	}
	return out
}
