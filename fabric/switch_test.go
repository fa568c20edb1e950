package fabric_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/fabric"
	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/fabric/ovssim"
	"rerack.dev/rerack/internal/fault"
)

func lab(t *testing.T, cfg fabric.Config) (*ovssim.Switch, *fabric.Switch) {
	t.Helper()
	sim, err := ovssim.Start(ovssim.Config{Ports: []ovssim.Port{{Name: "p1", Untagged: 1}, {Name: "p2", Untagged: 2}, {Name: "mgmt", Untagged: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sim.Close)
	drv, err := ovs.New(ovs.Config{Endpoint: sim.Endpoint(), Bridge: "br0"})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Name = "tor-a"
	sw, err := fabric.New(drv, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sw.Close() })
	return sim, sw
}

// TestRefusedBeforeTheSwitch: what makes no sense, or is too dangerous, never reaches the device.
func TestRefusedBeforeTheSwitch(t *testing.T) {
	sim, sw := lab(t, fabric.Config{Protected: []string{"mgmt"}})
	good := driver.Setting{Port: "p1", Untagged: 10, Epoch: 1}
	for name, c := range map[string]struct {
		settings []driver.Setting
		want     fault.Kind
	}{
		"empty":             {nil, fault.Invalid},
		"no port":           {[]driver.Setting{{Untagged: 10, Epoch: 1}}, fault.Invalid},
		"no epoch":          {[]driver.Setting{{Port: "p1", Untagged: 10}}, fault.Invalid},
		"nothing to do":     {[]driver.Setting{{Port: "p1", Epoch: 1}}, fault.Invalid},
		"VLAN 4095":         {[]driver.Setting{{Port: "p1", Untagged: 4095, Epoch: 1}}, fault.Invalid},
		"VLAN -1":           {[]driver.Setting{{Port: "p1", Untagged: -1, Epoch: 1}}, fault.Invalid},
		"tagged VLAN 0":     {[]driver.Setting{{Port: "p1", Tagged: []int{0}, Epoch: 1}}, fault.Invalid},
		"VLAN twice":        {[]driver.Setting{{Port: "p1", Tagged: []int{5, 5}, Epoch: 1}}, fault.Invalid},
		"both ways":         {[]driver.Setting{{Port: "p1", Untagged: 5, Tagged: []int{5}, Epoch: 1}}, fault.Invalid},
		"port twice":        {[]driver.Setting{good, good}, fault.Invalid},
		"second is wrong":   {[]driver.Setting{good, {Port: "p2", Untagged: 9999, Epoch: 1}}, fault.Invalid},
		"control plane":     {[]driver.Setting{good, {Port: "mgmt", Untagged: 10, Epoch: 1}}, fault.Unsafe},
		"shut the way home": {[]driver.Setting{{Port: "mgmt", Shut: true, Epoch: 1}}, fault.Unsafe},
	} {
		_, err := sw.Apply(t.Context(), driver.Change{Owner: "run", Settings: c.settings})
		if !fault.Is(err, c.want) || !strings.Contains(err.Error(), "switch tor-a") {
			t.Errorf("%s: %v, want kind %s about switch tor-a", name, err, c.want)
		}
	}
	if n := sim.Counters().Connections; n != 0 {
		t.Errorf("%d connections were made", n)
	}
	if _, err := sw.Apply(t.Context(), driver.Change{Owner: "run", Settings: []driver.Setting{good}}); err != nil {
		t.Fatal(err)
	}
}

// TestOneWriterAtATime: a writer waits for the one before it, but no longer than its own deadline.
func TestOneWriterAtATime(t *testing.T) {
	sim, sw := lab(t, fabric.Config{CallTimeout: time.Minute})
	sim.SetFaults(func(f *ovssim.Faults) { f.Hang = true })
	first := make(chan error, 1)
	go func() {
		_, err := sw.Apply(context.WithoutCancel(t.Context()), driver.Change{Settings: []driver.Setting{{Port: "p1", Untagged: 10, Epoch: 1}}})
		first <- err
	}()
	for sim.Counters().Connections == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := sw.Apply(ctx, driver.Change{Settings: []driver.Setting{{Port: "p1", Untagged: 11, Epoch: 2}}})
	if !fault.Is(err, fault.Busy) || sim.Counters().Connections != 1 {
		t.Errorf("second writer: %v with %d connections", err, sim.Counters().Connections)
	}
	sim.SetFaults(func(f *ovssim.Faults) { f.Hang = false })
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestDeadline(t *testing.T) {
	sim, sw := lab(t, fabric.Config{CallTimeout: 20 * time.Millisecond})
	sim.SetFaults(func(f *ovssim.Faults) { f.Hang = true })
	if _, err := sw.Apply(t.Context(), driver.Change{Settings: []driver.Setting{{Port: "p1", Untagged: 10, Epoch: 1}}}); !fault.Is(err, fault.Timeout) {
		t.Errorf("apply: %v", err)
	}
	if _, err := sw.Ports(t.Context()); !fault.Is(err, fault.Timeout) {
		t.Errorf("ports: %v", err)
	}
}

// liar is a driver that reads back whatever it is told to.
type liar struct {
	driver.Switch
	after []driver.Port
}

func (l liar) Apply(context.Context, driver.Change) (driver.Result, error) {
	return driver.Result{After: l.after}, nil
}

// TestReadBack: a driver's word is not enough, its reading must match.
func TestReadBack(t *testing.T) {
	shut := driver.Setting{Port: "p1", Shut: true, Epoch: 2}
	trunk := driver.Setting{Port: "p1", Untagged: 1, Tagged: []int{3, 2}, Epoch: 2}
	for name, c := range map[string]struct {
		set   driver.Setting
		after []driver.Port
		ok    bool
	}{
		"shut":              {shut, []driver.Port{{Name: "p1", Shut: true, Epoch: 2}}, true},
		"trunk":             {trunk, []driver.Port{{Name: "p1", Untagged: 1, Tagged: []int{2, 3}, Epoch: 2}}, true},
		"nothing":           {shut, nil, false},
		"another port":      {shut, []driver.Port{{Name: "p2", Shut: true, Epoch: 2}}, false},
		"still open":        {shut, []driver.Port{{Name: "p1", Untagged: 1, Epoch: 2}}, false},
		"still shut":        {trunk, []driver.Port{{Name: "p1", Shut: true, Epoch: 2}}, false},
		"another epoch":     {shut, []driver.Port{{Name: "p1", Shut: true, Epoch: 3}}, false},
		"a VLAN is missing": {trunk, []driver.Port{{Name: "p1", Untagged: 1, Tagged: []int{2}, Epoch: 2}}, false},
		"every VLAN":        {trunk, []driver.Port{{Name: "p1", Untagged: 1, Tagged: []int{2, 3}, AllVLANs: true, Epoch: 2}}, false},
	} {
		sw, err := fabric.New(liar{after: c.after}, fabric.Config{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = sw.Apply(t.Context(), driver.Change{Settings: []driver.Setting{c.set}})
		if c.ok && err != nil || !c.ok && !fault.Is(err, fault.Unverified) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for key, cfg := range map[string]fabric.Config{
		"name": {}, "callTimeout": {Name: "x", CallTimeout: -1}, "protected": {Name: "x", Protected: []string{""}},
	} {
		if _, err := fabric.New(liar{}, cfg); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
