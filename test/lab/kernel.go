package lab

import (
	"context"
	"sync"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/pxe/bootclient"
)

// runSoftware does what the loaded kernel would.
func (b *box) runSoftware(ctx context.Context, out bootclient.Outcome) {
	system, ok := b.lab.systemOf(out, b.arch)
	p, err := parseParams(out.Cmdline)
	switch {
	case !ok:
		b.panics(ctx, "kernel or initrd is damaged, or for another architecture")
	case err != nil:
		b.panics(ctx, err.Error())
	case b.machine.fault().panics:
		b.panics(ctx, "fault")
	case system == systemHyper && b.vm == "":
		b.runHypervisor(ctx, p)
	case system == systemCopy && b.vm == "":
		b.runCapture(ctx, p)
	default:
		b.runWorkload(ctx, p)
	}
}

// panics is a system that stands still until somebody turns the power off.
func (b *box) panics(ctx context.Context, why string) {
	b.log.Warn("kernel panic", "why", why)
	b.enter("panic")
	<-ctx.Done()
}

// runWorkload is the life of an operating system: it takes its identity, opens its volumes, reports,
// and writes until the power goes.
func (b *box) runWorkload(ctx context.Context, p params) {
	b.enter("kernel")
	if err := b.lab.world.Start(b.life, b.vm, p.Workload, p.Epoch); err != nil {
		b.log.Debug("did not start", "err", err)
		return
	}
	home := b.reporter(p.PhoneHome)
	mute := home != nil && b.machine.fault().noPhoneHome
	if home != nil && !mute {
		b.enter("phone-home")
		if !home.phoneHome(ctx, "") {
			<-ctx.Done()
			return
		}
	}
	b.enter("volumes")
	volumes := b.volumes(p)
	defer func() {
		for _, v := range volumes {
			v.close()
		}
	}()
	if b.machine.fault().noDisk || !openAll(ctx, volumes) {
		<-ctx.Done()
		return
	}
	// What never reported was never taken over: it may be stopped again.
	if err := b.lab.world.Serve(b.life, b.vm, !mute); err != nil {
		return
	}
	b.enter("running")
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, v := range volumes {
		wg.Go(func() { b.writeAll(ctx, v, p) })
	}
	if home != nil && !mute {
		home.healthy(ctx)
	}
	<-ctx.Done()
}

// writeAll writes the box's stamp to one volume again and again.
func (b *box) writeAll(ctx context.Context, v volumeIO, p params) {
	s := stamp{Machine: b.machine.name, VM: b.vm, Workload: p.Workload, Epoch: p.Epoch}
	tick := time.NewTicker(b.lab.cfg.WriteEvery)
	defer tick.Stop()
	for {
		s.Sequence++
		block, err := s.block()
		if err != nil {
			b.log.Error("cannot write", "err", err)
			return
		}
		if err := v.write(ctx, block); err != nil && ctx.Err() == nil {
			b.log.Debug("write failed", "err", err)
			v.close()
			if !openAll(ctx, []volumeIO{v}) {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// volumes are the workload's, without those it only reads.
func (b *box) volumes(p params) []volumeIO {
	disks := b.disks
	if b.vm == "" {
		disks = p.Volumes
	}
	readOnly := map[string]bool{}
	for _, u := range b.lab.topo.Workloads[p.Workload].Spec.Volumes {
		readOnly[u.Volume] = u.ReadOnly
	}
	var out []volumeIO
	for _, d := range disks {
		if d.Volume == "" { // from the command line, which names no secret: a system keeps its own
			d.Volume = b.lab.plan.targets[topology.IQN(d.Target)]
			if own, ok := b.lab.diskOf(d.Volume); ok {
				d.Login = own.Login
			}
		}
		switch {
		case readOnly[d.Volume]:
		case d.ISCSI:
			out = append(out, &iscsiVolume{box: b, disk: d, initiator: p.Initiator})
		default:
			out = append(out, &fcVolume{box: b, volume: d.Volume})
		}
	}
	return out
}
