package workflows

import (
	"context"
	"log/slog"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	hypervisor "rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	san "rerack.dev/rerack/sanzoning/driver"
)

// Activities does what workflows decide. Its methods are safe to repeat: each looks at the store and
// the device first and changes only what differs. Secrets are resolved behind Devices, never passed.
type Activities struct {
	Store    store.Store
	Topology func() *topology.Topology // the current revision
	// Revisions are what runs go by: each by the one that it was opened with.
	Revisions Revisions
	Devices   Devices
	Observer  Observer
	Probe     Prober
	// CheckImage reads a file of an image, by its digest, and compares its content. Nil checks nothing.
	CheckImage func(ctx context.Context, digest string) error
	Now        func() time.Time
	Log        *slog.Logger
}

// Revisions are the applied topologies. None of them ever changes.
type Revisions interface {
	// Present returns the newest one that the store has, and its number.
	Present(ctx context.Context) (int, *topology.Topology, error)
	// At returns the one with a number.
	At(ctx context.Context, revision int) (*topology.Topology, error)
}

// Devices opens what the topology names. Implementations keep sessions, queue per device and refuse
// stale epochs; closing is theirs.
type Devices interface {
	Machine(ctx context.Context, m topology.Machine) (MachineControl, error)
	Switch(ctx context.Context, s topology.Switch) (Switch, error)
	Fabric(ctx context.Context, f topology.Fabric) (Fabric, error)
	Array(ctx context.Context, a topology.Array) (Array, error)
	Host(ctx context.Context, machine string, h state.Host) (hypervisor.Host, error)
}

// MachineControl is one machine's power and boot device, every change read back.
type MachineControl interface {
	// Power reads the present state.
	Power(ctx context.Context) (bmc.Reading, error)
	// Off powers off if needed and returns the consecutive off readings, gap apart (rule F3), or the
	// error that kept it from being certain.
	Off(ctx context.Context, readings int, gap time.Duration) ([]bmc.Reading, error)
	// On sets the next boot, reads it back, powers on and returns when on was read. A power-on that is
	// not seen is sent again every resend.
	On(ctx context.Context, boot bmc.BootOverride, resend time.Duration) error
	// StayOff makes the machine stay off when mains power returns, where its BMC can.
	StayOff(ctx context.Context) error
}

// Switch, Fabric and Array are the parts of the device contracts that activities use.
type (
	Switch interface {
		Ports(ctx context.Context) ([]fabric.Port, error)
		Apply(ctx context.Context, c fabric.Change) (fabric.Result, error)
	}
	Fabric interface {
		Apply(ctx context.Context, c san.ZoneChange) (san.ZoneResult, error)
	}
	Array interface {
		Masks(ctx context.Context) ([]san.Mask, error)
		Sessions(ctx context.Context) ([]san.Session, error)
		Apply(ctx context.Context, c san.MaskChange) (san.MaskResult, error)
	}
)

// Observer watches the data centre and judges what it sees.
type Observer interface {
	// Judge returns the verdict on a domain now; attestation is a person's statement, made at attested,
	// or empty.
	Judge(ctx context.Context, domain, by, attestation string, attested time.Time) (policies.Verdict, error)
	// SilentSwitches lists switches whose management does not answer.
	SilentSwitches() map[string]bool
	// PowerOf returns the last reading of a machine's power; unknown when there is none.
	PowerOf(machine string) bmc.Reading
	// LinkOf returns what the machine's switch ports say of its carrier.
	LinkOf(machine string) policies.Sign
}

// Prober checks that a workload serves, from inside its own network.
type Prober interface {
	Probe(ctx context.Context, site topology.Site, address string, h topology.Health) error
}

// run loads the record of a run that must exist.
func (a *Activities) run(ctx context.Context, id string) (state.Run, error) {
	r, rev, err := state.Load[state.Run](ctx, a.Store, state.RunsAt+id)
	if err == nil && rev == 0 {
		err = &fault.Error{Kind: fault.NotFound, What: "no such run", Where: id}
	}
	return r, err
}

// declared is the topology that a run goes by, whatever was applied since: half a run on one cabling and half
// on another would fence one port and open another.
func (a *Activities) declared(ctx context.Context, id string) (*topology.Topology, error) {
	r, err := a.run(ctx, id)
	if err != nil {
		return nil, err
	}
	return a.topology(ctx, r)
}

// topology is the one of a run. One that is not opened yet, or was by a version that froze nothing, goes by
// the present one.
func (a *Activities) topology(ctx context.Context, r state.Run) (*topology.Topology, error) {
	if r.Revision == 0 {
		return a.Topology(), nil
	}
	return a.Revisions.At(ctx, r.Revision)
}

func (a *Activities) updateRun(ctx context.Context, id string, change func(*state.Run) error) error {
	_, err := state.Update(ctx, a.Store, state.RunsAt+id, change)
	return toTemporal(err)
}

// result changes one target's record in a run.
func (a *Activities) result(ctx context.Context, run, name string, change func(*state.Result)) error {
	_, err := state.Update(ctx, a.Store, state.ResultsAt+run+"/"+name, func(r *state.Result) error {
		r.Name = name
		if r.Times == nil {
			r.Times = map[string]time.Time{}
		}
		change(r)
		return nil
	})
	return err
}

// holders returns who holds every workload now.
func (a *Activities) holders(ctx context.Context) (map[string]policies.Where, error) {
	leases, err := state.List[state.Lease](ctx, a.Store, state.LeasesAt)
	if err != nil {
		return nil, err
	}
	out := make(map[string]policies.Where, len(leases))
	for _, l := range leases {
		if l.Holder.Machine != "" {
			out[l.Workload] = l.Holder
		}
	}
	return out, nil
}

func (a *Activities) machines(ctx context.Context) (map[string]state.Machine, error) {
	list, err := state.List[state.Machine](ctx, a.Store, state.MachinesAt)
	if err != nil {
		return nil, err
	}
	out := make(map[string]state.Machine, len(list))
	for _, m := range list {
		out[m.Machine] = m
	}
	return out, nil
}
