// Package capture is the server's side of copying a machine's disk into a volume: it accepts captures, gives
// the environment on the machine its orders, and makes what it reports durable.
package capture

import (
	"context"
	"encoding/hex"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/bootplane"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/capture"
	"rerack.dev/rerack/pxe/ipxe"
)

// Desk implements httpboot's side of a capture.
type Desk struct {
	Store store.Store
	// CHAP resolves the name of a volume's secret; without it no volume may have one.
	CHAP func(ctx context.Context, name string) (ipxe.Login, error)
	Now  func() time.Time
}

// Orders tells the environment of a boot what to do, from where its capture stands.
func (d *Desk) Orders(ctx context.Context, by pxe.Caller) (capture.Orders, error) {
	c, err := d.of(ctx, by)
	if err != nil {
		return capture.Orders{}, err
	}
	o := capture.Orders{Disk: c.Disk, Portals: c.Portals, Target: c.Target, LUN: uint16(c.LUN), Initiator: c.Initiator, Source: c.Source,
		ChunkBytes: c.ChunkBytes, Size: c.Size, State: standing(c)}
	if c.CHAP == "" {
		return o, nil
	}
	if d.CHAP == nil {
		return o, &fault.Error{Kind: fault.Unsupported, Where: "capture " + c.Run, What: "resolve secret " + c.CHAP}
	}
	l, err := d.CHAP(ctx, c.CHAP)
	o.User, o.Secret = l.User, l.Secret.Reveal()
	return o, fault.Wrap(err, "resolve secret "+c.CHAP, "capture "+c.Run)
}

// Report makes a report durable and returns where the capture stands then.
func (d *Desk) Report(ctx context.Context, by pxe.Caller, r capture.Report) (capture.State, error) {
	if err := r.Validate(); err != nil {
		return capture.State{}, err
	}
	c, err := d.of(ctx, by)
	if err != nil {
		return capture.State{}, err
	}
	rep := state.CaptureReport{Size: r.Size, Stage: string(r.Stage), First: r.First, Hash: r.Hash, SHA256: r.SHA256}
	for _, s := range r.Digests {
		b, err := hex.DecodeString(s)
		if err != nil { // Validate has looked
			return capture.State{}, fault.Wrap(err, "read digest", "report")
		}
		rep.Digests = append(rep.Digests, b)
	}
	if f := r.Failure; f != nil {
		rep.Kind, rep.Reason = fault.ParseKind(f.Kind).String(), f.Text
		if rep.Reason == "" {
			rep.Reason = "the environment does not say why"
		}
	}
	if c, err = state.Advance(ctx, d.Store, c.Run, rep, d.Now()); err != nil {
		return capture.State{}, err
	}
	if c.Stage == state.CaptureFailed && r.Failure == nil {
		return capture.State{}, &fault.Error{Kind: fault.Unsafe, Where: "capture " + c.Run, What: "it has failed", Evidence: c.Reason}
	}
	return standing(c), nil
}

func standing(c state.Capture) capture.State {
	return capture.State{Stage: capture.Stage(c.Stage), Next: c.Next, Hash: c.Hash}
}

// of finds the capture that a boot is for. It returns fault.Stale when the boot is over.
func (d *Desk) of(ctx context.Context, by pxe.Caller) (state.Capture, error) {
	b, rev, err := state.Load[state.Boot](ctx, d.Store, state.BootsAt+by.Machine)
	if err != nil {
		return state.Capture{}, err
	}
	if rev == 0 || !b.Capture || b.Epoch != by.Epoch || bootplane.BootOf(b) != by.Run || b.Nonce == "" {
		return state.Capture{}, &fault.Error{Kind: fault.Stale, Where: "machine " + by.Machine, What: "capture", Evidence: "its boot is over, or for something else"}
	}
	c, rev, err := state.Load[state.Capture](ctx, d.Store, state.CapturesAt+b.Run)
	if err == nil && rev == 0 {
		err = &fault.Error{Kind: fault.NotFound, What: "no such capture", Where: b.Run}
	}
	return c, err
}
