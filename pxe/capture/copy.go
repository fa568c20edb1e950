package capture

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Source is the disk, opened for reading.
type Source interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Target is the volume. WriteAt may leave data in a cache; Sync makes it durable.
type Target interface {
	Size() int64 // bytes
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	Sync(ctx context.Context) error
	Close() error
}

// Ledger makes a report durable and says where the capture stands then. fault.Conflict means that it does
// not stand where the report says.
type Ledger func(ctx context.Context, r Report) (State, error)

// Config of a Run.
type Config struct {
	Orders Orders
	Source Source
	// Open connects to the volume. It is called again when the connection breaks.
	Open   func(ctx context.Context) (Target, error)
	Ledger Ledger
	// Patience is how long the volume may be away before Run gives up; default 10 min.
	Patience time.Duration
	// Every bounds the time between reports; default 3 s.
	Every  time.Duration
	Logger *slog.Logger // default: none
}

// Validate names the first wrong key and fills in the defaults.
func (c *Config) Validate() error {
	if c.Source == nil || c.Open == nil || c.Ledger == nil {
		return fault.New(fault.Invalid, "capture: Source, Open or Ledger is missing")
	}
	if c.Patience == 0 {
		c.Patience = 10 * time.Minute
	}
	if c.Every == 0 {
		c.Every = 3 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c.Orders.Validate()
}

// batch is after how many chunks a report is due at the latest.
const batch = 32

// SectorSize is the unit in which Linux counts the sectors of every disk, in bytes.
const SectorSize = 512

// Run copies the disk to the volume and reads it back, from where the orders say on. A volume that is away
// is connected to again; everything else ends it. Errors: Unsupported (volume too small, or the disk is
// another size than before), Internal with the LBA (the disk cannot be read), those of the ledger.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	r := &runner{c: c, size: c.Source.Size(), state: c.Orders.State}
	if c.Orders.Size != 0 && c.Orders.Size != r.size {
		return &fault.Error{Kind: fault.Conflict, Where: "disk " + c.Orders.Disk, What: "go on with it",
			Evidence: fmt.Sprintf("it has %d bytes and had %d", r.size, c.Orders.Size), Next: "start another capture"}
	}
	if r.size <= 0 {
		return &fault.Error{Kind: fault.Unsupported, Where: "disk " + c.Orders.Disk, What: "it is empty"}
	}
	away := time.Time{}
	for {
		before := r.state
		err := r.session(ctx)
		if err == nil || ctx.Err() != nil || !r.lost {
			return err
		}
		if away.IsZero() || r.state.Next != before.Next || r.state.Stage != before.Stage {
			away = time.Now()
		}
		if time.Since(away) > c.Patience {
			return err
		}
		c.Logger.Warn("the volume is away; connecting again", "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(time.Second, c.Every)):
		}
	}
}

type runner struct {
	c      Config
	size   int64
	state  State
	target Target
	lost   bool // the last error was the connection's
}

// session works over one connection to the volume until the end or an error.
func (r *runner) session(ctx context.Context) (err error) {
	r.lost = true
	if r.target, err = r.c.Open(ctx); err != nil {
		r.lost = fault.KindOf(err).Retryable()
		return err
	}
	defer r.target.Close()
	r.lost = false
	if have := r.target.Size(); have < r.size {
		return &fault.Error{Kind: fault.Unsupported, Where: "volume " + r.c.Orders.Target, What: "volume too small",
			Evidence: fmt.Sprintf("it has %d bytes, the disk %d", have, r.size), Next: "make it larger, or name another"}
	}
	if err := r.report(ctx, Report{Stage: r.state.Stage, First: r.state.Next}); err != nil {
		return err
	}
	for r.state.Stage != Done {
		work := r.copyChunk
		if r.state.Stage == Verify {
			work = r.readBack
		}
		if err := r.pass(ctx, work); err != nil {
			return err
		}
	}
	return nil
}

// chunkFunc handles one chunk of n bytes at off in buf and leaves what it is in buf.
type chunkFunc func(ctx context.Context, buf []byte, off int64) error

// pass works on chunks from where the capture stands to the end of its stage.
func (r *runner) pass(ctx context.Context, work chunkFunc) error {
	stage := r.state.Stage
	chunks := Chunks(r.size, r.c.Orders.ChunkBytes)
	whole, err := r.resumeHash(stage)
	if err != nil {
		return err
	}
	buf := make([]byte, r.c.Orders.ChunkBytes)
	rep, since := Report{Stage: stage, First: r.state.Next}, time.Now()
	for i := r.state.Next; i < chunks; i++ {
		off := i * r.c.Orders.ChunkBytes
		p := buf[:min(int64(len(buf)), r.size-off)]
		if err := work(ctx, p, off); err != nil {
			return err
		}
		sum := sha256.Sum256(p)
		rep.Digests = append(rep.Digests, hex.EncodeToString(sum[:]))
		if whole != nil {
			whole.Write(p)
		}
		if last := i == chunks-1; !last && len(rep.Digests) < batch && time.Since(since) < r.c.Every {
			continue
		}
		if err := r.prove(ctx, rep, whole, i == chunks-1); err != nil {
			return err
		}
		rep, since = Report{Stage: stage, First: i + 1}, time.Now()
	}
	return nil
}

// resumeHash takes up the digest of the whole disk; in the other stage there is none.
func (r *runner) resumeHash(stage Stage) (hash.Hash, error) {
	if stage != Verify {
		return nil, nil
	}
	h := sha256.New()
	if r.state.Next == 0 {
		return h, nil
	}
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(r.state.Hash); err != nil {
		return nil, &fault.Error{Kind: fault.Invalid, What: "go on with the digest of the whole disk", Err: err, Next: "boot the image that began it"}
	}
	return h, nil
}

// prove reports chunks when they are on the volume's own disk, and not in a cache.
func (r *runner) prove(ctx context.Context, rep Report, whole hash.Hash, last bool) error {
	if rep.Stage == Copy {
		if err := r.target.Sync(ctx); err != nil {
			return r.volume(err)
		}
	}
	if whole != nil {
		state, err := whole.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			return fault.Wrap(err, "keep the digest", "whole disk")
		}
		rep.Hash = state
		if last {
			rep.SHA256 = hex.EncodeToString(whole.Sum(nil))
		}
	}
	return r.report(ctx, rep)
}

func (r *runner) report(ctx context.Context, rep Report) error {
	rep.Size = r.size
	s, err := r.c.Ledger(ctx, rep)
	if err != nil {
		return err
	}
	r.state = s
	return nil
}

func (r *runner) copyChunk(ctx context.Context, p []byte, off int64) error {
	if n, err := r.c.Source.ReadAt(p, off); n < len(p) {
		return r.unreadable(p, off, err)
	}
	// A volume that was given out thin stays thin: what is zero on both sides is not written. It is read
	// first, because nobody says what lay in the volume before.
	if zero(p) {
		there := make([]byte, len(p))
		if err := r.target.ReadAt(ctx, there, off); err != nil {
			return r.volume(err)
		}
		if zero(there) {
			return nil
		}
	}
	return r.volume(r.target.WriteAt(ctx, p, off))
}

func (r *runner) readBack(ctx context.Context, p []byte, off int64) error {
	return r.volume(r.target.ReadAt(ctx, p, off))
}

// volume notes whether an error of the volume may go away with another connection.
func (r *runner) volume(err error) error {
	r.lost = err != nil && fault.KindOf(err).Retryable()
	return fault.Wrap(err, "copy", "volume "+r.c.Orders.Target)
}

// unreadable finds the sector at which the disk cannot be read, by reading one by one.
func (r *runner) unreadable(p []byte, off int64, cause error) error {
	for at := off; at < off+int64(len(p)); at += SectorSize {
		one := p[:min(SectorSize, r.size-at)]
		if n, err := r.c.Source.ReadAt(one, at); n < len(one) {
			return &fault.Error{Kind: fault.Internal, Where: "disk " + r.c.Orders.Disk, What: fmt.Sprintf("read error at LBA %d", at/SectorSize), Err: err,
				Next: "replace the disk, or copy what is left of it with a rescue tool"}
		}
	}
	return &fault.Error{Kind: fault.Internal, Where: "disk " + r.c.Orders.Disk,
		What: fmt.Sprintf("read error between LBA %d and %d", off/SectorSize, (off+int64(len(p)))/SectorSize-1), Err: cause, Next: "start again: each sector alone can be read"}
}

func zero(p []byte) bool {
	for len(p) >= 8 {
		if p[0]|p[1]|p[2]|p[3]|p[4]|p[5]|p[6]|p[7] != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
