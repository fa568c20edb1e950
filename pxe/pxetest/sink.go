package pxetest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/pxe"
)

// TestMilestones holds a sink to the contract of pxe.Milestones. open returns a view on one durable
// record: calls after the first stand for a restart, or for a second boot server. The boots it is told
// of are of machines m1 to m9, run r/1, epoch 4; a sink that wants records of them first makes them in
// open.
func TestMilestones(t *testing.T, open func(t *testing.T) pxe.Milestones) {
	at := func(machine string, k pxe.Kind, nonce string) pxe.Milestone {
		return pxe.Milestone{Machine: machine, Run: "r/1", Epoch: 4, Kind: k, Nonce: nonce}
	}
	const a, b = "nonce-a-0123456789", "nonce-b-0123456789"
	expect := func(t *testing.T, s pxe.Milestones, m pxe.Milestone, want error) {
		t.Helper()
		err := s.Reached(t.Context(), m)
		if want == nil && err != nil {
			t.Fatalf("%s of %s with %s: %v", m.Kind, m.Machine, m.Nonce, err)
		}
		if want != nil && !fault.Is(err, fault.KindOf(want)) {
			t.Fatalf("%s of %s with %s: got %v, want %v", m.Kind, m.Machine, m.Nonce, err, fault.KindOf(want))
		}
	}
	conflict := fault.New(fault.Conflict, "")
	t.Run("first nonce wins", func(t *testing.T) {
		s := open(t)
		expect(t, s, at("m1", pxe.KindPhoneHome, a), nil)
		expect(t, s, at("m1", pxe.KindPhoneHome, a), nil)
		expect(t, s, at("m1", pxe.KindPhoneHome, b), conflict)
		expect(t, open(t), at("m1", pxe.KindPhoneHome, b), conflict)
		expect(t, open(t), at("m1", pxe.KindPhoneHome, a), nil)
	})
	t.Run("later reports carry its nonce", func(t *testing.T) {
		s := open(t)
		expect(t, s, at("m2", pxe.KindHealthy, a), conflict)
		expect(t, s, at("m2", pxe.KindPhoneHome, a), nil)
		expect(t, open(t), at("m2", pxe.KindHealthy, b), conflict)
		expect(t, open(t), at("m2", pxe.KindFailed, b), conflict)
		expect(t, open(t), at("m2", pxe.KindHealthy, a), nil)
	})
	t.Run("failure before phone-home", func(t *testing.T) {
		expect(t, open(t), at("m3", pxe.KindFailed, a), nil)
	})
	t.Run("one of many at once", func(t *testing.T) {
		s := open(t)
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				err := s.Reached(t.Context(), at("m4", pxe.KindPhoneHome, fmt.Sprintf("nonce-%02d-0123456789", i)))
				if err == nil {
					won.Add(1)
				} else if !fault.Is(err, fault.Conflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d phone-homes of one token were accepted", won.Load())
		}
	})
}
