package workflows

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe/capture"
	san "rerack.dev/rerack/sanzoning/driver"
)

// CheckCapture says why a capture cannot be: everything that can be known before anything is touched.
func (a *Activities) CheckCapture(ctx context.Context, q state.CaptureRequest) error {
	return a.checkCapture(ctx, a.Topology(), q)
}

func (a *Activities) checkCapture(ctx context.Context, t *topology.Topology, q state.CaptureRequest) error {
	bad := func(k fault.Kind, where, what, evidence, next string) error {
		return &fault.Error{Kind: k, Where: where, What: what, Evidence: evidence, Next: next}
	}
	if _, err := capture.ParseDisk(q.Disk); err != nil {
		return err
	}
	m, ok := t.Machines[q.Machine]
	if !ok {
		return bad(fault.NotFound, q.Machine, "no such machine", "", "rerack get machines")
	}
	v, ok := t.Volumes[q.Volume]
	if !ok {
		return bad(fault.NotFound, q.Volume, "no such volume", "", "rerack get volumes")
	}
	arr := t.Arrays[v.Spec.Array].Spec
	switch {
	case m.Spec.Provisioning.Network == "":
		return bad(fault.Unsupported, "machine "+q.Machine, "it has no network to boot in", "", "declare spec.provisioning")
	case v.Spec.Protocol != topology.ISCSI || len(arr.Portals) == 0:
		return bad(fault.Unsupported, "volume "+q.Volume, "a disk is copied over iSCSI", string(v.Spec.Protocol), "name a volume that is reached by iSCSI")
	case !m.Spec.StorageAddress.IsValid():
		return bad(fault.Unsupported, "machine "+q.Machine, "it has no address towards iSCSI arrays", "", "declare spec.storageAddress")
	}
	if _, err := captureImage(t, q); err != nil {
		return err
	}
	if err := a.machineIsFree(ctx, q); err != nil {
		return err
	}
	return a.volumeIsFree(ctx, t, q)
}

// captureImage is the image that is named, or the only one there is for the machine.
func captureImage(t *topology.Topology, q state.CaptureRequest) (topology.Image, error) {
	arch := t.HardwareTypes[t.Machines[q.Machine].Spec.HardwareType].Spec.Arch
	var fit []string
	for name, i := range t.Images {
		if i.Spec.Type == topology.ImageCapture && i.Spec.Arch == arch && (q.Image == "" || q.Image == name) {
			fit = append(fit, name)
		}
	}
	slices.Sort(fit)
	if len(fit) != 1 {
		return topology.Image{}, &fault.Error{Kind: fault.Invalid, Where: "machine " + q.Machine,
			What: fmt.Sprintf("%d images of type capture for %s", len(fit), arch), Evidence: strings.Join(fit, ", "), Next: "declare one, or name one with --image"}
	}
	return t.Images[fit[0]], nil
}

func (a *Activities) machineIsFree(ctx context.Context, q state.CaptureRequest) error {
	rec, _, err := state.Load[state.Machine](ctx, a.Store, state.MachinesAt+q.Machine)
	if err != nil {
		return err
	}
	if rec.Host != nil || a.Topology().Machines[q.Machine].Spec.Existing() {
		return &fault.Error{Kind: fault.Conflict, Where: "machine " + q.Machine, What: "it runs a hypervisor", Next: "release its workloads, and the host"}
	}
	leases, err := state.List[state.Lease](ctx, a.Store, state.LeasesAt)
	for _, l := range leases {
		if l.LastHolder().Machine == q.Machine {
			return &fault.Error{Kind: fault.Conflict, Where: "machine " + q.Machine, What: "workload " + l.Workload + " runs on it",
				Next: "rerack workload release " + l.Workload}
		}
	}
	return err
}

// volumeIsFree makes sure that nobody loses what is in the volume: no workload runs on it, and its array
// lets nobody in but this machine.
func (a *Activities) volumeIsFree(ctx context.Context, t *topology.Topology, q state.CaptureRequest) error {
	v, m := t.Volumes[q.Volume], t.Machines[q.Machine]
	leases, err := state.List[state.Lease](ctx, a.Store, state.LeasesAt)
	if err != nil {
		return err
	}
	for _, l := range leases {
		uses := func(u topology.VolumeUse) bool { return u.Volume == q.Volume }
		if at := l.LastHolder(); at.Machine != "" && slices.ContainsFunc(t.Workloads[l.Workload].Spec.Volumes, uses) {
			return &fault.Error{Kind: fault.Conflict, Where: "volume " + q.Volume, What: "workload " + l.Workload + " uses it", Evidence: "on " + at.Machine,
				Next: "rerack workload release " + l.Workload}
		}
	}
	for _, name := range t.Names(topology.KindWorkload) {
		uses := func(u topology.VolumeUse) bool { return u.Volume == q.Volume }
		if !slices.ContainsFunc(t.Workloads[name].Spec.Volumes, uses) {
			continue
		}
		if run, err := a.activeOn(ctx, "workload/"+name); err != nil || run != "" {
			return orConflict(err, "volume "+q.Volume, "workload "+name+" is being started or stopped on it", run)
		}
	}
	d, err := a.Devices.Array(ctx, t.Arrays[v.Spec.Array])
	if err != nil {
		return err
	}
	masks, err := d.Masks(ctx)
	if err != nil {
		return fault.Wrap(err, "read masks", "array "+v.Spec.Array)
	}
	i := slices.IndexFunc(masks, func(x san.Mask) bool { return x.Volume == arrayName(v) })
	if i < 0 {
		return &fault.Error{Kind: fault.NotFound, Where: "array " + v.Spec.Array, What: "it has no volume " + arrayName(v), Next: "make it at the array"}
	}
	for _, who := range masks[i].Initiators {
		if who != m.Spec.StorageAddress.String() {
			return &fault.Error{Kind: fault.Conflict, Where: "volume " + q.Volume, What: "it is masked to another", Evidence: strings.Join(masks[i].Initiators, ", "),
				Next: "take it from whoever that is, at the array"}
		}
	}
	return nil
}

// notFilled makes sure that no disk is being copied into a volume of a workload that is to start. Of a
// placement and a capture that begin at once, at least one sees the other: both are written down before they look.
func (a *Activities) notFilled(ctx context.Context, w topology.Workload) error {
	for _, use := range w.Spec.Volumes {
		if run, err := a.activeOn(ctx, "volume/"+use.Volume); err != nil || run != "" {
			return orConflict(err, "volume "+use.Volume, "a disk is being copied into it", run)
		}
	}
	return nil
}

// activeOn is the run under way on a domain.
func (a *Activities) activeOn(ctx context.Context, domain string) (string, error) {
	d, _, err := state.Load[state.Domain](ctx, a.Store, state.DomainsAt+domain)
	return d.Active, err
}

func orConflict(err error, where, what, run string) error {
	if err != nil {
		return err
	}
	return &fault.Error{Kind: fault.Conflict, Where: where, What: what, Evidence: "run " + run, Next: "wait for it, or cancel it"}
}
