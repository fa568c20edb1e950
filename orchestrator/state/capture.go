package state

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/store"
)

// Keys of captures: the record of a run, and pages of chunk digests under its name.
const (
	CapturesAt = "capture/"
	chunksAt   = "capture-chunks/"
)

// Stages of a Capture, in their order; the first two are those of package pxe/capture.
const (
	CaptureCopy   = "copy"
	CaptureVerify = "verify"
	CaptureDone   = "done"
	CaptureFailed = "failed"
)

// pageChunks is how many digests a page holds: a report touches two pages at most.
const pageChunks = 256

const digestSize = 32 // SHA-256

// CaptureRequest asks for a copy of a machine's local disk.
type CaptureRequest struct {
	Machine  string `json:"machine"`
	Disk     string `json:"disk"` // wwn:... or serial:...
	Volume   string `json:"volume"`
	Image    string `json:"image,omitempty"` // default: the only one of type capture
	PowerOff bool   `json:"powerOff,omitempty"`
}

// Capture is the copy of a machine's local disk into a volume: what is wanted, and what is proven.
type Capture struct {
	Run string `json:"run"`
	CaptureRequest
	ChunkBytes int64 `json:"chunkBytes"`

	// Of the volume, as the topology had it when the run began.
	Portals   []string `json:"portals,omitempty"`
	Target    string   `json:"target,omitempty"`
	LUN       int      `json:"lun,omitempty"`
	CHAP      string   `json:"chap,omitempty"` // name of the secret
	Source    string   `json:"source,omitempty"`
	Initiator string   `json:"initiator,omitempty"`

	Stage    string    `json:"stage"`
	Size     int64     `json:"size,omitempty"` // bytes; 0 until the disk was found
	Next     int64     `json:"next"`           // chunks before it are proven in this stage
	Hash     []byte    `json:"hash,omitempty"` // state of the whole disk's digest before Next
	SHA256   string    `json:"sha256,omitempty"`
	Kind     string    `json:"kind,omitempty"` // of the failure
	Reason   string    `json:"reason,omitempty"`
	Attempts int       `json:"attempts,omitempty"` // times the environment was booted
	Began    time.Time `json:"began,omitzero"`     // when it first reported
	Updated  time.Time `json:"updated,omitzero"`   // when it last reported
	Ended    time.Time `json:"ended,omitzero"`     // done or failed
}

// Chunks is how many chunks the disk has.
func (c *Capture) Chunks() int64 {
	if c.ChunkBytes <= 0 {
		return 0
	}
	return (c.Size + c.ChunkBytes - 1) / c.ChunkBytes
}

// Proven is how many bytes are proven in this stage.
func (c *Capture) Proven() int64 { return min(c.Next*c.ChunkBytes, c.Size) }

// CaptureReport is what an environment has done since its last report.
type CaptureReport struct {
	Size    int64
	Stage   string
	First   int64
	Digests [][]byte // of 32 bytes
	Hash    []byte
	SHA256  string
	Kind    string // of a failure, which ends the capture
	Reason  string
}

// Advance writes a report down: the digests of copied chunks and the place behind them in one transaction,
// or the place alone when chunks that were read back have the digests they were copied with. A report that
// came before, and whose answer was lost, is answered the same again. Errors: Conflict (it does not begin
// where the capture stands; the disk changed its size; the capture has ended).
func Advance(ctx context.Context, s store.Store, run string, rep CaptureReport, now time.Time) (Capture, error) {
	for {
		c, err := advance(ctx, s, run, rep, now)
		if !fault.Is(err, fault.Conflict) || !isRace(err) {
			return c, err
		}
	}
}

// race marks a conflict of two writers, as against one with what is written.
type race struct{ error }

func isRace(err error) bool {
	_, ok := err.(race)
	return ok
}

// Unwrap lets the kind of the error through.
func (r race) Unwrap() error { return r.error }

func advance(ctx context.Context, s store.Store, run string, rep CaptureReport, now time.Time) (Capture, error) {
	c, rev, err := Load[Capture](ctx, s, CapturesAt+run)
	if err != nil {
		return c, err
	}
	bad := func(what, evidence string) (Capture, error) {
		return c, &fault.Error{Kind: fault.Conflict, Where: "capture " + run, What: what, Evidence: evidence}
	}
	end := rep.First + int64(len(rep.Digests))
	switch {
	case rev == 0:
		return c, &fault.Error{Kind: fault.NotFound, What: "no such capture", Where: run}
	case c.Stage == CaptureFailed:
		return bad("it has failed", c.Reason)
	case rep.Reason != "":
		c.fail(rep.Kind, rep.Reason, now)
		return c, putCapture(ctx, s, c, rev)
	case c.Size != 0 && c.Size != rep.Size:
		return bad("the disk has changed", fmt.Sprintf("%d bytes, before %d", rep.Size, c.Size))
	case rep.Size <= 0:
		return bad("size of the disk", fmt.Sprint(rep.Size))
	case len(rep.Digests) > pageChunks:
		return bad("digests", fmt.Sprint(len(rep.Digests)))
	}
	c.Size = rep.Size
	if end > c.Chunks() {
		return bad("chunks", fmt.Sprintf("%d, the disk has %d", end, c.Chunks()))
	}
	known := stage(rep.Stage) < stage(c.Stage) || rep.Stage == c.Stage && end <= c.Next
	if !known && (rep.Stage != c.Stage || rep.First != c.Next) {
		return bad("it stands elsewhere", fmt.Sprintf("at %s %d, the report begins at %s %d", c.Stage, c.Next, rep.Stage, rep.First))
	}
	pages, err := loadPages(ctx, s, run, rep.First, end)
	if err != nil {
		return c, err
	}
	if known || rep.Stage == CaptureVerify {
		if i, same := pages.compare(rep); !same && known {
			return bad("it was reported before, with another digest", fmt.Sprintf("chunk %d", i))
		} else if !same {
			lba := i * c.ChunkBytes / 512
			c.fail(fault.Unverified.String(), fmt.Sprintf("digest mismatch: the volume does not hold what was copied to chunk %d, %d bytes from LBA %d on",
				i, min(c.ChunkBytes, c.Size-i*c.ChunkBytes), lba), now)
			return c, putCapture(ctx, s, c, rev)
		}
	}
	if c.Began.IsZero() {
		c.Began = now
	}
	c.Updated = now
	if known {
		return c, putCapture(ctx, s, c, rev)
	}
	c.Next, c.Hash = end, rep.Hash
	ops := []store.Op{}
	if rep.Stage == CaptureCopy {
		ops = pages.put(rep)
	}
	switch {
	case c.Next < c.Chunks():
	case c.Stage == CaptureCopy:
		c.Stage, c.Next, c.Hash = CaptureVerify, 0, nil
	case rep.SHA256 == "":
		return bad("it ends without the digest of the whole disk", "")
	default:
		c.Stage, c.SHA256, c.Hash, c.Ended = CaptureDone, rep.SHA256, nil, now
	}
	return c, putCapture(ctx, s, c, rev, ops...)
}

// stage numbers the stages in their order.
func stage(s string) int { return slices.Index([]string{CaptureCopy, CaptureVerify, CaptureDone}, s) }

func (c *Capture) fail(kind, reason string, now time.Time) {
	c.Stage, c.Kind, c.Reason, c.Ended, c.Updated = CaptureFailed, kind, reason, now, now
}

func putCapture(ctx context.Context, s store.Store, c Capture, rev uint64, more ...store.Op) error {
	b, err := Encode(c)
	if err != nil {
		return err
	}
	err = s.Txn(ctx, append(more, store.PutIf(CapturesAt+c.Run, b, rev))...)
	if fault.Is(err, fault.Conflict) {
		return race{err}
	}
	return fault.Wrap(err, "write down a report", "capture "+c.Run)
}

// digestPages are the pages that some chunks are on.
type digestPages struct {
	run  string
	data map[int64][]byte
}

func pageKey(run string, n int64) string { return fmt.Sprintf("%s%s/%08d", chunksAt, run, n) }

func loadPages(ctx context.Context, s store.Store, run string, first, end int64) (digestPages, error) {
	p := digestPages{run, map[int64][]byte{}}
	for n := first / pageChunks; n*pageChunks < end; n++ {
		b, _, err := Load[[]byte](ctx, s, pageKey(run, n))
		if err != nil {
			return p, err
		}
		p.data[n] = b
	}
	return p, nil
}

// compare returns the first chunk whose digest is not the one that is written down.
func (p digestPages) compare(rep CaptureReport) (chunk int64, same bool) {
	for i, d := range rep.Digests {
		n := rep.First + int64(i)
		page, at := p.data[n/pageChunks], int(n%pageChunks)*digestSize
		if at+digestSize > len(page) || !bytes.Equal(page[at:at+digestSize], d) {
			return n, false
		}
	}
	return 0, true
}

func (p digestPages) put(rep CaptureReport) (ops []store.Op) {
	for i, d := range rep.Digests {
		n := rep.First + int64(i)
		page, at := p.data[n/pageChunks], int(n%pageChunks)*digestSize
		// What a page holds beyond the place where the capture stands counts for nothing.
		p.data[n/pageChunks] = append(page[:min(at, len(page))], d...)
	}
	for n, page := range p.data {
		if b, err := Encode(page); err == nil { // bytes always encode
			ops = append(ops, store.Put(pageKey(p.run, n), b))
		}
	}
	return ops
}

// DropCaptureChunks forgets the digests of a capture that has ended.
func DropCaptureChunks(ctx context.Context, s store.Store, run string) error {
	entries, _, err := s.List(ctx, chunksAt+run+"/")
	if err != nil {
		return fault.Wrap(err, "list digests", run)
	}
	for len(entries) > 0 {
		n := min(len(entries), store.MaxOps)
		var ops []store.Op
		for _, e := range entries[:n] {
			ops = append(ops, store.Delete(e.Key))
		}
		if err := s.Txn(ctx, ops...); err != nil {
			return fault.Wrap(err, "forget digests", run)
		}
		entries = entries[n:]
	}
	return nil
}
