package lab

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/sanzoning/tgt"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/target"
	"rerack.dev/rerack/test/world"
)

// realArray is a tgtd of its own with real disks. Who manages it comes through a socket of the lab's, so that
// the world learns of every rule, and so that the array can be as dead as the world says.
type realArray struct {
	lab    *Lab
	name   string
	daemon *target.Daemon
	direct *tgt.Array // past the socket in front
	front  net.Listener
	wg     sync.WaitGroup

	mu                sync.Mutex
	deadFault, hanged bool // asked for by a fault, beside what the world says
	alive, reachable  bool
	changed           chan struct{} // closed when one of these has
	conns             map[net.Conn]struct{}
	calls             int
}

func (l *Lab) isRealArray(a topology.Array) bool {
	return l.real != nil && a.Meta.Labels[RealLabel] == RealQEMU
}

// startRealTgt starts a real tgtd whose boot volumes have a system of their workload on them.
func (l *Lab) startRealTgt(ctx context.Context, name string, spec *topology.ArraySpec) (arraySim, error) {
	volumes, err := l.volumesOf(name, topology.ISCSI)
	if err != nil {
		return nil, err
	}
	dir, err := l.socketDir()
	if err != nil {
		return nil, err
	}
	cfg := target.Config{Dir: filepath.Join(dir, name)}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fault.Wrap(err, "make directory", cfg.Dir)
	}
	for _, v := range volumes {
		vol := l.topo.Volumes[v].Spec
		if vol.LUN != target.LUN {
			return nil, fault.Newf(fault.Unsupported, "volume %s: lun %d: the lab's targets have their disks at LUN %d", v, vol.LUN, target.LUN)
		}
		t := target.Volume{Target: string(vol.Target), Path: l.real.diskPath(v)}
		if err := l.makeDisk(ctx, v, t.Path); err != nil {
			return nil, err
		}
		account, err := l.accountOf(vol)
		if err != nil {
			return nil, err
		}
		t.User, t.Secret = account.User, account.Secret
		if t.Rules = l.initiatorsOf(v); len(t.Rules) > 0 {
			t.Rules = append(t.Rules, epochRule(firstEpoch))
		}
		cfg.Volumes = append(cfg.Volumes, t)
	}
	foreign := target.Volume{Target: foreignTarget, Path: l.real.diskPath("foreign"), Rules: []string{foreignHost}}
	if err := blankDisk(foreign.Path); err != nil {
		return nil, err
	}
	cfg.Volumes = append(cfg.Volumes, foreign)
	a := &realArray{lab: l, name: name, alive: true, reachable: true, changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	if a.daemon, err = target.Start(ctx, cfg); err != nil {
		return nil, err
	}
	l.onClose(a.close)
	if a.direct, err = tgt.New(tgt.Config{Socket: a.daemon.Socket}); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	if a.front, err = lc.Listen(ctx, "unix", filepath.Join(dir, name+".0")); err != nil {
		return nil, fault.Wrap(err, "listen", "array "+name)
	}
	a.wg.Go(a.manage)
	if err := a.tellMasks(ctx); err != nil {
		return nil, err
	}
	spec.Address = "unix:" + a.front.Addr().String()
	return a, l.world.Protect("mask", name, foreignTarget)
}

// makeDisk makes the disk behind a volume: bootable for one that a workload boots from, else empty.
func (l *Lab) makeDisk(ctx context.Context, volume, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(err, "remove old disk", path)
	}
	for _, name := range l.topo.Names(topology.KindWorkload) {
		w := l.topo.Workloads[name].Spec
		if slices.ContainsFunc(w.Volumes, func(u topology.VolumeUse) bool { return u.Boot && u.Volume == volume }) {
			return l.real.installOn(ctx, path, "lab.disk=yes "+l.systemParams(name))
		}
	}
	return blankDisk(path)
}

func blankDisk(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fault.Wrap(err, "make disk", path)
	}
	defer f.Close()
	return fault.Wrap(f.Truncate(image.DiskSize), "make disk", path)
}

func (a *realArray) close() error {
	if a.front != nil {
		_ = a.front.Close() // it is what ends manage
	}
	a.mu.Lock()
	for c := range a.conns {
		_ = c.Close()
	}
	a.mu.Unlock()
	a.wg.Wait()
	return a.daemon.Close()
}

// manage takes management connections, one request each.
func (a *realArray) manage() {
	for {
		c, err := a.front.Accept()
		if err != nil {
			return
		}
		if !a.take(c) {
			_ = c.Close()
			continue
		}
		a.wg.Go(func() {
			defer a.drop(c)
			if err := a.request(c); err != nil {
				a.lab.log.Debug("management request", "array", a.name, "err", err)
			}
		})
	}
}

// take notes a connection, so that it ends with the array. It is false for an array without power.
func (a *realArray) take(c net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.deadFault || !a.alive || a.lab.ctx.Err() != nil {
		return false
	}
	a.conns[c] = struct{}{}
	return true
}

func (a *realArray) drop(c net.Conn) {
	_ = c.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, c)
}

const requestLimit = 30 * time.Second

// request passes one request on, and its answer back.
func (a *realArray) request(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(requestLimit))
	req, _, err := tgtadm.ReadRequest(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(a.lab.ctx, requestLimit)
	defer cancel()
	if !a.answering(ctx) {
		return fault.New(fault.Timeout, "its management does not answer")
	}
	text, err := a.daemon.Call(ctx, req)
	code := tgtadm.Success
	if err != nil {
		var ok bool
		if code, ok = tgtadm.CodeOf(err); !ok {
			return err
		}
	}
	// The world knows what changed before whoever asked does.
	if err := a.tellMasks(ctx); err != nil {
		return err
	}
	return tgtadm.WriteAnswer(c, code, text)
}

// answering waits while the management hangs.
func (a *realArray) answering(ctx context.Context) bool {
	for {
		a.mu.Lock()
		a.calls++
		hang, changed := a.hanged || !a.reachable, a.changed
		a.mu.Unlock()
		if !hang {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// tellMasks tells the world who may reach which volume, where that has changed.
func (a *realArray) tellMasks(ctx context.Context) error {
	masks, err := a.direct.Masks(ctx)
	if err != nil {
		return err
	}
	for _, m := range masks {
		now := world.Mask{Epoch: m.Epoch, Initiators: slices.Clone(m.Initiators)}
		if was, ok := a.lab.world.MaskOf(a.name, m.Volume); ok && was.Epoch == now.Epoch && slices.Equal(was.Initiators, now.Initiators) {
			continue
		}
		if err := a.lab.world.SetMask(a.name, m.Volume, now); err != nil {
			return err
		}
	}
	return nil
}

func (a *realArray) follow(alive, reachable bool) {
	a.set(func() { a.alive, a.reachable = alive, reachable })
}

// set changes what is wrong with the array; one that lost power loses its connections.
func (a *realArray) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
	if a.deadFault || !a.alive {
		for c := range a.conns {
			_ = c.Close()
		}
	}
}

func (a *realArray) fault(what string, s setting) (err error) {
	a.set(func() {
		switch what {
		case "hang":
			a.hanged = s.on
		case "dead":
			a.deadFault = s.on
		case "":
			a.hanged, a.deadFault = false, false
		default:
			err = &fault.Error{Kind: fault.Unsupported, Where: "array " + a.name, What: "fault " + what, Next: "a real array knows hang and dead"}
		}
	})
	return err
}

func (a *realArray) counters() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return map[string]int{"request": a.calls}
}
