package bmc

import (
	"context"
	"sync"
	"time"

	"rerack.dev/rerack/bmc/driver"
)

// PollResult is the outcome of reading one endpoint.
type PollResult struct {
	Endpoint Endpoint
	Reading  driver.Reading // PowerUnknown when Err is set
	Err      error
}

// slowRead is when a read stops counting against Poll's concurrency.
const slowRead = 250 * time.Millisecond

// Poll reads the power of many BMCs and hands each result to each, one at a time, as it comes. It returns
// when all are in: after PollTimeout at the latest for boxes that hang.
//
// concurrency bounds the reads that are making progress (default 64). A read that takes longer than
// 250 ms gives its place away and goes on by itself, so that hanging boxes do not delay the others,
// however many they are.
func (f *Fleet) Poll(ctx context.Context, eps []Endpoint, concurrency int, each func(PollResult)) {
	if concurrency <= 0 {
		concurrency = 64
	}
	var (
		places  = make(chan struct{}, concurrency)
		results = make(chan PollResult)
		wg      sync.WaitGroup
	)
	go func() {
		for _, ep := range eps {
			places <- struct{}{}
			wg.Go(func() { results <- f.pollOne(ctx, ep, places) })
		}
		wg.Wait()
		close(results)
	}()
	for r := range results {
		each(r)
	}
}

func (f *Fleet) pollOne(ctx context.Context, ep Endpoint, places chan struct{}) PollResult {
	leave := sync.OnceFunc(func() { <-places })
	slow := time.AfterFunc(slowRead, leave)
	defer func() {
		slow.Stop()
		leave()
	}()
	ctx, cancel := context.WithTimeout(ctx, f.cfg.PollTimeout)
	defer cancel()
	r, err := f.Client(ep).power(ctx, f.cfg.PollTimeout*9/10)
	return PollResult{Endpoint: ep, Reading: r, Err: err}
}
