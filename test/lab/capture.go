package lab

import (
	"context"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe/bootclient"
	"rerack.dev/rerack/pxe/capture"
	"rerack.dev/rerack/sanzoning/iscsi"
)

// Every simulated machine has one local disk for capture: so large, with this serial number, and with content
// that is its own.
const localDiskBytes = 9 << 20

// LocalDisk is the serial number of a simulated machine's local disk.
func LocalDisk(machine string) string { return machine + "-disk0" }

// localDisk implements capture.Source: noise drawn from the machine's name, page by page.
type localDisk struct{ seed uint64 }

func newLocalDisk(machine string) localDisk {
	h := fnv.New64a()
	_, _ = h.Write([]byte(machine)) // never fails
	return localDisk{h.Sum64()}
}

// Size implements capture.Source.
func (localDisk) Size() int64 { return localDiskBytes }

// ReadAt implements capture.Source.
func (d localDisk) ReadAt(p []byte, off int64) (int, error) {
	const page = 4096
	var b [page]byte
	for n := 0; n < len(p); {
		at := off + int64(n)
		var seed [32]byte
		for i := range 8 {
			seed[i], seed[8+i] = byte(d.seed>>(8*i)), byte((at/page)>>(8*i))
		}
		_, _ = rand.NewChaCha8(seed).Read(b[:]) // never fails
		n += copy(p[n:], b[at%page:])
	}
	return len(p), nil
}

// runCapture copies the machine's local disk as the environment of a real one does, over the same protocols.
func (b *box) runCapture(ctx context.Context, p params) {
	b.enter("kernel")
	home := b.reporter(p.PhoneHome)
	if home == nil || b.machine.fault().noPhoneHome || !home.phoneHome(ctx, "") {
		<-ctx.Done()
		return
	}
	b.enter("capture")
	if err := b.capture(ctx, home); err != nil && ctx.Err() == nil {
		b.log.Warn("capture failed", "err", err)
		b.enter("failed")
	} else {
		b.enter("captured")
	}
	<-ctx.Done()
}

func (b *box) capture(ctx context.Context, home *reporter) error {
	o, err := bootclient.Orders(ctx, home.client, home.url, home.nonce)
	if err != nil {
		return err
	}
	ledger := func(ctx context.Context, r capture.Report) (capture.State, error) {
		return bootclient.ReportCapture(ctx, home.client, home.url, home.nonce, r)
	}
	if want, err := capture.ParseDisk(o.Disk); err != nil || want.Serial != LocalDisk(b.machine.name) {
		err = &fault.Error{Kind: fault.NotFound, What: "disk not found: " + o.Disk, Evidence: "the machine has serial:" + LocalDisk(b.machine.name), Err: err}
		_, _ = ledger(ctx, capture.Report{Stage: capture.Copy, Failure: capture.NewFailure(err)})
		return err
	}
	err = capture.Run(ctx, capture.Config{Orders: o, Source: newLocalDisk(b.machine.name), Ledger: ledger, Logger: b.log,
		Open: func(ctx context.Context) (capture.Target, error) { return b.openTarget(ctx, o) }})
	if err != nil && ctx.Err() == nil && !fault.Is(err, fault.Unreachable) && !fault.Is(err, fault.Timeout) {
		_, _ = ledger(ctx, capture.Report{Stage: capture.Copy, Failure: capture.NewFailure(err)})
	}
	return err
}

func (b *box) openTarget(ctx context.Context, o capture.Orders) (capture.Target, error) {
	portal, err := netip.ParseAddrPort(o.Portals[0])
	if err != nil {
		return nil, fault.Wrap(err, "read portal", o.Target)
	}
	v := &iscsiVolume{box: b, initiator: o.Initiator, disk: disk{Portal: portal, Target: o.Target, LUN: int(o.LUN),
		Login: iscsi.Account{User: o.User, Secret: o.Secret}}}
	if err := v.open(ctx); err != nil {
		if fault.Is(err, fault.NotFound) { // masked for a moment, perhaps
			err = &fault.Error{Kind: fault.Unreachable, Err: err}
		}
		return nil, err
	}
	blocks, size, err := v.session.Capacity(ctx, o.LUN)
	if err != nil {
		v.close()
		return nil, err
	}
	return &copyTarget{v, o.LUN, int64(blocks) * int64(size)}, nil
}

// copyTarget implements capture.Target.
type copyTarget struct {
	v    *iscsiVolume
	lun  uint16
	size int64
}

func (t *copyTarget) Size() int64 { return t.size }

func (t *copyTarget) ReadAt(ctx context.Context, p []byte, off int64) error {
	return t.v.session.ReadAt(ctx, t.lun, p, off)
}

func (t *copyTarget) WriteAt(ctx context.Context, p []byte, off int64) error {
	return t.v.session.WriteAt(ctx, t.lun, p, off)
}

func (t *copyTarget) Sync(ctx context.Context) error { return t.v.session.Sync(ctx, t.lun) }
func (t *copyTarget) Close() error                   { t.v.close(); return nil }
