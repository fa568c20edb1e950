package vswitch

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"

	"rerack.dev/rerack/internal/fault"
)

// lengthLen is the size of the big-endian length before each frame on a stream, in bytes. QEMU's
// net/stream.c writes and reads them so.
const lengthLen = 4

// Serve plugs a stream into the port and passes frames until ctx ends or the far end is gone, both nil,
// or it sends what is no frame, which is fault.Invalid. The stream is closed in every case. QEMU's end
// of it is -netdev stream.
func (p *Port) Serve(ctx context.Context, c net.Conn) error {
	w, err := p.Connect()
	if err != nil {
		return errors.Join(err, c.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // ends both directions
	defer stop()
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer c.Close() // a far end that takes nothing more sends nothing more of use
		writeFrames(c, w.Frames())
	}()
	err = ReadFrames(bufio.NewReaderSize(c, 64<<10), w.Send)
	w.Close()
	_ = c.Close() // the writer may be waiting in it
	<-written
	if fault.Is(err, fault.Invalid) {
		return fault.Wrap(err, "read frames", "port "+p.name)
	}
	return nil
}

// ReadFrames reads frames from a stream, each after its length, until the stream ends. A length that no frame has means that the stream is not one
// of frames: nothing after it can be trusted, and fault.Invalid is returned.
func ReadFrames(r io.Reader, use func([]byte)) error {
	buf := make([]byte, MaxFrame)
	for {
		var head [lengthLen]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 || n > MaxFrame {
			return fault.Newf(fault.Invalid, "frame of %d bytes; the longest is %d", n, MaxFrame)
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return err
		}
		use(buf[:n])
	}
}

func writeFrames(c io.Writer, frames <-chan []byte) {
	for f := range frames {
		if err := WriteFrame(c, f); err != nil {
			return
		}
	}
}

// WriteFrame writes one frame after its length.
func WriteFrame(c io.Writer, f []byte) error {
	var head [lengthLen]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(f)))
	b := net.Buffers{head[:], f}
	_, err := b.WriteTo(c)
	return err
}
