package workflows_test

import (
	"context"
	"reflect"
	"slices"
	"testing"

	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/world"
	"rerack.dev/rerack/workflows"
)

// theirs is machine k1, on which somebody else's hypervisor runs, in the data centre of a trial.
type theirs struct {
	workflows.Devices
	r      *trial
	sim    *hypersim.Host
	life   world.Life
	silent bool
	broken bool // its VMs do not come up
}

const k1 = "k1"

// withTheirs turns k1 on, as its owner left it: one VM of theirs, their network on its ports.
func withTheirs(r *trial) *theirs {
	r.Helper()
	check := func(err error) {
		r.Helper()
		if err != nil {
			r.Fatal(err)
		}
	}
	d := &theirs{Devices: r.acts.Devices, r: r}
	check(r.dc.World.SetPort("tor-b", "p7", world.Port{Untagged: 100, Tagged: []int{120}}))
	check(r.dc.World.Press(k1, true, "operator"))
	d.life, _ = r.dc.World.Life(k1)
	check(r.dc.World.BecomeHost(d.life))
	var err error
	d.sim, err = hypersim.New(hypersim.Config{Name: k1, CPUs: 8, MemoryMiB: 16384, Backend: d})
	check(err)
	d.sim.Foreign(hypervisortest.Spec("their-vm", 1, 0), true)
	r.acts.Devices = d
	return d
}

// Host implements workflows.Devices.
func (d *theirs) Host(ctx context.Context, machine string, h state.Host) (driver.Host, error) {
	switch {
	case machine != k1:
		return d.Devices.Host(ctx, machine, h)
	case h.Existing == nil || !reflect.DeepEqual(*h.Existing, d.r.topo.Machines[k1].Spec.Hypervisor):
		return nil, fault.New(fault.Internal, "k1 is opened as something else")
	case d.silent:
		return nil, fault.New(fault.Unreachable, "no route to host")
	}
	return d.sim, nil
}

// Machine implements workflows.Devices: nobody is to turn k1 on or off.
func (d *theirs) Machine(ctx context.Context, m topology.Machine) (workflows.MachineControl, error) {
	if m.Meta.Name == k1 {
		d.r.Errorf("the BMC of %s was opened", k1)
	}
	return d.Devices.Machine(ctx, m)
}

// Power implements hypersim.Backend: the VM boots, finds its boot record and serves.
func (d *theirs) Power(s driver.Spec) (func(context.Context) error, error) {
	ctx, w := context.Background(), d.r.dc.World
	vm := world.VM{Name: s.Name, Epoch: s.Epoch}
	for _, n := range s.NICs {
		vm.VLANs = append(vm.VLANs, n.VLAN)
	}
	if err := w.StartVM(d.life, vm); err != nil {
		return nil, err
	}
	off := func(context.Context) error { return w.StopVM(d.life, s.Name) }
	rec, _, err := state.Load[state.Boot](ctx, d.r.kv, state.BootsAt+"vm-"+s.Name)
	if err != nil || d.broken {
		return off, err
	}
	tell := func(kind string) {
		_ = d.r.Reached(ctx, rec.Workflow, workflows.Milestone{Kind: kind, At: d.r.dc.Now(), Epoch: rec.Epoch})
	}
	tell("phone-home")
	if err := w.Start(d.life, s.Name, s.Name, s.Epoch); err != nil {
		return off, nil // it runs, and its workload does not
	}
	if err := w.Serve(d.life, s.Name, true); err != nil {
		return off, nil
	}
	tell("healthy")
	return off, nil
}

// untouched checks that k1 and what its owner runs there are as they were.
func (d *theirs) untouched(t *testing.T) {
	t.Helper()
	if now, on := d.r.dc.World.Life(k1); !on || now != d.life {
		t.Errorf("%s was turned off", k1)
	}
	if !slices.Contains(d.sim.Running(), "their-vm") {
		t.Errorf("their VM is gone: %v", d.sim.Running())
	}
	for _, a := range d.r.dc.World.Acts() {
		if a.Machine == k1 && a.By == "rerack" {
			t.Errorf("%+v", a)
		}
	}
}

// What has to be a VM comes back on a host that is there already, beside the VMs of its owner, and no spare
// is turned into a host for it.
func TestExistingHypervisor(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t, "existing"))
	d := withTheirs(r)
	r.burn()
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.err != nil || e.run.State != state.RunDone || e.res.Recovered != 4 {
		t.Fatalf("%+v, %v, %+v", e.res, e.err, e.results)
	}
	for _, w := range []string{"mail", "web"} {
		if at := e.results[w].Where; !at.VM || at.Machine != k1 {
			t.Errorf("%s is at %+v", w, at)
		}
	}
	d.untouched(t)
	if p, _ := r.dc.World.PortState("tor-b", "p7"); p.Untagged != 100 || !slices.Equal(p.Tagged, []int{110, 120}) {
		t.Errorf("its port carries %+v", p)
	}
	// Released again: the VM is gone, theirs is not.
	run, _, err := r.svc.StartWorkload(t.Context(), state.KindRelease, "web", "ann")
	if err != nil {
		t.Fatal(err)
	}
	if e := r.execute(run, workflows.ReleaseWorkload, nil); e.err != nil || e.run.State != state.RunDone {
		t.Fatalf("%+v, %v", e.run, e.err)
	}
	if got := d.sim.Running(); !slices.Equal(got, []string{"mail", "their-vm"}) {
		t.Errorf("running: %v", got)
	}
	d.untouched(t)
}

// One that does not say what room it has, or has none, is no target.
func TestExistingHypervisorWithoutRoom(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*theirs){
		"silent": func(d *theirs) { d.silent = true },
		"full": func(d *theirs) {
			s := hypervisortest.Spec("large", 2, 0)
			s.MemoryMiB = 14000
			d.sim.Foreign(s, true)
		},
		"drains": func(d *theirs) {
			if err := d.sim.Drain(context.Background()); err != nil {
				d.r.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t, "existing"))
			d := withTheirs(r)
			spoil(d)
			r.burn()
			e := r.recover(recovery.Request{}, nil)
			r.mustBeSound(e)
			for w, x := range e.results {
				if x.Where.Machine == k1 {
					t.Errorf("%s is there", w)
				}
			}
			d.untouched(t)
		})
	}
}

// When VMs do not come up there they are stopped and removed, and nothing else is.
func TestExistingHypervisorThatDoesNotBoot(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t, "existing"))
	d := withTheirs(r)
	d.broken = true
	r.burn()
	e := r.recover(recovery.Request{}, nil)
	r.mustBeSound(e)
	if e.err != nil || e.run.State != state.RunPartial || e.res.Recovered != 2 {
		t.Errorf("%+v, %v, %+v", e.res, e.err, e.results)
	}
	d.untouched(t)
	if got := d.sim.Running(); !slices.Equal(got, []string{"their-vm"}) {
		t.Errorf("running: %v", got)
	}
	if p, _ := r.dc.World.PortState("tor-b", "p7"); p.Shut || !slices.Contains(p.Tagged, 120) {
		t.Errorf("its port is %+v", p)
	}
}
