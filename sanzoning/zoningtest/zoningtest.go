// Package zoningtest is the contract that every driver of Fibre Channel fabrics passes.
package zoningtest

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/driver"
)

// Rig is one fabric to try a driver on.
type Rig struct {
	// Open returns a new driver of the same fabric.
	Open func(t *testing.T) driver.Fabric
	// Foreign reads everything about the zoning that is not ours, and which configuration is in force.
	Foreign func(t *testing.T) any
	// Reload restarts the switch from its startup configuration.
	Reload func(t *testing.T)
	// SetLogins plugs devices in.
	SetLogins func(wwpns ...string)
	// Sees says whether the fabric really lets one port see another.
	Sees func(a, b string) bool
	// Commits counts the commits so far.
	Commits func() int
}

// The ports of the contract's devices.
const (
	HostA   = "10:00:00:00:00:00:00:0a"
	HostB   = "10:00:00:00:00:00:00:0b"
	HostC   = "10:00:00:00:00:00:00:0c"
	ArrayP1 = "50:00:00:00:00:00:00:01"
	ArrayP2 = "50:00:00:00:00:00:00:02"
)

// Run runs the contract; every test gets its own rig.
func Run(t *testing.T, newRig func(t *testing.T) Rig) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *bench)
	}{
		{"a zone is handed over", testHandOver},
		{"no initiators let nobody in and keep the epoch", testClosed},
		{"many zones are one commit", testOneCommit},
		{"repeating changes nothing", testRepeat},
		{"a stale zone spoils the whole change", testStale},
		{"the same epoch may say something else", testSameEpoch},
		{"names of any length", testNames},
		{"initiators do not see each other", testInitiators},
		{"zones outlive a reload", testReload},
		{"logins", testLogins},
		{"epochs never go back under contention", testContention},
		{"a dead context changes nothing", testContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			rig := newRig(t)
			b := &bench{Rig: rig, drv: rig.Open(t), foreign: rig.Foreign(t)}
			t.Cleanup(func() { b.drv.Close() })
			c.test(t, b)
			if now := b.Foreign(t); !reflect.DeepEqual(now, b.foreign) {
				t.Errorf("what is not ours changed:\nbefore %+v\nafter  %+v", b.foreign, now)
			}
		})
	}
}

type bench struct {
	Rig
	drv     driver.Fabric
	foreign any
}

func zone(name string, epoch uint64, initiators ...string) driver.Zone {
	if initiators == nil {
		initiators = []string{}
	}
	return driver.Zone{Name: name, Initiators: initiators, Targets: []string{ArrayP1, ArrayP2}, Epoch: epoch}
}

func (b *bench) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (b *bench) apply(t *testing.T, zones ...driver.Zone) driver.ZoneResult {
	t.Helper()
	res, err := b.drv.Apply(b.ctx(t), driver.ZoneChange{Owner: "run", Zones: zones})
	if err != nil {
		t.Fatalf("apply %+v: %v", zones, err)
	}
	if !reflect.DeepEqual(res.After, zones) {
		t.Fatalf("after %+v, want %+v", res.After, zones)
	}
	return res
}

func (b *bench) zones(t *testing.T) []driver.Zone {
	t.Helper()
	zones, err := b.drv.Zones(b.ctx(t))
	if err != nil {
		t.Fatalf("read zones: %v", err)
	}
	return zones
}

func (b *bench) expect(t *testing.T, want ...driver.Zone) {
	t.Helper()
	if got := b.zones(t); !reflect.DeepEqual(got, want) {
		t.Fatalf("zones are %+v, want %+v", got, want)
	}
}

func (b *bench) refuse(t *testing.T, kind fault.Kind, zones ...driver.Zone) {
	t.Helper()
	before, commits := b.zones(t), b.Commits()
	_, err := b.drv.Apply(b.ctx(t), driver.ZoneChange{Owner: "refused", Zones: zones})
	if !fault.Is(err, kind) {
		t.Fatalf("apply %+v: error %v, want kind %s", zones, err, kind)
	}
	b.expect(t, before...)
	if b.Commits() != commits {
		t.Fatal("a refused change was committed")
	}
}

func (b *bench) sees(t *testing.T, want bool, a, c string) {
	t.Helper()
	if got := b.Sees(a, c); got != want {
		t.Errorf("%s sees %s: %t", a, c, got)
	}
}

func testHandOver(t *testing.T, b *bench) {
	b.apply(t, zone("vol-db1", 1, HostA))
	b.sees(t, true, HostA, ArrayP1)
	b.sees(t, false, HostB, ArrayP1)
	if res := b.apply(t, zone("vol-db1", 2, HostB)); !slices.Equal(res.Changed, []string{"vol-db1"}) {
		t.Errorf("changed %v", res.Changed)
	}
	b.sees(t, false, HostA, ArrayP1)
	b.sees(t, true, HostB, ArrayP2)
	b.expect(t, zone("vol-db1", 2, HostB))
}

func testClosed(t *testing.T, b *bench) {
	b.apply(t, zone("vol-db1", 1, HostA, HostB))
	b.apply(t, zone("vol-db1", 2))
	b.sees(t, false, HostA, ArrayP1)
	b.sees(t, false, HostB, ArrayP2)
	b.expect(t, zone("vol-db1", 2))
	b.refuse(t, fault.Stale, zone("vol-db1", 1, HostA))
	b.apply(t, zone("vol-db1", 3, HostC))
	b.sees(t, true, HostC, ArrayP1)
}

func testOneCommit(t *testing.T, b *bench) {
	var zones []driver.Zone
	for i := range 50 {
		zones = append(zones, zone(fmt.Sprintf("vol-%02d", i), 1, HostA))
	}
	before := b.Commits()
	b.apply(t, zones...)
	for i := range zones {
		zones[i] = zone(zones[i].Name, 2, HostB)
	}
	b.apply(t, zones...)
	if n := b.Commits() - before; n != 2 {
		t.Errorf("%d commits for two changes", n)
	}
	b.expect(t, zones...)
}

func testRepeat(t *testing.T, b *bench) {
	want := []driver.Zone{zone("vol-a", 4, HostA), zone("vol-b", 4)}
	if res := b.apply(t, want...); len(res.Changed) != 2 {
		t.Errorf("changed %v, want both", res.Changed)
	}
	before := b.Commits()
	if res := b.apply(t, want...); len(res.Changed) != 0 {
		t.Errorf("a repeated change changed %v", res.Changed)
	}
	if b.Commits() != before {
		t.Error("a repeated change was committed")
	}
}

func testStale(t *testing.T, b *bench) {
	b.apply(t, zone("vol-b", 1<<63+1, HostB))
	b.refuse(t, fault.Stale, zone("vol-a", 1<<63, HostA), zone("vol-b", 1<<63, HostA), zone("vol-c", 1<<63, HostA))
	b.sees(t, false, HostA, ArrayP1)
}

func testSameEpoch(t *testing.T, b *bench) {
	b.apply(t, zone("vol-a", 3, HostA))
	b.apply(t, zone("vol-a", 3, HostB))
	b.sees(t, false, HostA, ArrayP1)
	b.apply(t, zone("vol-a", 3))
	b.sees(t, false, HostB, ArrayP1)
	b.apply(t, zone("vol-a", 3, HostA, HostC))
	b.sees(t, true, HostC, ArrayP2)
}

func testNames(t *testing.T, b *bench) {
	long := "vol-" + strings.Repeat("x", 100)
	names := []string{"a", "A", "vol-e5", "vol-e5-e6", "vol_db1", "vol-db1", "vol.db1", long + "1", long + "2"}
	for epoch := uint64(1); epoch <= 2; epoch++ {
		var zones []driver.Zone
		for _, n := range names {
			zones = append(zones, zone(n, epoch, HostA))
		}
		b.apply(t, zones...)
		if got := b.zones(t); len(got) != len(names) {
			t.Errorf("%d zones for %d names: %+v", len(got), len(names), got)
		}
		b.apply(t, zones...)
	}
	b.refuse(t, fault.Stale, zone(long+"1", 1, HostB))
	b.apply(t, zone(long+"1", 3))
}

func testInitiators(t *testing.T, b *bench) {
	b.apply(t, zone("shared", 1, HostA, HostB))
	b.sees(t, true, HostA, ArrayP1)
	b.sees(t, true, HostB, ArrayP1)
	b.sees(t, false, HostA, HostB)
}

func testReload(t *testing.T, b *bench) {
	want := []driver.Zone{zone("vol-a", 3), zone("vol-b", 4, HostB)}
	b.apply(t, want...)
	b.Reload(t)
	b.expect(t, want...)
	b.sees(t, false, HostA, ArrayP1)
	b.refuse(t, fault.Stale, zone("vol-a", 2, HostA))
}

func testLogins(t *testing.T, b *bench) {
	for _, want := range [][]string{nil, {HostA}, {HostA, HostB, ArrayP1}, nil} {
		b.SetLogins(want...)
		got, err := b.drv.Logins(b.ctx(t))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("logins %v, %v, want %v", got, err, want)
		}
	}
}

// testContention lets writers with different epochs fight over the same zone: the highest wins.
func testContention(t *testing.T, b *bench) {
	const writers = 5
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for i := range writers {
		drv := b.Open(t)
		t.Cleanup(func() { drv.Close() })
		wg.Add(1)
		go func() {
			defer wg.Done()
			z := zone("vol-a", uint64(i+1), fmt.Sprintf("10:00:00:00:00:00:01:%02x", i))
			ctx := b.ctx(t)
			for ctx.Err() == nil {
				_, err := drv.Apply(ctx, driver.ZoneChange{Owner: fmt.Sprint("writer-", i+1), Zones: []driver.Zone{z}})
				errs[i] = err
				if k := fault.KindOf(err); err == nil || k != fault.Conflict && k != fault.Busy {
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
	b.expect(t, zone("vol-a", writers, fmt.Sprintf("10:00:00:00:00:00:01:%02x", writers-1)))
}

func testContext(t *testing.T, b *bench) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.drv.Apply(ctx, driver.ZoneChange{Zones: []driver.Zone{zone("vol-a", 1, HostA)}}); err == nil {
		t.Error("applied on a cancelled context")
	}
	if got := b.zones(t); len(got) != 0 {
		t.Errorf("zones %+v", got)
	}
}
