package workflows

import (
	"context"
	"slices"
	"sort"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	bmc "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	san "rerack.dev/rerack/sanzoning/driver"
)

// powerAtOnce bounds how many BMCs one batch talks to in parallel.
const powerAtOnce = 64

// FencePower powers the machines off and reads them back as off. A BMC that does not answer leaves its
// machine's power unknown, which is no fence and no error: the other fences must do.
func (a *Activities) FencePower(ctx context.Context, in FenceInput) (Fences, error) {
	dev, done := atDevices(ctx)
	defer done()
	r, err := a.run(ctx, in.Run)
	if err != nil {
		return nil, toTemporal(err)
	}
	t, err := a.topology(ctx, r)
	if err != nil {
		return nil, toTemporal(err)
	}
	p, err := a.policy(ctx, r)
	if err != nil {
		return nil, toTemporal(err)
	}
	out, mu := Fences{}, sync.Mutex{}
	var g errgroup.Group
	g.SetLimit(powerAtOnce)
	for _, name := range in.Machines {
		g.Go(func() error {
			f, theirs := a.newerMachine(ctx, in, name)
			if !theirs {
				f = a.fencePower(dev, t.Machines[name], p.Fencing)
			}
			mu.Lock()
			defer mu.Unlock()
			out[name] = f
			return nil
		})
	}
	for _, w := range in.Workloads {
		g.Go(func() error {
			if f, is := a.fenceVM(dev, in, w); is {
				mu.Lock()
				defer mu.Unlock()
				out["workload/"+w] = f
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return no error
	return out, toTemporal(ctx.Err())
}

// newerMachine reports whether a newer run has connected a machine since, which is not fenced: what runs on it is
// that run's, and must not be turned off.
func (a *Activities) newerMachine(ctx context.Context, in FenceInput, name string) (f policies.Fence, is bool) {
	f.Kind = policies.FencePower
	rec, _, err := state.Load[state.Machine](ctx, a.Store, state.MachinesAt+name)
	switch {
	case err != nil:
		f.Detail = "power unknown: " + err.Error()
	case rec.Fence == nil && rec.Epoch > in.Epoch:
		f.Detail = "a newer run has it"
	default:
		return f, false
	}
	return f, true
}

// fenceVM stops a workload that was last a VM of a Host which is not to be fenced itself; is says
// whether it was.
func (a *Activities) fenceVM(ctx context.Context, in FenceInput, w string) (f policies.Fence, is bool) {
	l, _, err := state.Load[state.Lease](ctx, a.Store, state.LeasesAt+w)
	// Only the former holder: this may be tried again while the workload is being started elsewhere.
	last := l.Former
	if err == nil && (!last.VM || l.Epoch != in.Epoch || slices.Contains(in.Machines, last.Machine)) {
		return f, false
	}
	f = policies.Fence{Kind: policies.FencePower, Detail: "its virtual machine on " + last.Machine + " is stopped"}
	if err == nil {
		err = a.stop(ctx, BootInput{Step: Step{Run: in.Run, Epoch: in.Epoch}, Name: w, Where: last}, topology.FencingPolicy{})
	}
	if f.Confirmed = err == nil; err != nil {
		f.Detail = "its virtual machine on " + last.Machine + " could not be stopped: " + err.Error()
		// A Host that is off runs nothing, and when it starts again nothing that it ran before.
		if off, why := a.readsOff(ctx, in.Run, last.Machine); off {
			f.Confirmed, f.Detail = true, "its host "+last.Machine+" is off: "+why
		}
	}
	return f, true
}

// readsOff reports whether a machine is certain to be off (rule F3), by reading alone: what else runs there is not
// to be harmed.
func (a *Activities) readsOff(ctx context.Context, run, machine string) (bool, string) {
	r, err := a.run(ctx, run)
	if err != nil {
		return false, err.Error()
	}
	t, err := a.topology(ctx, r)
	if err != nil {
		return false, err.Error()
	}
	p, err := a.policy(ctx, r)
	if err != nil {
		return false, err.Error()
	}
	control, err := a.Devices.Machine(ctx, t.Machines[machine])
	if err != nil {
		return false, err.Error()
	}
	wanted, gap := max(p.Fencing.OffReadings, 1), p.Fencing.OffInterval.Or(0)
	var samples []policies.PowerSample
	for len(samples) < wanted {
		if len(samples) > 0 {
			select {
			case <-time.After(gap):
			case <-ctx.Done():
				return false, ctx.Err().Error()
			}
		}
		now, err := control.Power(ctx)
		if err != nil || now.State != bmc.PowerOff {
			return false, "power reads " + string(now.State)
		}
		samples = append(samples, policies.PowerSample{State: policies.PowerState(now.State), At: now.At})
	}
	return policies.OffConfirmed(samples, wanted, gap, a.Observer.LinkOf(machine))
}

func (a *Activities) fencePower(ctx context.Context, m topology.Machine, p topology.FencingPolicy) policies.Fence {
	f := policies.Fence{Kind: policies.FencePower}
	control, err := a.Devices.Machine(ctx, m)
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	readings, err := control.Off(ctx, max(p.OffReadings, 1), p.OffInterval.Or(0))
	if err != nil {
		f.Detail = "power unknown: " + err.Error()
		return f
	}
	samples := make([]policies.PowerSample, len(readings))
	for i, r := range readings {
		samples[i] = policies.PowerSample{State: policies.PowerState(r.State), At: r.At}
	}
	f.Confirmed, f.Detail = policies.OffConfirmed(samples, max(p.OffReadings, 1), p.OffInterval.Or(0), a.Observer.LinkOf(m.Meta.Name))
	if err := control.StayOff(ctx); err != nil && !fault.Is(err, fault.Unsupported) {
		f.Detail += "; it may start again with mains power: " + err.Error()
	}
	return f
}

// NetworkFence is which ports on which switches cut the machines off.
type NetworkFence struct {
	Isolations []policies.Isolation `json:"isolations"`
	Switches   []string             `json:"switches"`
	Dead       []string             `json:"dead"`
}

// PlanNetworkFence decides which ports to close, given the switches that do not answer.
func (a *Activities) PlanNetworkFence(ctx context.Context, in FenceInput) (NetworkFence, error) {
	defer beating(ctx)()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return NetworkFence{}, toTemporal(err)
	}
	return a.planNetworkFence(t, in), nil
}

func (a *Activities) planNetworkFence(t *topology.Topology, in FenceInput) NetworkFence {
	dead := a.Observer.SilentSwitches()
	if dead == nil {
		dead = map[string]bool{}
	}
	for _, d := range in.Dead {
		dead[d] = true
	}
	out := NetworkFence{Isolations: policies.Isolate(t, in.Machines, dead), Dead: sortedKeys(dead)}
	used := map[string]bool{}
	for _, iso := range out.Isolations {
		for _, p := range iso.Ports {
			used[p.Switch] = true
		}
	}
	out.Switches = sortedKeys(used)
	return out
}

// on lists the ports to close on one switch.
func (f NetworkFence) on(sw string) []policies.PortRef {
	var out []policies.PortRef
	for _, iso := range f.Isolations {
		for _, p := range iso.Ports {
			if p.Switch == sw && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// SwitchFence says which of the ports that were to be closed a newer run has opened for itself.
type SwitchFence struct {
	Theirs []policies.PortRef `json:"theirs,omitempty"`
}

// FenceSwitch closes the ports on one switch that its share of the network fence names, in one commit. A port that
// a newer run has set is that run's: closed by it is closed, and open it stays.
func (a *Activities) FenceSwitch(ctx context.Context, in FenceInput) (out SwitchFence, err error) {
	dev, done := atDevices(ctx)
	defer done()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return out, toTemporal(err)
	}
	// What answers now may differ from what answered when the fence was planned, and what was planned
	// will be taken for closed.
	ports := in.Ports
	if len(ports) == 0 { // asked for by an older version
		ports = a.planNetworkFence(t, in).on(in.Device)
	}
	if len(ports) == 0 {
		return out, toTemporal(&fault.Error{Kind: fault.Conflict, Where: "switch " + in.Device, What: "close ports", Evidence: "none is named any more"})
	}
	c := fabric.Change{Owner: in.Run}
	for _, p := range ports {
		c.Settings = append(c.Settings, fabric.Setting{Port: p.Port, Shut: true, Epoch: in.Epoch})
	}
	sort.Slice(c.Settings, func(i, j int) bool { return c.Settings[i].Port < c.Settings[j].Port })
	err = a.applySwitch(dev, t, in.Device, c)
	if fault.Is(err, fault.Stale) {
		if out.Theirs, err = a.leaveNewer(dev, t, in, &c); err == nil {
			err = a.applySwitch(dev, t, in.Device, c)
		}
	}
	return out, late(ctx, err)
}

// leaveNewer takes the ports out of a change that newer runs have set, and returns those that are open.
func (a *Activities) leaveNewer(ctx context.Context, t *topology.Topology, in FenceInput, c *fabric.Change) (open []policies.PortRef, err error) {
	d, err := a.Devices.Switch(ctx, t.Switches[in.Device])
	if err != nil {
		return nil, err
	}
	ports, err := d.Ports(ctx)
	if err != nil {
		return nil, fault.Wrap(err, "read ports", "switch "+in.Device)
	}
	for _, p := range ports {
		if p.Epoch <= in.Epoch {
			continue
		}
		asked := len(c.Settings)
		c.Settings = slices.DeleteFunc(c.Settings, func(s fabric.Setting) bool { return s.Port == p.Name })
		if len(c.Settings) < asked && !p.Shut {
			open = append(open, policies.PortRef{Switch: in.Device, Port: p.Name})
		}
	}
	return open, nil
}

// StorageDevices is what has to be told that some workloads reach nothing any more.
type StorageDevices struct {
	Fabrics []string                `json:"fabrics"`
	Arrays  []string                `json:"arrays"`
	Volumes map[string][]VolumePath `json:"volumes"` // per workload
}

// PlanStorageFence lists the fabrics and arrays that the workloads' volumes are on.
func (a *Activities) PlanStorageFence(ctx context.Context, in FenceInput) (StorageDevices, error) {
	defer beating(ctx)()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return StorageDevices{}, toTemporal(err)
	}
	w := unwire(t, in.Workloads, in.Epoch, nil)
	out := StorageDevices{Fabrics: sortedKeys(w.Fabrics), Arrays: sortedKeys(w.Arrays), Volumes: map[string][]VolumePath{}}
	for _, name := range in.Workloads {
		for _, v := range t.Workloads[name].Spec.Volumes {
			out.Volumes[name] = append(out.Volumes[name], volumePath(t, v.Volume))
		}
	}
	return out, nil
}

// FenceFabric takes the workloads' volumes out of every zone of one fabric, in one commit.
func (a *Activities) FenceFabric(ctx context.Context, in FenceInput) error {
	dev, done := atDevices(ctx)
	defer done()
	load := func() (wiring, error) { return a.unwired(ctx, in) }
	return overtaking(ctx, load, func(w wiring) error {
		return a.applyFabric(dev, w.topology, in.Device, san.ZoneChange{Owner: in.Run, Zones: w.Fabrics[in.Device]})
	})
}

// FenceArray unmasks the workloads' volumes on one array, in one batch, and ends their live sessions. missing
// are those that the array does not have, with what it says: that nobody can write to them is not known.
func (a *Activities) FenceArray(ctx context.Context, in FenceInput) (missing map[string]string, err error) {
	dev, done := atDevices(ctx)
	defer done()
	load := func() (wiring, error) { return a.unwired(ctx, in) }
	err = overtaking(ctx, load, func(w wiring) (err error) {
		missing, err = a.applyArray(dev, w.topology, in.Device, san.MaskChange{Owner: in.Run, Masks: w.Arrays[in.Device]})
		return err
	})
	return missing, err
}

// unwired is what the devices are told: of the workloads that the run still has. A device refuses a whole
// commit for the newer epoch of one.
func (a *Activities) unwired(ctx context.Context, in FenceInput) (wiring, error) {
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return wiring{}, err
	}
	holders, err := a.holders(ctx)
	if err != nil {
		return wiring{}, err
	}
	newer, err := a.newer(ctx, in.Epoch)
	if err != nil {
		return wiring{}, err
	}
	ours := slices.DeleteFunc(slices.Clone(in.Workloads), func(w string) bool { return newer[w] != "" })
	return unwire(t, ours, in.Epoch, holders), nil
}

// newer lists the workloads that newer runs have taken, with the run.
func (a *Activities) newer(ctx context.Context, epoch uint64) (map[string]string, error) {
	leases, err := state.List[state.Lease](ctx, a.Store, state.LeasesAt)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, l := range leases {
		if l.Epoch > epoch {
			out[l.Workload] = l.Run
		}
	}
	return out, nil
}

// overtaking tells a device what load works out, and once again when it has heard from a newer run: what that
// has taken meanwhile is left out of it.
func overtaking(ctx context.Context, load func() (wiring, error), tell func(wiring) error) error {
	for again := true; ; again = false {
		w, err := load()
		if err != nil {
			return toTemporal(err)
		}
		if err = tell(w); !again || !fault.Is(err, fault.Stale) {
			return late(ctx, err)
		}
	}
}
