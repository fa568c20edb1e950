package masking

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// shelf is an array in memory that keeps what it is told, and can lie about it.
type shelf struct {
	mu    sync.Mutex
	masks map[string]driver.Mask
	lie   func(*driver.Mask)
	hold  chan struct{} // when not nil, Apply waits for it
	in    chan struct{}
	inUse int
	worst int
}

func (s *shelf) Masks(context.Context) ([]driver.Mask, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []driver.Mask
	for _, m := range s.masks {
		out = append(out, m)
	}
	return out, nil
}

func (s *shelf) Apply(ctx context.Context, c driver.MaskChange) (driver.MaskResult, error) {
	s.mu.Lock()
	s.inUse++
	s.worst = max(s.worst, s.inUse)
	s.mu.Unlock()
	defer func() { s.mu.Lock(); s.inUse--; s.mu.Unlock() }()
	if s.hold != nil {
		s.in <- struct{}{}
		select {
		case <-s.hold:
		case <-ctx.Done():
			return driver.MaskResult{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var res driver.MaskResult
	for _, m := range c.Masks {
		if s.lie != nil {
			s.lie(&m)
		}
		s.masks[m.Volume] = m
		res.After = append(res.After, m)
	}
	return res, nil
}

func (s *shelf) Sessions(context.Context) ([]driver.Session, error) {
	return []driver.Session{{Volume: "v1", Initiator: "10.0.0.1"}, {Volume: "v1", Initiator: "10.0.0.2"}, {Volume: "other", Initiator: "10.0.0.3"}}, nil
}
func (s *shelf) Close() error { return nil }

func client(t *testing.T, s *shelf, cfg Config) *Client {
	t.Helper()
	s.masks = map[string]driver.Mask{"other": {Volume: "other"}}
	cfg.Array = "a1"
	c, err := New(s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func one(initiators ...string) driver.MaskChange {
	return driver.MaskChange{Owner: "run", Masks: []driver.Mask{{Volume: "v1", Initiators: initiators, Epoch: 1}}}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]driver.MaskChange{
		"empty":          {Owner: "x"},
		"no owner":       {Masks: one().Masks},
		"owner line end": {Owner: "a\nb", Masks: one().Masks},
		"no volume":      {Owner: "x", Masks: []driver.Mask{{Epoch: 1}}},
		"volume spaces":  {Owner: "x", Masks: []driver.Mask{{Volume: "a b", Epoch: 1}}},
		"epoch":          {Owner: "x", Masks: []driver.Mask{{Volume: "v"}}},
		"volume twice":   {Owner: "x", Masks: append(one().Masks, one().Masks...)},
		"initiator":      one("ALL"),
		"network":        one("10.0.0.0/8"),
		"any address":    one("0.0.0.0"),
		"multicast":      one("224.0.0.1"),
		"zone":           one("fe80::1%eth0"),
		"odd spelling":   one("::ffff:10.0.0.1"),
		"upper WWPN":     one("20:00:00:25:B5:00:00:01"),
		"short WWPN":     one("20:00:00:25:b5:00:00"),
		"zero WWPN":      one("00:00:00:00:00:00:00:00"),
		"mixed":          one("10.0.0.1", "20:00:00:25:b5:00:00:01"),
		"mixed, IPv6":    one("fd00::1", "21:11:11:25:b5:11:22:33"),
		"twice":          one("10.0.0.1", "10.0.0.1"),
	} {
		if _, err := Check(c); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	in := one("20:00:00:25:b5:00:00:02", "20:00:00:25:b5:00:00:01")
	out, err := Check(in)
	if err != nil || !slices.IsSorted(out.Masks[0].Initiators) || slices.IsSorted(in.Masks[0].Initiators) {
		t.Fatalf("%+v %+v, %v", in, out, err)
	}
	if out, err = Check(one()); err != nil || out.Masks[0].Initiators == nil {
		t.Fatalf("nobody: %+v, %v", out, err)
	}
}

func TestReadBackIsCompared(t *testing.T) {
	for name, lie := range map[string]func(*driver.Mask){
		"keeps the old holder": func(m *driver.Mask) { m.Initiators = append(m.Initiators, "10.0.0.9") },
		"grants nobody":        func(m *driver.Mask) { m.Initiators = nil },
		"loses the epoch":      func(m *driver.Mask) { m.Epoch = 0 },
		"says nothing":         func(m *driver.Mask) { m.Volume = "another" },
	} {
		c := client(t, &shelf{lie: lie}, Config{})
		if _, err := c.Apply(t.Context(), one("10.0.0.1")); !fault.Is(err, fault.Unverified) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestOneWriterAtATime(t *testing.T) {
	s := &shelf{}
	c := client(t, s, Config{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Apply(t.Context(), one("10.0.0.1")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s.worst != 1 {
		t.Fatalf("%d changes at once", s.worst)
	}
}

func TestApplyTimesOut(t *testing.T) {
	s := &shelf{hold: make(chan struct{}), in: make(chan struct{}, 2)}
	c := client(t, s, Config{ApplyTimeout: 20 * time.Millisecond})
	if _, err := c.Apply(t.Context(), one("10.0.0.1")); !fault.Is(err, fault.Timeout) {
		t.Fatalf("got %v", err)
	}
	slow := client(t, s, Config{})
	done := make(chan error, 1)
	go func() { _, err := slow.Apply(t.Context(), one("10.0.0.1")); done <- err }()
	<-s.in
	<-s.in
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := slow.Apply(ctx, one("10.0.0.1")); !fault.Is(err, fault.Timeout) {
		t.Fatalf("waiting for a turn: %v", err)
	}
	close(s.hold)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestStrays(t *testing.T) {
	c := client(t, &shelf{}, Config{})
	if _, err := c.Apply(t.Context(), one("10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	got, err := c.Strays(t.Context())
	if err != nil || len(got) != 1 || got[0].Initiator != "10.0.0.2" {
		t.Fatalf("%+v, %v: a volume without an epoch is not ours to judge", got, err)
	}
}
