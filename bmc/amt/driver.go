// Package amt drives machines by Intel Active Management Technology: WS-Management (DMTF DSP0226, SOAP
// 1.2) over HTTPS with digest authentication. The certificate is verified, as for every other BMC.
//
// What AMT does is described in Intel's "AMT Implementation and Reference Guide": its pages are named
// where their facts are used. AMT is in desktops and workstations, so that it differs from a server's
// BMC: it shares the operating system's network port, it has no power restore policy, no say in the
// firmware's boot mode, and only one-time boot overrides.
package amt

import (
	"context"
	"fmt"
	"slices"
	"time"

	"rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
)

const (
	classPower        = "CIM_AssociatedPowerManagementService"
	classPowerService = "CIM_PowerManagementService"
	classSystem       = "CIM_ComputerSystem"

	// managedSystem is the name of the machine; the other CIM_ComputerSystem is AMT itself.
	managedSystem = "ManagedSystem"
)

// Driver is one AMT.
type Driver struct{ c *conn }

var (
	_ driver.BMC        = (*Driver)(nil)
	_ driver.Identifier = (*Driver)(nil)
)

// Probe reports whether the box speaks AMT, without credentials.
func Probe(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	c, err := newConn(cfg)
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	return c.ask(ctx)
}

// Open logs in, which a reading of the power state proves. Refused credentials are Unauthorized and were
// sent once; AMT without a free session is Busy.
func Open(ctx context.Context, cfg Config) (*Driver, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c, err := newConn(cfg)
	if err != nil {
		return nil, err
	}
	d := &Driver{c: c}
	if err = c.ask(ctx); err == nil {
		_, err = d.power(ctx)
	}
	if err != nil {
		c.http.CloseIdleConnections()
		return nil, err
	}
	return d, nil
}

// powerState is a value of PowerState and of the argument of RequestPowerStateChange (DSP1027 section
// 8.1, CIM schema 2.24; Intel's guide, "Change System Power State").
type powerState uint16

const (
	stateOn          powerState = 2
	stateSleepLight  powerState = 3
	stateSleepDeep   powerState = 4
	stateOffHard     powerState = 6
	stateHibernate   powerState = 7
	stateOffSoft     powerState = 8 // to AMT: off at once, without asking the operating system
	stateOffGraceful powerState = 12
)

func (s powerState) String() string {
	switch s {
	case stateOn:
		return "on"
	case stateSleepLight, stateSleepDeep:
		return "sleep"
	case stateOffHard:
		return "off (hard)"
	case stateHibernate:
		return "hibernate"
	case stateOffSoft:
		return "off (soft)"
	case stateOffGraceful:
		return "off (soft, graceful)"
	}
	return fmt.Sprintf("power state %d", uint16(s))
}

// power is CIM_AssociatedPowerManagementService: what is, and what may be asked for now.
type power struct {
	state     powerState
	available []powerState // empty before AMT 9
}

// power enumerates without a filter, as "Get System Power State" says for firmware that has no filters:
// there is one instance, and the filter would be the same work for AMT.
func (d *Driver) power(ctx context.Context) (power, error) {
	items, err := d.c.instances(ctx, classPower, enumerate(classPower))
	if err != nil {
		return power{}, err
	}
	for _, i := range items {
		if user := i.child("UserOfService"); user != nil {
			if keys, ok := user.refers(classSystem); !ok || keys["Name"] != managedSystem {
				continue
			}
		}
		v, ok := i.number("PowerState")
		if !ok {
			return power{}, &fault.Error{Kind: fault.Internal, What: classPower, Evidence: fmt.Sprintf("power state %q", clip(i.value("PowerState")))}
		}
		p := power{state: powerState(v)}
		for _, c := range i.children {
			if c.name == "AvailableRequestedPowerStates" {
				if v, err := parseUint16(c.text); err == nil {
					p.available = append(p.available, powerState(v))
				}
			}
		}
		return p, nil
	}
	return power{}, fault.New(fault.Unsupported, "AMT tells no power state of its machine")
}

func systemKeys() []selector {
	return []selector{{"CreationClassName", classSystem}, {"Name", managedSystem}}
}

// Power implements driver.BMC.
func (d *Driver) Power(ctx context.Context) (driver.Reading, error) {
	d.c.requests = 0
	p, err := d.power(ctx)
	if err != nil {
		return driver.Reading{State: driver.PowerUnknown}, err
	}
	return driver.Reading{State: p.word(), At: time.Now(), Source: "amt", Detail: p.state.String()}, nil
}

// word is deliberately narrow: a machine asleep or in hibernation goes on with its old memory, and what
// it believed to own, when it wakes. It is not off.
func (p power) word() driver.PowerState {
	switch p.state {
	case stateOn:
		return driver.PowerOn
	case stateOffHard, stateOffSoft:
		return driver.PowerOff
	}
	return driver.PowerChanging
}

// SetPower implements driver.BMC. ShutDown is Unsupported where the operating system runs no agent for
// it: AMT offers a graceful state only then.
func (d *Driver) SetPower(ctx context.Context, t driver.Target) error {
	d.c.requests = 0
	end, want := driver.PowerOff, stateOffSoft
	switch t {
	case driver.On:
		end, want = driver.PowerOn, stateOn
	case driver.ShutDown:
		want = stateOffGraceful
	case driver.Off:
	default:
		return fault.Newf(fault.Invalid, "power target %q", t)
	}
	p, err := d.power(ctx)
	switch {
	case err != nil:
		return err
	case p.word() == end:
		return nil
	case t == driver.ShutDown && !slices.Contains(p.available, stateOffGraceful):
		return &fault.Error{Kind: fault.Unsupported, What: "shut down", Evidence: fmt.Sprintf("AMT offers %v", p.available),
			Next: "run Intel's local manageability service in the operating system, or power off"}
	case t == driver.Off && !slices.Contains(p.available, stateOffSoft) && slices.Contains(p.available, stateOffHard):
		want = stateOffHard
	}
	v, err := d.c.invoke(ctx, invoke(classPowerService, "RequestPowerStateChange",
		fmt.Sprintf("<r:PowerState>%d</r:PowerState>", want)+
			reference("ManagedElement", classSystem, systemKeys()...)))
	if err != nil {
		return err
	}
	refusal := returnFault("RequestPowerStateChange to "+want.String(), v)
	if refusal == nil {
		return nil
	}
	// A refusal because the machine is there already is success only when the state says so (hazard H05).
	if now, err := d.power(ctx); err == nil && now.word() == end {
		return nil
	}
	return refusal
}

// Close implements driver.BMC. There is no logout: AMT ends the session with the connection.
func (d *Driver) Close(context.Context) error {
	d.c.challenge = nil
	d.c.http.CloseIdleConnections()
	return nil
}
