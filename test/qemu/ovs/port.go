package ovs

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"sync"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/qemu/vswitch"
)

// Port is a port of a switch: a TAP device, seen from the cable.
type Port struct {
	name string
	tap  *tap
	use  sync.Mutex // held by what is plugged in
}

// Name is the switch's and the port's.
func (p *Port) Name() string { return p.name }

// SetLink gives the port a carrier or takes it.
func (p *Port) SetLink(up bool) error {
	return fault.Wrap(p.tap.setCarrier(up), "set the carrier", "port "+p.name)
}

// Serve plugs a stream of frames into the port, as vswitch.Port.Serve does: until ctx ends, the far end is
// gone, or the switch is closed, all nil; fault.Invalid when it sends what is no frame, and fault.Busy when
// something else is plugged in. The stream is closed in every case.
func (p *Port) Serve(ctx context.Context, c net.Conn) error {
	if !p.use.TryLock() {
		return errors.Join(&fault.Error{Kind: fault.Busy, Where: "port " + p.name, What: "connect", Evidence: "something else is plugged in"}, c.Close())
	}
	defer p.use.Unlock()
	p.tap.drop() // what was sent to nobody
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	var out sync.WaitGroup
	out.Go(func() {
		defer c.Close()
		buf := make([]byte, vswitch.MaxFrame)
		for {
			n, err := p.tap.Read(buf)
			if err != nil {
				return
			}
			if err := vswitch.WriteFrame(c, buf[:n]); err != nil {
				return
			}
		}
	})
	err := vswitch.ReadFrames(bufio.NewReaderSize(c, 64<<10), func(f []byte) {
		_, _ = p.tap.Write(f) // what a device without a listener does not take is lost, as on any wire
	})
	_ = c.Close()
	p.tap.interrupt()
	out.Wait()
	p.tap.resume()
	if fault.Is(err, fault.Invalid) {
		return fault.Wrap(err, "read frames", "port "+p.name)
	}
	return nil
}

// Plug is where a stream of frames can be plugged in.
type Plug interface {
	Serve(ctx context.Context, c net.Conn) error
}

// Cable connects two ports until ctx ends.
func Cable(ctx context.Context, a, b Plug) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- b.Serve(ctx, far)
		cancel() // neither end outlives the other
	}()
	err := a.Serve(ctx, near)
	cancel()
	err = errors.Join(err, <-ended)
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
