package workflows

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	hypervisor "rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
)

// resultName is the record name of a target in its run: a Host's must not meet a workload's.
func (in BootInput) resultName() string {
	if in.Host {
		return "host-" + in.Name
	}
	return in.Name
}

// bootName is the name of the target's boot record: the machine, or the workload for a VM.
func (in BootInput) bootName() string {
	if in.Where.VM {
		return "vm-" + in.Name
	}
	return in.Where.Machine
}

// PrepareBoot makes the target the holder of its workload and writes what the boot plane shall serve
// to it. Both are durable before anything is powered on.
func (a *Activities) PrepareBoot(ctx context.Context, in BootInput) error {
	defer beating(ctx)()
	return toTemporal(a.prepareBoot(ctx, in))
}

func (a *Activities) prepareBoot(ctx context.Context, in BootInput) error {
	now := a.Now()
	rec, err := a.bootRecord(ctx, in, now)
	if err != nil {
		return err
	}
	if err := a.result(ctx, in.Run, in.resultName(), func(r *state.Result) {
		// A retry of this step must not forget the milestones of a boot that is under way.
		if r.State == "booting" && r.Where == in.Where && r.Round == in.Round {
			return
		}
		r.Host, r.State, r.Where, r.Wave, r.Round = in.Host, "booting", in.Where, in.Wave, in.Round
		fenced := r.Times["fenced"]
		r.Times = map[string]time.Time{"prepared": now}
		if !fenced.IsZero() {
			r.Times["fenced"] = fenced
		}
	}); err != nil {
		return err
	}
	// Where it is to run is in the result before the lease says so: who closes a run that ends between the
	// two takes back from there what nobody was started for.
	if !in.Host {
		if err := state.GrantLease(ctx, a.Store, in.Name, in.Run, in.Epoch, in.Where, now); err != nil {
			return err
		}
	}
	_, err = state.Update(ctx, a.Store, state.BootsAt+rec.Name, func(have *state.Boot) error {
		if have.Epoch > rec.Epoch {
			return &fault.Error{Kind: fault.Stale, Where: "boot record " + rec.Name, What: "a newer run boots it", Evidence: have.Run}
		}
		if have.Workflow != rec.Workflow {
			*have = rec
		}
		return nil
	})
	return err
}

func (a *Activities) bootRecord(ctx context.Context, in BootInput, now time.Time) (state.Boot, error) {
	r, err := a.run(ctx, in.Run)
	if err != nil {
		return state.Boot{}, err
	}
	t, err := a.topology(ctx, r)
	if err != nil {
		return state.Boot{}, err
	}
	m := t.Machines[in.Where.Machine]
	rec := state.Boot{Name: in.bootName(), Machine: in.Where.Machine, VM: in.Where.VM, Run: in.Run, Epoch: in.Epoch,
		Workflow: bootID(in.Step, in.Name, in.Host), Hostname: in.Name, Held: in.Held}
	// Until it is read as on; from then on it counts anew.
	rec.Expires = now.Add(crashAllowance*in.act() + in.Limits.token())
	if in.Held {
		rec.Expires = now.Add(holdAtMost)
	}
	var at topology.Attachment
	var image string
	if in.Host {
		at = m.Spec.Provisioning
		image = t.Runbooks[r.Runbook].Spec.HypervisorImage
	} else {
		w := t.Workloads[in.Name]
		rec.Workload, image, at = in.Name, w.Spec.Image, w.Spec.Networks[0]
		if w.Spec.Hostname != "" {
			rec.Hostname = w.Spec.Hostname
		}
	}
	if in.Where.VM {
		rec.MACs = []string{identityMAC(in.Name, at)}
	} else {
		rec.Secure = t.HardwareTypes[m.Spec.HardwareType].Spec.SecureBoot
		for _, nic := range m.Spec.NICs {
			rec.MACs = append(rec.MACs, string(nic.MAC))
		}
	}
	img, ok := t.Images[image]
	if !ok {
		return rec, &fault.Error{Kind: fault.NotFound, Where: "boot of " + in.Name, What: "its image does not exist", Evidence: image}
	}
	net := t.Networks[at.Network].Spec
	rec.Address = netip.PrefixFrom(at.Address, net.Subnet.Bits()).String()
	if net.Gateway.IsValid() {
		rec.Gateway = net.Gateway.String()
	}
	for _, d := range net.DNS {
		rec.DNS = append(rec.DNS, d.String())
	}
	rec.Type, rec.Kernel, rec.File = string(img.Spec.Type), string(img.Spec.Kernel), string(img.Spec.File)
	for _, i := range img.Spec.Initrds {
		rec.Initrds = append(rec.Initrds, string(i))
	}
	rec.Cmdline = map[string]string{"rerack.workload": in.Name, "rerack.epoch": fmt.Sprint(in.Epoch)}
	for k, v := range img.Spec.Cmdline {
		rec.Cmdline[k] = v
	}
	if !in.Host {
		a.volumeParams(t, in, &rec)
	}
	return rec, nil
}

// volumeParams tells the booted system where its volumes are, and the firmware its boot volume.
func (a *Activities) volumeParams(t *topology.Topology, in BootInput, rec *state.Boot) {
	w := t.Workloads[in.Name].Spec
	if w.InitiatorIQN != "" {
		rec.Cmdline["rerack.initiator"] = string(w.InitiatorIQN)
	}
	for i, use := range w.Volumes {
		v := t.Volumes[use.Volume].Spec
		arr := t.Arrays[v.Array].Spec
		key := fmt.Sprintf("rerack.volume.%d", i)
		if v.Protocol == topology.ISCSI && len(arr.Portals) > 0 {
			rec.Cmdline[key] = fmt.Sprintf("iscsi:%s:%s:%d", arr.Portals[0], v.Target, v.LUN)
			if use.Boot && rec.Type == string(topology.ImageSAN) {
				rec.SAN = &state.SANBoot{Portal: arr.Portals[0], Target: string(v.Target), LUN: v.LUN, Initiator: string(w.InitiatorIQN), CHAP: v.CHAP}
			}
		} else if len(arr.Targets) > 0 {
			rec.Cmdline[key] = fmt.Sprintf("fc:%s:%d:%s", arr.Targets[0].WWPN, v.LUN, use.Volume)
		}
	}
}

// ReleaseBoot lets a held target boot. From now on its token is good for as long as that of any other.
func (a *Activities) ReleaseBoot(ctx context.Context, in BootInput) error {
	defer beating(ctx)()
	if err := a.stamp(ctx, in, milestoneReleased); err != nil {
		return toTemporal(err)
	}
	now := a.Now()
	_, err := state.Update(ctx, a.Store, state.BootsAt+in.bootName(), func(rec *state.Boot) error {
		switch {
		case rec.Workflow != bootID(in.Step, in.Name, in.Host):
			return &fault.Error{Kind: fault.Stale, Where: "boot record " + in.bootName(), What: "release", Evidence: "another boot has taken its place"}
		case rec.Held:
			rec.Held, rec.Expires = false, now.Add(in.Limits.token())
		}
		return nil
	})
	return toTemporal(err)
}

func (a *Activities) stamp(ctx context.Context, in BootInput, what string) error {
	return a.result(ctx, in.Run, in.resultName(), func(r *state.Result) {
		if r.Times[what].IsZero() {
			r.Times[what] = a.Now()
		}
	})
}

// StartVM defines the workload's VM on its Host with exactly its networks and volumes, and starts it.
func (a *Activities) StartVM(ctx context.Context, in BootInput) error {
	dev, done := atDevices(ctx)
	defer done()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return toTemporal(err)
	}
	h, err := a.host(ctx, in.Where.Machine)
	if err != nil {
		return toTemporal(err)
	}
	if err := a.stamp(ctx, in, "power-on"); err != nil {
		return toTemporal(err)
	}
	if err := h.Define(dev, vmSpec(t, in)); err != nil {
		return late(ctx, fault.Wrap(err, "define VM "+in.Name, "host "+in.Where.Machine))
	}
	if err := h.Start(dev, in.Name, in.Epoch); err != nil {
		return late(ctx, fault.Wrap(err, "start VM "+in.Name, "host "+in.Where.Machine))
	}
	return toTemporal(a.startToken(ctx, in))
}

// host opens the hypervisor of a machine: the one that is declared to exist there, else ours.
func (a *Activities) host(ctx context.Context, machine string) (hypervisor.Host, error) {
	if m := a.Topology().Machines[machine]; m.Spec.Existing() {
		return a.Devices.Host(ctx, machine, existing(m))
	}
	rec, _, err := state.Load[state.Machine](ctx, a.Store, state.MachinesAt+machine)
	if err != nil {
		return nil, err
	}
	if rec.Host == nil {
		return nil, &fault.Error{Kind: fault.NotFound, Where: "machine " + machine, What: "it is no host"}
	}
	return a.Devices.Host(ctx, machine, *rec.Host)
}

func vmSpec(t *topology.Topology, in BootInput) hypervisor.Spec {
	w := t.Workloads[in.Name]
	s := hypervisor.Spec{Name: in.Name, UUID: identityUUID(w), CPUs: w.Spec.CPUs, MemoryMiB: w.Spec.MemoryMiB,
		Arch: string(w.Spec.Arch), Firmware: string(w.Spec.Firmware), Epoch: in.Epoch, Virtio: w.Spec.Virtio}
	if s.Firmware == "" {
		s.Firmware = string(topology.UEFI)
	}
	for _, n := range w.Spec.Networks {
		s.NICs = append(s.NICs, hypervisor.NIC{MAC: identityMAC(in.Name, n), VLAN: t.Networks[n.Network].Spec.VLAN})
	}
	for _, use := range w.Spec.Volumes {
		v := t.Volumes[use.Volume].Spec
		arr := t.Arrays[v.Array].Spec
		d := hypervisor.Disk{Volume: use.Volume, Boot: use.Boot}
		if v.Protocol == topology.ISCSI && len(arr.Portals) > 0 {
			d.ISCSI = &hypervisor.ISCSI{Portal: arr.Portals[0], Target: string(v.Target), LUN: v.LUN, Initiator: string(w.Spec.InitiatorIQN)}
			if v.CHAP != "" {
				d.ISCSI.CHAP = &hypervisor.CHAP{Name: v.CHAP}
			}
		} else if len(arr.Targets) > 0 {
			d.FC = &hypervisor.FC{WWPN: string(arr.Targets[0].WWPN), LUN: v.LUN}
		}
		s.Disks = append(s.Disks, d)
	}
	return s
}

// roomy makes sure that a Host has the room which the plan has given away on it.
func (a *Activities) roomy(ctx context.Context, in BootInput, room hypervisor.Capacity) error {
	r, err := a.run(ctx, in.Run)
	if err != nil {
		return err
	}
	p, err := a.policy(ctx, r)
	if err != nil {
		return err
	}
	t, err := a.topology(ctx, r)
	if err != nil {
		return err
	}
	hw := t.HardwareTypes[t.Machines[in.Name].Spec.HardwareType].Spec
	if want := hw.MemoryMiB - p.Recovery.HostReserveMiB; room.CPUs < hw.CPUs || room.MemoryMiB < want {
		return &fault.Error{Kind: fault.Unsupported, Where: "host " + in.Name, What: "its hypervisor has less room than is declared",
			Evidence: fmt.Sprintf("%d CPUs and %d MiB; the plan counts on %d and %d", room.CPUs, room.MemoryMiB, hw.CPUs, want),
			Next:     "look for failed memory, or correct its hardware type"}
	}
	return nil
}

// HostReady records a machine as Host and checks that its agent answers.
func (a *Activities) HostReady(ctx context.Context, in BootInput, m Milestone) error {
	dev, done := atDevices(ctx)
	defer done()
	h := state.Host{AgentURL: m.AgentURL, Epoch: in.Epoch, Since: a.Now()}
	host, err := a.Devices.Host(ctx, in.Name, h)
	if err != nil {
		return toTemporal(err)
	}
	room, err := host.Capacity(dev)
	if err != nil {
		return late(ctx, fault.Wrap(err, "ask its capacity", "host "+in.Name))
	}
	if err := a.roomy(ctx, in, room); err != nil {
		return toTemporal(err)
	}
	if _, err := state.Update(ctx, a.Store, state.MachinesAt+in.Name, func(rec *state.Machine) error {
		if rec.Claim == nil || rec.Claim.Run != in.Run {
			return &fault.Error{Kind: fault.Unsafe, Where: "machine " + in.Name, What: "the run's claim is gone"}
		}
		rec.Host = &h
		return nil
	}); err != nil {
		return toTemporal(err)
	}
	return toTemporal(a.result(ctx, in.Run, in.resultName(), func(r *state.Result) {
		r.State = "healthy"
		r.Reason = fmt.Sprintf("runs the hypervisor, %d CPUs and %d MiB", room.CPUs, room.MemoryMiB)
		r.Times["healthy"] = a.Now()
	}))
}

// probe asks a workload whether it serves, where it declares how.
func (a *Activities) probe(ctx context.Context, t *topology.Topology, name string) error {
	w := t.Workloads[name].Spec
	if w.Health == (topology.Health{}) {
		return nil
	}
	site := t.Sites[t.Networks[w.Networks[0].Network].Spec.Site]
	return a.Probe.Probe(ctx, site, w.Networks[0].Address.String(), w.Health)
}

// Verify checks that the workload serves from inside its network and marks it healthy.
func (a *Activities) Verify(ctx context.Context, in BootInput) error {
	dev, done := atDevices(ctx)
	defer done()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return toTemporal(err)
	}
	if err := a.probe(dev, t, in.Name); err != nil {
		return late(ctx, fault.Wrap(err, "health check", "workload "+in.Name))
	}
	if _, err := state.Update(ctx, a.Store, state.LeasesAt+in.Name, func(l *state.Lease) error {
		if l.Epoch != in.Epoch || l.Holder != in.Where {
			return &fault.Error{Kind: fault.Stale, Where: "lease of " + in.Name, What: "it was taken meanwhile"}
		}
		l.Healthy = true
		return nil
	}); err != nil {
		return toTemporal(err)
	}
	return toTemporal(a.result(ctx, in.Run, in.resultName(), func(r *state.Result) {
		r.State = "healthy"
		r.Times["healthy"] = a.Now()
	}))
}
