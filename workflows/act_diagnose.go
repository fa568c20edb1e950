package workflows

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	san "rerack.dev/rerack/sanzoning/driver"
)

// diagnoseAtMost bounds a look at the devices around a target that is given up: it delays the next choice.
const diagnoseAtMost = 5 * time.Second

// Diagnose looks, before a target that did not come up is stopped, at everything that may tell why: its
// milestones, what the boot servers noted, its BMC, its ports and its volumes' arrays. It returns the reason
// for the report, which begins with why. It only reads, and a device that cannot be read is told of as such.
func (a *Activities) Diagnose(ctx context.Context, in BootInput, why string) (string, error) {
	defer beating(ctx)()
	s, err := a.symptoms(ctx, in)
	if err != nil {
		return "", toTemporal(err)
	}
	return diagnosis(why, s), nil
}

func (a *Activities) symptoms(ctx context.Context, in BootInput) (symptoms, error) {
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return symptoms{}, err
	}
	res, _, err := state.Load[state.Result](ctx, a.Store, state.ResultsAt+in.Run+"/"+in.resultName())
	if err != nil {
		return symptoms{}, err
	}
	s := symptoms{VM: in.Where.VM, Times: res.Times}
	for _, n := range res.Notes {
		if n.Target == in.bootName() && !n.Last.Before(res.Times["prepared"]) {
			s.Notes = append(s.Notes, n)
		}
	}
	at := t.Machines[in.Where.Machine].Spec.Provisioning.Network
	if !in.Host {
		w := t.Workloads[in.Name].Spec
		at, s.SAN = w.Networks[0].Network, t.Images[w.Image].Spec.Type == topology.ImageSAN
		s.Volumes = volumeSymptomsOf(t, in.Name, in.Where.Machine)
	}
	ctx, cancel := context.WithTimeout(ctx, diagnoseAtMost)
	defer cancel()
	var g errgroup.Group
	if !in.Where.VM { // a VM's ports and power are its Host's, on which others may run well
		s.Ports = make([]portSymptom, len(t.Machines[in.Where.Machine].Spec.NICs))
		g.Go(func() error { a.seePower(ctx, t, in.Where.Machine, &s); return nil })
		for i, nic := range t.Machines[in.Where.Machine].Spec.NICs {
			s.Ports[i] = portSymptom{Switch: nic.Switch, Port: nic.Port, Untagged: t.Networks[at].Spec.VLAN}
			g.Go(func() error { a.seePort(ctx, t, &s.Ports[i]); return nil })
		}
	}
	for i := range s.Volumes {
		g.Go(func() error { a.seeVolume(ctx, t, &s.Volumes[i]); return nil })
	}
	_ = g.Wait() // the functions return no error
	return s, nil
}

func (a *Activities) seePower(ctx context.Context, t *topology.Topology, machine string, s *symptoms) {
	control, err := a.Devices.Machine(ctx, t.Machines[machine])
	if err == nil {
		now, perr := control.Power(ctx)
		if err = perr; err == nil {
			s.Power = &now
			return
		}
	}
	s.BMC = err.Error()
}

func (a *Activities) seePort(ctx context.Context, t *topology.Topology, p *portSymptom) {
	d, err := a.Devices.Switch(ctx, t.Switches[p.Switch])
	var ports []fabric.Port
	if err == nil {
		ports, err = d.Ports(ctx)
	}
	if err != nil {
		p.Err = err.Error()
		return
	}
	i := slices.IndexFunc(ports, func(have fabric.Port) bool { return have.Name == p.Port })
	if i < 0 {
		p.Err = "the switch has no such port"
		return
	}
	p.Now = ports[i]
}

func (a *Activities) seeVolume(ctx context.Context, t *topology.Topology, v *volumeSymptom) {
	d, err := a.Devices.Array(ctx, t.Arrays[v.Array])
	var masks []san.Mask
	if err == nil {
		masks, err = d.Masks(ctx)
	}
	var sessions []san.Session
	if err == nil {
		sessions, err = d.Sessions(ctx)
	}
	if err != nil {
		v.Err = err.Error()
		return
	}
	i := slices.IndexFunc(masks, func(m san.Mask) bool { return m.Volume == v.Target })
	v.Missing = i < 0
	v.Masked = i >= 0 && !slices.Contains(masks[i].Initiators, v.From)
	v.Session = slices.ContainsFunc(sessions, func(s san.Session) bool { return s.Volume == v.Target && s.Initiator == v.From })
}
