package workflows

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// PlanInput asks where the pending workloads shall run.
type PlanInput struct {
	Run     string              `json:"run"`
	Round   int                 `json:"round"`
	Scope   Scope               `json:"scope"`
	Pending []string            `json:"pending"`
	Tried   map[string][]string `json:"tried,omitempty"`
}

// Planned is a placement as the workflow needs it; reasons are in the store.
type Planned struct {
	Assignments []PlannedTarget     `json:"assignments"`
	NewHosts    []policies.NewHost  `json:"newHosts,omitempty"`
	Evictions   []policies.Eviction `json:"evictions,omitempty"`
	Summary     string              `json:"summary"`
}

// PlannedTarget is one assignment with its place in the order.
type PlannedTarget struct {
	Workload string `json:"workload"`
	policies.Where
	Wave      int      `json:"wave"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

// StoredPlan is a round's placement as it was decided, for people and for the activities that carry
// it out.
type StoredPlan struct {
	Run       string             `json:"run"`
	Round     int                `json:"round"`
	Epoch     uint64             `json:"epoch"`
	At        time.Time          `json:"at"`
	Placement policies.Placement `json:"placement"`
	// PassedOver are machines outside the domain whose power cannot be read, with why: they may have been the
	// better choice.
	PassedOver map[string]string `json:"passedOver,omitempty"`
}

func planKey(run string, round int) string {
	return fmt.Sprintf("%s%s/%03d", state.PlansAt, run, round)
}

// Plan decides on the present state, claims every machine the placement uses, and stores it. When
// another run was faster with a machine it decides again without it. A repeated call returns the plan
// that was stored: a plan never changes under the steps that follow it.
func (a *Activities) Plan(ctx context.Context, in PlanInput) (Planned, error) {
	defer beating(ctx)()
	stored, rev, err := state.Load[StoredPlan](ctx, a.Store, planKey(in.Run, in.Round))
	if err != nil {
		return Planned{}, toTemporal(err)
	}
	if rev == 0 {
		if stored, err = a.decide(ctx, in); err != nil {
			return Planned{}, toTemporal(err)
		}
	}
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return Planned{}, toTemporal(err)
	}
	out, err := planned(t, stored.Placement)
	if err != nil {
		return Planned{}, toTemporal(err)
	}
	out.Summary += passedOver(stored.PassedOver)
	for _, l := range stored.Placement.LeftOut {
		if err := a.result(ctx, in.Run, l.Workload, func(r *state.Result) {
			r.State, r.Constraint, r.Reason, r.Tried = "left-out", l.Constraint, l.Reason, in.Tried[l.Workload]
		}); err != nil {
			return Planned{}, toTemporal(err)
		}
	}
	for _, p := range stored.Placement.Assignments {
		if err := a.result(ctx, in.Run, p.Workload, func(r *state.Result) {
			r.State, r.Reason, r.Round, r.Constraint, r.Tried = "planned", p.Reason, in.Round, "", in.Tried[p.Workload]
		}); err != nil {
			return Planned{}, toTemporal(err)
		}
	}
	return out, nil
}

func (a *Activities) decide(ctx context.Context, in PlanInput) (StoredPlan, error) {
	taken, looked := map[string]string{}, map[string]bool{}
	r, err := a.run(ctx, in.Run)
	if err != nil {
		return StoredPlan{}, err
	}
	t, err := a.topology(ctx, r)
	if err != nil {
		return StoredPlan{}, err
	}
	pending, unbootable, hosts := a.bootable(ctx, t, r.Runbook, in.Pending)
	for {
		place, err := a.PlacementInput(ctx, in.Run, pending, in.Scope)
		if err != nil {
			return StoredPlan{}, err
		}
		place.BootHosts = place.BootHosts && hosts == ""
		for m, why := range taken {
			place.Unusable[m] = why
		}
		s := StoredPlan{Run: in.Run, Round: in.Round, Epoch: in.Scope.Epoch, At: a.Now(), Placement: policies.Place(place)}
		for i := range s.Placement.LeftOut {
			if hosts != "" && in.Scope.BootHosts {
				s.Placement.LeftOut[i].Reason += "; no machine can be made a host: " + hosts
			}
		}
		s.Placement.LeftOut = append(s.Placement.LeftOut, unbootable...)
		s.PassedOver = map[string]string{}
		for m, why := range place.Unusable {
			if strings.HasPrefix(why, bmcSilent) {
				s.PassedOver[m] = why
			}
		}
		lost, err := a.claim(ctx, s)
		if err != nil {
			return s, err
		}
		if lost != "" {
			taken[lost] = "claimed by another run meanwhile"
			continue
		}
		// Before anything is connected to it: who turned a spare on runs something of theirs there.
		if on := a.poweredOn(ctx, place.Topology, s.Placement, looked); len(on) > 0 {
			for _, m := range on {
				taken[m] = "it is on, and not by any run"
			}
			continue
		}
		b, err := state.Encode(s)
		if err != nil {
			return s, err
		}
		return s, a.Store.Txn(ctx, store.Put(planKey(in.Run, in.Round), b))
	}
}

// claim takes every machine of the plan; lost names the first that somebody else has.
func (a *Activities) claim(ctx context.Context, s StoredPlan) (lost string, err error) {
	wanted := map[string]string{}
	for _, p := range s.Placement.Assignments {
		if p.VM {
			wanted[p.Machine] = "host"
		} else {
			wanted[p.Machine] = p.Workload
		}
	}
	for _, h := range s.Placement.NewHosts {
		wanted[h.Machine] = "host"
	}
	for _, m := range sortedKeys(wanted) {
		c := state.Claim{Run: s.Run, Epoch: s.Epoch, For: wanted[m], Since: s.At}
		if err := state.ClaimMachine(ctx, a.Store, m, c); fault.Is(err, fault.Conflict) {
			return m, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", nil
}

// poweredOn lists the machines of a plan that should be off and read as on. One that cannot be read now is
// tried anyway; none is looked at twice.
func (a *Activities) poweredOn(ctx context.Context, t *topology.Topology, p policies.Placement, looked map[string]bool) []string {
	ctx, cancel := context.WithTimeout(ctx, spareReading)
	defer cancel()
	off := map[string]bool{}
	for _, as := range p.Assignments {
		if !as.VM {
			off[as.Machine] = true
		}
	}
	for _, h := range p.NewHosts {
		off[h.Machine] = true
	}
	for _, e := range p.Evictions {
		delete(off, e.Machine)
	}
	on, mu := map[string]bool{}, sync.Mutex{}
	var g errgroup.Group
	g.SetLimit(powerAtOnce)
	for _, m := range sortedKeys(off) {
		if looked[m] {
			continue
		}
		looked[m] = true
		g.Go(func() error {
			if control, err := a.Devices.Machine(ctx, t.Machines[m]); err == nil {
				if now, err := control.Power(ctx); err == nil && now.State == bmc.PowerOn {
					mu.Lock()
					defer mu.Unlock()
					on[m] = true
				}
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return no error
	return sortedKeys(on)
}

// spareReading bounds the look at all machines of a plan.
const spareReading = 5 * time.Second

// PlacementInput gathers the facts a placement is decided on; the dry run uses the same.
func (a *Activities) PlacementInput(ctx context.Context, run string, pending []string, s Scope) (policies.PlacementInput, error) {
	present := a.Topology()
	t := present
	if run != "" {
		var err error
		if t, err = a.declared(ctx, run); err != nil {
			return policies.PlacementInput{}, err
		}
	}
	in := policies.PlacementInput{Topology: t, Pending: pending, Unusable: map[string]string{},
		Hosts: map[string]policies.HostRoom{}, HostReserveMiB: s.Policy.Recovery.HostReserveMiB, BootHosts: s.BootHosts}
	holders, err := a.holders(ctx)
	if err != nil {
		return in, err
	}
	in.Running = holders
	for _, w := range pending {
		delete(in.Running, w)
	}
	records, err := a.machines(ctx)
	if err != nil {
		return in, err
	}
	var theirs []topology.Machine
	for name, m := range t.Machines {
		if now, is := present.Machines[name]; !is || !reflect.DeepEqual(now, m) {
			in.Unusable[name] = "it is declared differently since the run was opened"
		} else if why := unusable(records[name], run, m, a.Observer.PowerOf(name)); why != "" {
			in.Unusable[name] = why
		} else if m.Spec.Existing() {
			theirs = append(theirs, m)
		} else if h := records[name].Host; h != nil {
			in.Hosts[name] = hostRoom(t, name, in)
		}
	}
	a.existingRoom(ctx, theirs, in)
	leases, err := state.List[state.Lease](ctx, a.Store, state.LeasesAt)
	if err != nil {
		return in, err
	}
	for _, l := range leases {
		if m := l.Former.Machine; m != "" && !l.Former.VM && in.Unusable[m] == "" {
			in.Unusable[m] = l.Workload + " may still run on it: it had it, and is not known to be cut off"
		}
	}
	for _, m := range s.Machines {
		in.Unusable[m] = "this run cuts it off"
	}
	return in, nil
}

// hostRoom is what the VMs placed on a Host leave free, by the workloads' declared sizes.
func hostRoom(t *topology.Topology, machine string, in policies.PlacementInput) policies.HostRoom {
	hw := t.HardwareTypes[t.Machines[machine].Spec.HardwareType].Spec
	room := policies.HostRoom{FreeCPUs: hw.CPUs, FreeMemory: hw.MemoryMiB - in.HostReserveMiB}
	for w, at := range in.Running {
		if at.VM && at.Machine == machine {
			room.FreeCPUs -= t.Workloads[w].Spec.CPUs
			room.FreeMemory -= t.Workloads[w].Spec.MemoryMiB
		}
	}
	return room
}

func planned(t *topology.Topology, p policies.Placement) (Planned, error) {
	out := Planned{NewHosts: p.NewHosts, Evictions: p.Evictions}
	names := make([]string, len(p.Assignments))
	at := map[string]policies.Assignment{}
	for i, as := range p.Assignments {
		names[i], at[as.Workload] = as.Workload, as
	}
	waves, err := policies.Waves(t, names)
	if err != nil {
		return out, err
	}
	vms := 0
	for i, wave := range waves {
		for _, w := range wave {
			out.Assignments = append(out.Assignments, PlannedTarget{Workload: w, Where: at[w].Where, Wave: i + 1,
				DependsOn: t.Workloads[w].Spec.DependsOn})
			if at[w].VM {
				vms++
			}
		}
	}
	out.Summary = fmt.Sprintf("%d on bare metal, %d as VMs, %d new hosts, %d evicted, %d left out",
		len(p.Assignments)-vms, vms, len(p.NewHosts), len(p.Evictions), len(p.LeftOut))
	return out, nil
}

// loadRound reads what a device step needs: the plan, and who holds what.
func (a *Activities) loadRound(ctx context.Context, in DeviceStep) (wiring, error) {
	plan, rev, err := state.Load[StoredPlan](ctx, a.Store, planKey(in.Run, in.Round))
	if err == nil && rev == 0 {
		err = &fault.Error{Kind: fault.NotFound, Where: in.Run, What: "the round has no plan"}
	}
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
	lost := losses{Machines: in.Lost.Machines, Workloads: maps.Clone(in.Lost.Workloads)}
	if lost.Workloads == nil {
		lost.Workloads = map[string]string{}
	}
	for w, run := range newer {
		lost.Workloads[w] = "run " + run + " has taken it"
	}
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return wiring{}, err
	}
	return wire(t, plan.Placement, in.Epoch, holders, lost), nil
}

// PlanRewire lists the devices of a round and what hangs on each.
func (a *Activities) PlanRewire(ctx context.Context, in DeviceStep) (RewirePlan, error) {
	defer beating(ctx)()
	plan, _, err := state.Load[StoredPlan](ctx, a.Store, planKey(in.Run, in.Round))
	if err != nil {
		return RewirePlan{}, toTemporal(err)
	}
	w, err := a.loadRound(ctx, in)
	if err != nil {
		return RewirePlan{}, toTemporal(err)
	}
	t := w.topology
	out := RewirePlan{Switches: sortedKeys(w.Switches), Fabrics: sortedKeys(w.Fabrics), Arrays: sortedKeys(w.Arrays),
		Behind: map[string][]string{}}
	add := func(key, name string) {
		if !slices.Contains(out.Behind[key], name) {
			out.Behind[key] = append(out.Behind[key], name)
		}
	}
	machine := func(m string) {
		for _, nic := range t.Machines[m].Spec.NICs {
			add("switch/"+nic.Switch, m)
		}
	}
	for _, h := range plan.Placement.NewHosts {
		machine(h.Machine)
	}
	for _, as := range plan.Placement.Assignments {
		machine(as.Machine)
		for _, v := range t.Workloads[as.Workload].Spec.Volumes {
			p := volumePath(t, v.Volume)
			add("array/"+p.Array, as.Workload)
			for _, f := range p.Fabrics {
				add("fabric/"+f, as.Workload)
			}
		}
	}
	return out, nil
}
