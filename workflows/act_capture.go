package workflows

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
	san "rerack.dev/rerack/sanzoning/driver"
)

// captureChunk is what is copied, reported and compared at a time, in bytes.
const captureChunk = 4 << 20

// OpenCapture checks the request, takes an epoch, claims the machine, and writes down what is to be copied
// where.
func (a *Activities) OpenCapture(ctx context.Context, id string) (CaptureScope, error) {
	defer beating(ctx)()
	s, err := a.openCapture(ctx, id)
	return s, toTemporal(err)
}

func (a *Activities) openCapture(ctx context.Context, id string) (CaptureScope, error) {
	var s CaptureScope
	r, err := a.run(ctx, id)
	if err != nil {
		return s, err
	}
	if r.Capture == nil {
		return s, &fault.Error{Kind: fault.Invalid, Where: "run " + id, What: "it does not say what to capture"}
	}
	q := *r.Capture
	s.Request, s.Machine, s.Volume = q, q.Machine, q.Volume
	r, t, err := a.freeze(ctx, r)
	if err != nil {
		return s, err
	}
	if s.Policy, err = a.policy(ctx, r); err != nil {
		return s, err
	}
	if err := a.checkCapture(ctx, t, q); err != nil {
		return s, err
	}
	m, v := t.Machines[q.Machine].Spec, t.Volumes[q.Volume].Spec
	s.Array = v.Array
	for _, nic := range m.NICs {
		s.Switches = append(s.Switches, nic.Switch)
	}
	s.Switches = unique(s.Switches)
	if s.Epoch, err = state.NextEpoch(ctx, a.Store, id); err != nil {
		return s, err
	}
	if err := state.ClaimMachine(ctx, a.Store, q.Machine, state.Claim{Run: id, Epoch: s.Epoch, For: "capture", Since: a.Now()}); err != nil {
		return s, err
	}
	if _, err := state.Update(ctx, a.Store, state.CapturesAt+id, func(c *state.Capture) error {
		if c.Run == id {
			return nil
		}
		*c = state.Capture{Run: id, CaptureRequest: q, ChunkBytes: captureChunk, Stage: state.CaptureCopy, Portals: t.Arrays[v.Array].Spec.Portals,
			Target: string(v.Target), LUN: v.LUN, CHAP: v.CHAP, Source: m.StorageAddress.String(), Initiator: "iqn.2026-01.dev.rerack:capture-" + q.Machine}
		return nil
	}); err != nil {
		return s, err
	}
	return s, a.updateRun(ctx, id, func(r *state.Run) error { r.Epoch = s.Epoch; return nil })
}

// FreeMachine makes sure that the machine is off: it is, or the request says to turn it off.
func (a *Activities) FreeMachine(ctx context.Context, in BootInput, s CaptureScope) (said string, err error) {
	dev, done := atDevices(ctx)
	defer done()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return "", toTemporal(err)
	}
	control, err := a.Devices.Machine(dev, t.Machines[s.Machine])
	if err != nil {
		return "", toTemporal(err)
	}
	now, err := control.Power(dev)
	if err != nil {
		return "", late(ctx, fault.Wrap(err, "read power", "machine "+s.Machine))
	}
	said = "was off"
	if now.State != bmc.PowerOff {
		if !s.Request.PowerOff {
			return "", toTemporal(&fault.Error{Kind: fault.Conflict, Where: "machine " + s.Machine, What: "it is not off", Evidence: string(now.State),
				Next: "shut it down, or ask with --power-off"})
		}
		said = "turned off"
	}
	_, err = control.Off(dev, max(s.Policy.Fencing.OffReadings, 1), s.Policy.Fencing.OffInterval.Or(0))
	return said, late(ctx, fault.Wrap(err, "turn off", "machine "+s.Machine))
}

// StopCaptured turns the machine off that a capture has turned on, and withdraws what it would boot. One that
// another run has taken meanwhile is that run's.
func (a *Activities) StopCaptured(ctx context.Context, in BootInput) error {
	dev, done := atDevices(ctx)
	defer done()
	rec, _, err := state.Load[state.Machine](ctx, a.Store, state.MachinesAt+in.Name)
	if err != nil || rec.Claim == nil || rec.Claim.Run != in.Run {
		return toTemporal(err)
	}
	if err := a.withdrawBoot(ctx, in.Name, func(b state.Boot) bool { return b.Run == in.Run }); err != nil {
		return toTemporal(err)
	}
	r, err := a.run(ctx, in.Run)
	if err != nil {
		return toTemporal(err)
	}
	p, err := a.policy(ctx, r)
	if err != nil {
		return toTemporal(err)
	}
	return late(ctx, fault.Wrap(a.stop(dev, in, p.Fencing), "turn off", "machine "+in.Name))
}

// MaskCapture gives the volume to the machine alone, or takes it from everybody. One that a newer run has
// taken is taken from this machine already.
func (a *Activities) MaskCapture(ctx context.Context, in BootInput, s CaptureScope, give bool) error {
	dev, done := atDevices(ctx)
	defer done()
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return toTemporal(err)
	}
	w := newWiring(t)
	var to []string
	if give {
		to = []string{s.Machine}
	}
	w.grant(t, s.Volume, to, s.Epoch)
	err = a.applyArray(dev, t, s.Array, san.MaskChange{Owner: in.Run, Masks: w.Arrays[s.Array]})
	if !give && fault.Is(err, fault.Stale) {
		return nil
	}
	return late(ctx, err)
}

// PrepareCapture writes what the machine shall boot: each boot has a token of its own.
func (a *Activities) PrepareCapture(ctx context.Context, in BootInput) error {
	defer beating(ctx)()
	return toTemporal(a.prepareCapture(ctx, in))
}

func (a *Activities) prepareCapture(ctx context.Context, in BootInput) error {
	c, rev, err := state.Load[state.Capture](ctx, a.Store, state.CapturesAt+in.Run)
	if err != nil || rev == 0 {
		return fault.Wrap(err, "read", "capture "+in.Run)
	}
	t, err := a.declared(ctx, in.Run)
	if err != nil {
		return err
	}
	img, err := captureImage(t, c.CaptureRequest)
	if err != nil {
		return err
	}
	m := t.Machines[in.Name].Spec
	net := t.Networks[m.Provisioning.Network].Spec
	now := a.Now()
	rec := state.Boot{Name: in.Name, Machine: in.Name, Capture: true, Run: in.Run, Epoch: in.Epoch, Workflow: RecoveryID(in.Run), Reboots: in.Round,
		Hostname: in.Name, Expires: now.Add(in.Limits.Boot), Address: netip.PrefixFrom(m.Provisioning.Address, net.Subnet.Bits()).String(),
		Type: string(img.Spec.Type), Kernel: string(img.Spec.Kernel), Cmdline: img.Spec.Cmdline, Secure: t.HardwareTypes[m.HardwareType].Spec.SecureBoot}
	for _, nic := range m.NICs {
		rec.MACs = append(rec.MACs, string(nic.MAC))
	}
	if net.Gateway.IsValid() {
		rec.Gateway = net.Gateway.String()
	}
	for _, d := range net.DNS {
		rec.DNS = append(rec.DNS, d.String())
	}
	for _, i := range img.Spec.Initrds {
		rec.Initrds = append(rec.Initrds, string(i))
	}
	if err := a.result(ctx, in.Run, in.resultName(), func(r *state.Result) {
		r.Host, r.Where, r.Round = true, policies.Where{Machine: in.Name}, in.Round
		if r.Times["prepared"].IsZero() {
			r.State, r.Times["prepared"] = "booting", now
		}
	}); err != nil {
		return err
	}
	if _, err := state.Update(ctx, a.Store, state.BootsAt+in.Name, func(have *state.Boot) error {
		if have.Epoch > rec.Epoch {
			return &fault.Error{Kind: fault.Stale, Where: "boot record " + rec.Name, What: "a newer run boots it", Evidence: have.Run}
		}
		if have.Run != rec.Run || have.Reboots < rec.Reboots {
			*have = rec
		}
		return nil
	}); err != nil {
		return err
	}
	_, err = state.Update(ctx, a.Store, state.CapturesAt+in.Run, func(c *state.Capture) error {
		c.Attempts = max(c.Attempts, in.Round)
		return nil
	})
	return err
}

// BeginCapture lets the token of a machine that has phoned home be good for as long as the copy may take: it
// is bound to that machine's nonce now.
func (a *Activities) BeginCapture(ctx context.Context, in BootInput) error {
	defer beating(ctx)()
	now := a.Now()
	_, err := state.Update(ctx, a.Store, state.BootsAt+in.Name, func(b *state.Boot) error {
		if b.Run != in.Run || b.Reboots != in.Round || b.Nonce == "" {
			return &fault.Error{Kind: fault.Stale, Where: "boot record " + in.Name, What: "begin the copy", Evidence: "another boot has taken its place"}
		}
		if end := now.Add(captureLimit); b.Expires.Before(end) {
			b.Expires = end
		}
		return nil
	})
	return toTemporal(err)
}

// AwaitCapture waits until the copy is done, and fails when it has failed or nothing was reported for long.
func (a *Activities) AwaitCapture(ctx context.Context, in BootInput) error {
	defer beating(ctx)()
	b, _, err := state.Load[state.Boot](ctx, a.Store, state.BootsAt+in.Name)
	if err != nil {
		return toTemporal(err)
	}
	heard := a.Now()
	// After a crash of this process the machine gets the whole time again: it was us who did not hear it.
	if b.PhonedAt != nil && activity.GetInfo(ctx).Attempt == 1 {
		heard = *b.PhonedAt
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		c, _, err := state.Load[state.Capture](ctx, a.Store, state.CapturesAt+in.Run)
		if err != nil {
			return toTemporal(err)
		}
		switch c.Stage {
		case state.CaptureDone:
			return nil
		case state.CaptureFailed:
			return failed(c)
		}
		if c.Updated.After(heard) {
			heard = c.Updated
		}
		if silent := a.Now().Sub(heard); silent > captureStall {
			return failure(fault.Timeout, "machine %s has reported nothing for %s, at %s of %d bytes", in.Name, silent.Round(time.Second), c.Stage, c.Size)
		}
		activity.RecordHeartbeat(ctx, c.Next)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failed is the end of a capture by its environment's own word: another boot would find the same.
func failed(c state.Capture) error {
	k := fault.ParseKind(c.Kind)
	if k.Retryable() {
		k = fault.Internal
	}
	return temporal.NewNonRetryableApplicationError(c.Reason, k.String(), nil)
}

// EndCapture says what was copied, and forgets the digests of the chunks.
func (a *Activities) EndCapture(ctx context.Context, id string) (string, error) {
	defer beating(ctx)()
	c, _, err := state.Load[state.Capture](ctx, a.Store, state.CapturesAt+id)
	if err != nil {
		return "", toTemporal(err)
	}
	if err := state.DropCaptureChunks(ctx, a.Store, id); err != nil {
		return "", toTemporal(err)
	}
	err = a.result(ctx, id, "host-"+c.Machine, func(r *state.Result) { r.State, r.Reason = "captured", "sha256:"+c.SHA256 })
	took := c.Ended.Sub(c.Began)
	rate := float64(c.Size) / max(took.Seconds(), 0.001) / (1 << 20)
	return fmt.Sprintf("%d bytes of %s on %s are in volume %s, read back and compared, in %s (%.0f MiB/s), sha256:%s",
		c.Size, c.Disk, c.Machine, c.Volume, took.Round(time.Millisecond), rate, c.SHA256), toTemporal(err)
}
