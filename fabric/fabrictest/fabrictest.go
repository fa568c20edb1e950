// Package fabrictest is the contract that every driver of network switches passes.
package fabrictest

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
)

// Rig is one switch to try a driver on.
type Rig struct {
	// Open returns a new driver of the same switch.
	Open func(t *testing.T) driver.Switch
	// Ports are at least six ports that the test may use, never set by us before.
	Ports []string
	// Stranger leaves something on a port that is not ours, and returns a check that it is still there.
	Stranger func(t *testing.T, port string) (check func(t *testing.T))
	// Reload restarts the switch from its startup configuration.
	Reload func(t *testing.T)
	// SetLink plugs and unplugs a port; nil when the rig cannot.
	SetLink func(port string, up bool)
	// World checks that the switch really does what the port says; nil when the rig cannot.
	World func(t *testing.T, p driver.Port)
}

// Run runs the contract; every test gets its own rig.
func Run(t *testing.T, newRig func(t *testing.T) Rig) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"settings", testSettings},
		{"repeating changes nothing", testRepeat},
		{"a newer epoch alone is a change", testEpochAlone},
		{"a stale setting spoils the whole change", testStale},
		{"an unknown port spoils the whole change", testUnknownPort},
		{"an empty setting opens nothing", testEmptySetting},
		{"ports not asked for stay as they are", testOthers},
		{"what strangers wrote stays", testStranger},
		{"settings outlive a reload", testReload},
		{"epochs never go back under contention", testContention},
		{"link state", testLink},
		{"a dead context changes nothing", testContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			rig := newRig(t)
			if len(rig.Ports) < 6 {
				t.Fatalf("the rig has %d ports, six are needed", len(rig.Ports))
			}
			b := &bench{Rig: rig, drv: rig.Open(t)}
			t.Cleanup(func() { b.drv.Close() })
			c.test(t, b)
		})
	}
}

type bench struct {
	Rig
	drv driver.Switch
}

func (b *bench) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (b *bench) apply(t *testing.T, owner string, s ...driver.Setting) driver.Result {
	t.Helper()
	res, err := b.drv.Apply(b.ctx(t), driver.Change{Owner: owner, Settings: s})
	if err != nil {
		t.Fatalf("apply %+v: %v", s, err)
	}
	for _, set := range s {
		b.expect(t, wanted(set, owner))
	}
	return res
}

func (b *bench) refuse(t *testing.T, kind fault.Kind, s ...driver.Setting) {
	t.Helper()
	before := b.ports(t)
	_, err := b.drv.Apply(b.ctx(t), driver.Change{Owner: "refused", Settings: s})
	if !fault.Is(err, kind) {
		t.Fatalf("apply %+v: error %v, want kind %s", s, err, kind)
	}
	if after := b.ports(t); !reflect.DeepEqual(before, after) {
		t.Fatalf("a refused change left traces:\nbefore %+v\nafter  %+v", before, after)
	}
}

func (b *bench) ports(t *testing.T) map[string]driver.Port {
	t.Helper()
	list, err := b.drv.Ports(b.ctx(t))
	if err != nil {
		t.Fatalf("read ports: %v", err)
	}
	out := map[string]driver.Port{}
	for _, p := range list {
		if _, twice := out[p.Name]; twice {
			t.Fatalf("port %s is listed twice", p.Name)
		}
		p.Link = driver.LinkUnknown // tested on its own; it may change at any time
		out[p.Name] = p
	}
	return out
}

// wanted is how a setting reads back.
func wanted(s driver.Setting, owner string) driver.Port {
	p := driver.Port{Name: s.Port, Shut: s.Shut, Epoch: s.Epoch, Owner: owner}
	if !s.Shut {
		p.Untagged = s.Untagged
		p.Tagged = slices.Sorted(slices.Values(s.Tagged))
	}
	return p
}

func (b *bench) expect(t *testing.T, want driver.Port) {
	t.Helper()
	got, ok := b.ports(t)[want.Name]
	if !ok {
		t.Fatalf("port %s is not listed", want.Name)
	}
	if !same(got, want) {
		t.Fatalf("port %s reads %+v, want %+v", want.Name, got, want)
	}
	if b.World != nil {
		b.World(t, want)
	}
}

func same(a, b driver.Port) bool {
	tagged := slices.Equal(a.Tagged, b.Tagged)
	a.Tagged, b.Tagged = nil, nil
	return tagged && reflect.DeepEqual(a, b)
}

func testSettings(t *testing.T, b *bench) {
	p := b.Ports[0]
	epoch := uint64(0)
	for _, s := range []driver.Setting{
		{Untagged: 10},
		{Untagged: 11},
		{Tagged: []int{30, 20}},
		{Untagged: 12, Tagged: []int{40, 20, 30}},
		{Shut: true},
		{Shut: true, Untagged: 13, Tagged: []int{50}}, // shut wins
		{Untagged: 1, Tagged: []int{4093}},
		{Tagged: []int{4093}},
		{Shut: true},
		{Untagged: 4093},
	} {
		epoch++
		s.Port, s.Epoch = p, epoch
		res := b.apply(t, fmt.Sprint("run-", epoch), s)
		if !slices.Equal(res.Changed, []string{p}) {
			t.Fatalf("changed %v, want %s", res.Changed, p)
		}
		if len(res.After) != 1 || !same(dropLink(res.After[0]), wanted(s, fmt.Sprint("run-", epoch))) {
			t.Fatalf("after %+v, want %+v", res.After, s)
		}
	}
}

func dropLink(p driver.Port) driver.Port { p.Link = driver.LinkUnknown; return p }

func testRepeat(t *testing.T, b *bench) {
	set := []driver.Setting{{Port: b.Ports[0], Untagged: 10, Tagged: []int{20, 30}, Epoch: 7}, {Port: b.Ports[1], Shut: true, Epoch: 7}}
	if res := b.apply(t, "run", set...); len(res.Changed) != 2 {
		t.Fatalf("changed %v, want both", res.Changed)
	}
	for range 2 {
		if res := b.apply(t, "run", set...); len(res.Changed) != 0 || len(res.After) != 2 {
			t.Fatalf("a repeated change: changed %v, after %v", res.Changed, res.After)
		}
	}
	set[1].Shut, set[1].Untagged = false, 10
	if res := b.apply(t, "run", set...); !slices.Equal(res.Changed, []string{b.Ports[1]}) {
		t.Fatalf("changed %v, want %s", res.Changed, b.Ports[1])
	}
}

func testEpochAlone(t *testing.T, b *bench) {
	b.apply(t, "one", driver.Setting{Port: b.Ports[0], Untagged: 10, Epoch: 1})
	res := b.apply(t, "two", driver.Setting{Port: b.Ports[0], Untagged: 10, Epoch: 2})
	if !slices.Equal(res.Changed, []string{b.Ports[0]}) {
		t.Fatalf("changed %v", res.Changed)
	}
	b.refuse(t, fault.Stale, driver.Setting{Port: b.Ports[0], Untagged: 10, Epoch: 1})
}

func testStale(t *testing.T, b *bench) {
	b.apply(t, "new", driver.Setting{Port: b.Ports[1], Shut: true, Epoch: 1<<63 + 5})
	b.refuse(t, fault.Stale, driver.Setting{Port: b.Ports[0], Untagged: 10, Epoch: 1 << 63},
		driver.Setting{Port: b.Ports[1], Untagged: 10, Epoch: 1 << 63}, driver.Setting{Port: b.Ports[2], Untagged: 10, Epoch: 1 << 63})
	b.apply(t, "newer", driver.Setting{Port: b.Ports[1], Untagged: 10, Epoch: 1<<63 + 6})
}

func testUnknownPort(t *testing.T, b *bench) {
	b.refuse(t, fault.NotFound, driver.Setting{Port: b.Ports[0], Untagged: 10, Epoch: 1}, driver.Setting{Port: "no-such-port", Untagged: 10, Epoch: 1})
}

func testEmptySetting(t *testing.T, b *bench) {
	b.refuse(t, fault.Invalid, driver.Setting{Port: b.Ports[0], Epoch: 1})
	b.refuse(t, fault.Invalid, driver.Setting{Port: b.Ports[0], Untagged: 5000, Epoch: 1}, driver.Setting{Port: b.Ports[1], Untagged: 5, Epoch: 1})
	b.refuse(t, fault.Invalid, driver.Setting{Port: b.Ports[0], Untagged: 5, Epoch: 1}, driver.Setting{Port: b.Ports[0], Untagged: 6, Epoch: 1})
}

func testOthers(t *testing.T, b *bench) {
	before := b.ports(t)
	b.apply(t, "run", driver.Setting{Port: b.Ports[0], Untagged: 10, Epoch: 1}, driver.Setting{Port: b.Ports[1], Shut: true, Epoch: 1})
	after := b.ports(t)
	for _, touched := range b.Ports[:2] {
		delete(before, touched)
		delete(after, touched)
	}
	if !reflect.DeepEqual(before, after) {
		t.Fatalf("other ports changed:\nbefore %+v\nafter  %+v", before, after)
	}
}

func testStranger(t *testing.T, b *bench) {
	touched, untouched := b.Stranger(t, b.Ports[0]), b.Stranger(t, b.Ports[1])
	b.apply(t, "one", driver.Setting{Port: b.Ports[0], Untagged: 10, Epoch: 1})
	b.apply(t, "two", driver.Setting{Port: b.Ports[0], Shut: true, Epoch: 2})
	touched(t)
	untouched(t)
}

func testReload(t *testing.T, b *bench) {
	s := []driver.Setting{{Port: b.Ports[0], Shut: true, Epoch: 3}, {Port: b.Ports[1], Untagged: 10, Tagged: []int{20}, Epoch: 4}}
	b.apply(t, "run", s...)
	before := b.ports(t)
	b.Reload(t)
	if after := b.ports(t); !reflect.DeepEqual(before, after) {
		t.Fatalf("a reload changed ports:\nbefore %+v\nafter  %+v", before, after)
	}
	for _, set := range s {
		b.expect(t, wanted(set, "run"))
	}
	b.refuse(t, fault.Stale, driver.Setting{Port: b.Ports[0], Untagged: 10, Epoch: 2})
}

// testContention lets writers with different epochs fight over the same ports. Whatever order they come
// in, what was accepted last is the highest epoch, on all ports alike.
func testContention(t *testing.T, b *bench) {
	const writers = 8
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for i := range writers {
		drv := b.Open(t)
		t.Cleanup(func() { drv.Close() })
		wg.Add(1)
		go func() {
			defer wg.Done()
			epoch := uint64(i + 1)
			c := driver.Change{Owner: fmt.Sprint("writer-", epoch)}
			for _, p := range b.Ports[:4] {
				c.Settings = append(c.Settings, driver.Setting{Port: p, Untagged: 100 + i, Epoch: epoch})
			}
			for range 100 {
				if _, errs[i] = drv.Apply(b.ctx(t), c); !fault.Is(errs[i], fault.Conflict) {
					return
				}
			}
		}()
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil && (i == writers-1 || !fault.Is(err, fault.Stale)) {
			t.Errorf("writer of epoch %d: %v", i+1, err)
		}
	}
	for _, p := range b.Ports[:4] {
		b.expect(t, driver.Port{Name: p, Untagged: 100 + writers - 1, Epoch: writers, Owner: fmt.Sprint("writer-", writers)})
	}
}

func testLink(t *testing.T, b *bench) {
	if b.SetLink == nil {
		t.Skip("the rig cannot plug cables")
	}
	b.apply(t, "run", driver.Setting{Port: b.Ports[0], Shut: true, Epoch: 1})
	for _, up := range []bool{true, false, true} {
		want := driver.LinkDown
		if up {
			want = driver.LinkUp
		}
		b.SetLink(b.Ports[0], up)
		deadline := time.Now().Add(20 * time.Second)
		for {
			ports, err := b.drv.Ports(b.ctx(t))
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(ports, func(p driver.Port) bool { return p.Name == b.Ports[0] })
			if ports[i].Link == want {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("link is %q, want %q", ports[i].Link, want)
			}
		}
	}
}

func testContext(t *testing.T, b *bench) {
	before := b.ports(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.drv.Apply(ctx, driver.Change{Owner: "dead", Settings: []driver.Setting{{Port: b.Ports[0], Untagged: 10, Epoch: 1}}}); err == nil {
		t.Fatal("applied on a cancelled context")
	}
	if _, err := b.drv.Ports(ctx); err == nil {
		t.Fatal("read on a cancelled context")
	}
	if after := b.ports(t); !reflect.DeepEqual(before, after) {
		t.Fatalf("changed:\nbefore %+v\nafter  %+v", before, after)
	}
}
