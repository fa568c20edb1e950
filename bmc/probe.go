package bmc

import (
	"context"
	"errors"
	"fmt"

	"rerack.dev/rerack/internal/fault"
)

// probe finds the protocol that a box speaks. All are asked at once, so that none adds its time to
// another's, and the best that answers is taken: Redfish, then IPMI, then AMT. The order is by how much
// a protocol can do and read back. AMT is last because nothing that has a server's BMC has AMT as well:
// it decides only about boxes that would else stay unknown, and nobody waits for it when another
// protocol answered.
//
// A box that speaks Redfish but is not trusted ends it: weakening the protocol is not the answer to a
// wrong certificate. The same holds for AMT, which has TLS too.
func probe(ctx context.Context, openers map[Protocol]Opener, ep Endpoint) (Protocol, error) {
	ctx, cancel := context.WithCancel(ctx) // the answers that came too late are not waited for
	defer cancel()
	type answer struct {
		p   Protocol
		err error
	}
	order := []Protocol{Redfish, IPMI, AMT}
	answers := make(chan answer, len(order))
	open := map[Protocol]bool{}
	for _, p := range order {
		if o := openers[p]; o != nil {
			open[p] = true
			go func() { answers <- answer{p, o.Probe(ctx, ep)} }()
		}
	}
	found := map[Protocol]bool{}
	failed := map[Protocol]error{}
	for {
		decided := true // whether every protocol better than the next one in order has said no
		for _, p := range order {
			if decided && found[p] {
				return p, nil
			}
			decided = decided && !open[p]
		}
		if len(open) == 0 {
			return "", nobody(order, failed)
		}
		a := <-answers
		delete(open, a.p)
		k := fault.KindOf(a.err)
		switch {
		case a.err == nil:
			found[a.p] = true
		case a.p == Redfish && k == fault.Timeout: // it may speak Redfish in a moment: that is no reason for IPMI
			return "", &fault.Error{Kind: fault.Unreachable, What: "find out the protocol", Err: a.err}
		case a.p == Redfish && k != fault.Unreachable && k != fault.Unsupported:
			return "", a.err
		default:
			failed[a.p] = a.err
		}
	}
}

// nobody is the error of a box on which no protocol answered.
func nobody(order []Protocol, failed map[Protocol]error) error {
	out := &fault.Error{Kind: fault.Unsupported, What: "find out the protocol"}
	var errs []error
	for _, p := range order {
		err := failed[p]
		if err == nil {
			continue
		}
		errs = append(errs, fmt.Errorf("%s: %w", p, err))
		switch k := fault.KindOf(err); {
		case p == AMT && k != fault.Unreachable && k != fault.Unsupported && k != fault.Timeout:
			out.Kind = k // it is there, and cannot be trusted or used
		case (k == fault.Unreachable || k == fault.Timeout) && out.Kind == fault.Unsupported:
			out.Kind = fault.Unreachable
		}
	}
	out.Err = errors.Join(errs...)
	return out
}
