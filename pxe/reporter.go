package pxe

import (
	"context"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// Reporter hands the milestones nobody waits for to the sink. Note never blocks: when the sink is slow
// and the queue full, a milestone is dropped and counted, and comes again with the next packet.
type Reporter struct {
	sink    Milestones
	log     *slog.Logger
	seed    maphash.Seed
	lanes   [lanes]chan note // one machine's always in the same, so that they stay in order
	dropped atomic.Uint64
	failed  atomic.Uint64
}

type note struct {
	m Milestone
	e *Entry
}

const (
	sinkTimeout = 10 * time.Second // of one call of the sink
	lanes       = 8                // calls of the sink at once
)

// NewReporter makes a reporter with room for size milestones.
func NewReporter(sink Milestones, size int, log *slog.Logger) (*Reporter, error) {
	if sink == nil || size < 1 {
		return nil, fault.New(fault.Invalid, "Reporter needs a sink and a queue of at least 1")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Reporter{sink: sink, log: log, seed: maphash.MakeSeed()}
	for i := range r.lanes {
		r.lanes[i] = make(chan note, (size+lanes-1)/lanes)
	}
	return r, nil
}

// Note reports that the machine of e reached k; only the first time within one run and epoch.
func (r *Reporter) Note(e *Entry, k Kind, from netip.Addr, detail string) {
	bit := uint32(1) << k
	if e.state.reported.Or(bit)&bit != 0 {
		return
	}
	if !r.queue(note{e.Milestone(k, from, detail), e}) {
		e.state.reported.And(^bit)
	}
}

// Alarm reports something about the machine of e that a person must know of, and Explain what tells why
// its boot does not get on: both the first, second, fourth, eighth and so on time of one topic within one
// run and epoch, so that a machine which asks every second writes little to the store.
func (r *Reporter) Alarm(e *Entry, t Topic, from netip.Addr, detail string) {
	r.tell(e, KindAlarm, t, from, detail)
}

// Explain is described with Alarm.
func (r *Reporter) Explain(e *Entry, t Topic, from netip.Addr, detail string) {
	r.tell(e, KindNote, t, from, detail)
}

func (r *Reporter) tell(e *Entry, k Kind, t Topic, from netip.Addr, detail string) {
	n := e.state.told[t].Add(1)
	if n&(n-1) != 0 || n == 1 && t == TopicScript { // once is as it should be
		return
	}
	m := e.Milestone(k, from, detail)
	m.Topic, m.Count = t, n
	r.queue(note{m, e})
}

func (r *Reporter) queue(n note) bool {
	select {
	case r.lanes[maphash.String(r.seed, n.m.Machine)%lanes] <- n:
		return true
	default:
		r.dropped.Add(1)
		return false
	}
}

// Milestone makes one of the entry's machine at the present time.
func (e *Entry) Milestone(k Kind, from netip.Addr, detail string) Milestone {
	return Milestone{Machine: e.Intent.Machine, Run: e.Intent.Run, Epoch: e.Intent.Epoch, Kind: k,
		At: time.Now(), From: from, Detail: detail}
}

// Run hands on milestones, those of one machine in order, until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, lane := range r.lanes {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case n := <-lane:
					r.hand(ctx, n)
				}
			}
		})
	}
	wg.Wait()
	return nil
}

func (r *Reporter) hand(ctx context.Context, n note) {
	ctx, cancel := context.WithTimeout(ctx, sinkTimeout)
	defer cancel()
	if err := r.sink.Reached(ctx, n.m); err != nil {
		r.failed.Add(1)
		n.e.state.reported.And(^(uint32(1) << n.m.Kind))
		r.log.Warn("milestone not recorded", "machine", n.m.Machine, "run", n.m.Run, "kind", n.m.Kind.String(), "err", err)
	}
}

// Lost counts the milestones that were dropped because the queue was full, and those the sink refused.
func (r *Reporter) Lost() (dropped, failed uint64) { return r.dropped.Load(), r.failed.Load() }
