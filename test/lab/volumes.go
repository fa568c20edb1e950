package lab

import (
	"context"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/iscsi"
)

// volumeIO is a way to write to one volume.
type volumeIO interface {
	open(ctx context.Context) error
	write(ctx context.Context, block []byte) error
	close()
}

// ioTimeout bounds one exchange with an array, as an initiator's error recovery would.
const ioTimeout = 5 * time.Second

// openAll opens volumes until all are open. It is false when the power went first.
func openAll(ctx context.Context, volumes []volumeIO) bool {
	for _, v := range volumes {
		for wait := retry(); ; {
			if err := v.open(ctx); err == nil {
				break
			}
			if !wait.wait(ctx) {
				return false
			}
		}
	}
	return ctx.Err() == nil
}

// fcVolume is a volume behind a Fibre Channel fabric, which has no wire here: the world decides.
type fcVolume struct {
	box    *box
	volume string
}

func (v *fcVolume) open(context.Context) error {
	if !v.box.lab.world.CanWrite(v.box.machine.name, v.volume) {
		return &fault.Error{Kind: fault.Unreachable, Where: "volume " + v.volume, What: "open from " + v.box.machine.name}
	}
	return nil
}

func (v *fcVolume) write(_ context.Context, block []byte) error {
	s, ok := readStamp(block)
	if !ok {
		return fault.New(fault.Invalid, "no stamp in the block")
	}
	return v.box.lab.world.Write(v.box.life, s.VM, v.volume, s.Workload, s.Epoch)
}

func (v *fcVolume) close() {}

// iscsiVolume is a volume behind a real iSCSI session.
type iscsiVolume struct {
	box       *box
	disk      disk
	initiator string
	session   *iscsi.Session
}

// defaultInitiator is the name of a machine that was given none.
const defaultInitiator = "iqn.2026-01.dev.rerack.lab:"

func (v *iscsiVolume) open(ctx context.Context) error {
	if v.session != nil {
		return nil
	}
	name := v.initiator
	if name == "" {
		name = defaultInitiator + v.box.machine.name
	}
	ctx, cancel := context.WithTimeout(ctx, ioTimeout)
	defer cancel()
	conn, err := v.box.dialStorage(ctx, v.disk.Portal)
	if err != nil {
		return err
	}
	v.session, err = iscsi.Login(ctx, conn, iscsi.Params{Initiator: name, Target: v.disk.Target, Account: v.disk.Login, Timeout: ioTimeout})
	return err
}

func (v *iscsiVolume) write(ctx context.Context, block []byte) error {
	return v.session.WriteBlock(ctx, uint16(v.disk.LUN), 0, block)
}

// close drops the connection as a machine does that loses power, without a logout.
func (v *iscsiVolume) close() {
	if v.session != nil {
		_ = v.session.Close()
		v.session = nil
	}
}
