package zoning_test

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/brocade"
	"rerack.dev/rerack/sanzoning/brocadesim"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/zoning"
)

const (
	host  = "10:00:00:00:00:00:00:0a"
	array = "50:00:00:00:00:00:00:01"
)

func lab(t *testing.T, cfg zoning.Config) (*brocadesim.Switch, *zoning.Fabric) {
	t.Helper()
	sim, err := brocadesim.Start(brocadesim.Config{Active: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	drv, err := brocade.New(brocade.Config{URL: sim.URL(), TLS: &tls.Config{RootCAs: sim.Roots()},
		Login: func(context.Context) (string, string, error) { return "rerack", "", nil }})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Name = "san-a"
	f, err := zoning.New(drv, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return sim, f
}

func good() driver.Zone {
	return driver.Zone{Name: "vol-a", Initiators: []string{host}, Targets: []string{array}, Epoch: 1}
}

// TestRefusedBeforeTheFabric: what makes no sense never reaches the device.
func TestRefusedBeforeTheFabric(t *testing.T) {
	sim, f := lab(t, zoning.Config{})
	for name, change := range map[string]func(*driver.Zone){
		"no name":           func(z *driver.Zone) { z.Name = "" },
		"name with a blank": func(z *driver.Zone) { z.Name = "a b" },
		"name of markup":    func(z *driver.Zone) { z.Name = "a<b" },
		"long name":         func(z *driver.Zone) { z.Name = strings.Repeat("a", 128) },
		"no epoch":          func(z *driver.Zone) { z.Epoch = 0 },
		"no targets":        func(z *driver.Zone) { z.Targets = nil },
		"upper case":        func(z *driver.Zone) { z.Initiators[0] = "10:00:00:00:00:00:00:0A" },
		"no colons":         func(z *driver.Zone) { z.Initiators[0] = "100000000000000a" },
		"short":             func(z *driver.Zone) { z.Initiators[0] = "10:00:00:00:00:00:00" },
		"an alias":          func(z *driver.Zone) { z.Targets[0] = "array_port_1" },
		"zero":              func(z *driver.Zone) { z.Initiators[0] = "00:00:00:00:00:00:00:00" },
		"broadcast":         func(z *driver.Zone) { z.Initiators[0] = "ff:ff:ff:ff:ff:ff:ff:ff" },
		"twice":             func(z *driver.Zone) { z.Initiators = []string{host, host} },
		"on both sides":     func(z *driver.Zone) { z.Targets = []string{array, host} },
	} {
		z := good()
		change(&z)
		other := good()
		other.Name = "vol-b"
		if _, err := f.Apply(t.Context(), driver.ZoneChange{Zones: []driver.Zone{other, z}}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "fabric san-a") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, zones := range map[string][]driver.Zone{"empty": nil, "zone twice": {good(), good()}} {
		if _, err := f.Apply(t.Context(), driver.ZoneChange{Zones: zones}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := sim.Counters().Requests; n != 0 {
		t.Errorf("%d requests were made", n)
	}
	if _, err := f.Apply(t.Context(), driver.ZoneChange{Zones: []driver.Zone{good()}}); err != nil {
		t.Fatal(err)
	}
}

// TestOneWriterAtATime: a writer waits for the one before it, but no longer than its own deadline.
func TestOneWriterAtATime(t *testing.T) {
	sim, f := lab(t, zoning.Config{})
	sim.SetFaults(func(f *brocadesim.Faults) { f.Hang = true })
	first := make(chan error, 1)
	go func() {
		_, err := f.Apply(context.WithoutCancel(t.Context()), driver.ZoneChange{Zones: []driver.Zone{good()}})
		first <- err
	}()
	for sim.Counters().Requests == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := f.Apply(ctx, driver.ZoneChange{Zones: []driver.Zone{good()}}); !fault.Is(err, fault.Busy) || sim.Counters().Requests != 1 {
		t.Errorf("second writer: %v after %d requests", err, sim.Counters().Requests)
	}
	sim.SetFaults(func(f *brocadesim.Faults) { f.Hang = false })
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestDeadlines(t *testing.T) {
	sim, f := lab(t, zoning.Config{ReadTimeout: 50 * time.Millisecond, ApplyTimeout: 50 * time.Millisecond})
	sim.SetFaults(func(f *brocadesim.Faults) { f.Hang = true })
	if _, err := f.Zones(t.Context()); !fault.Is(err, fault.Timeout) {
		t.Errorf("zones: %v", err)
	}
	if _, err := f.Logins(t.Context()); !fault.Is(err, fault.Timeout) {
		t.Errorf("logins: %v", err)
	}
	if _, err := f.Apply(t.Context(), driver.ZoneChange{Zones: []driver.Zone{good()}}); !fault.Is(err, fault.Timeout) {
		t.Errorf("apply: %v", err)
	}
}

// liar is a driver that reads back whatever it is told to.
type liar struct {
	driver.Fabric
	after []driver.Zone
}

func (l liar) Apply(context.Context, driver.ZoneChange) (driver.ZoneResult, error) {
	return driver.ZoneResult{After: l.after}, nil
}

// TestReadBack: a driver's word is not enough, its reading must match.
func TestReadBack(t *testing.T) {
	want := good()
	for name, c := range map[string]struct {
		after []driver.Zone
		ok    bool
	}{
		"as asked":       {[]driver.Zone{want}, true},
		"nothing":        {nil, false},
		"another zone":   {[]driver.Zone{{Name: "x", Initiators: want.Initiators, Targets: want.Targets, Epoch: 1}}, false},
		"another epoch":  {[]driver.Zone{{Name: "vol-a", Initiators: want.Initiators, Targets: want.Targets, Epoch: 2}}, false},
		"one more in it": {[]driver.Zone{{Name: "vol-a", Initiators: []string{host, "10:00:00:00:00:00:00:0b"}, Targets: want.Targets, Epoch: 1}}, false},
		"nobody in it":   {[]driver.Zone{{Name: "vol-a", Targets: want.Targets, Epoch: 1}}, false},
		"another target": {[]driver.Zone{{Name: "vol-a", Initiators: want.Initiators, Targets: []string{host}, Epoch: 1}}, false},
	} {
		f, err := zoning.New(liar{after: c.after}, zoning.Config{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Apply(t.Context(), driver.ZoneChange{Zones: []driver.Zone{want}})
		if c.ok && err != nil || !c.ok && !fault.Is(err, fault.Unverified) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for key, cfg := range map[string]zoning.Config{
		"name": {}, "readTimeout": {Name: "x", ReadTimeout: -1}, "applyTimeout": {Name: "x", ApplyTimeout: -1},
	} {
		if _, err := zoning.New(liar{}, cfg); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
