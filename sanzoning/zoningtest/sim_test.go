package zoningtest_test

import (
	"context"
	"crypto/tls"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/sanzoning/brocade"
	"rerack.dev/rerack/sanzoning/brocadesim"
	"rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/sanzoning/zoning"
	"rerack.dev/rerack/sanzoning/zoningtest"
)

// world is what the simulated fabric told, and who is plugged in.
type world struct {
	mu     sync.Mutex
	zones  []brocadesim.Zone
	logins []brocadesim.Login
}

func (w *world) ZonesChanged(effective []brocadesim.Zone) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.zones = effective
}

func (w *world) Logins() []brocadesim.Login {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.logins)
}

func (w *world) setLogins(wwpns ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logins = nil
	for _, n := range wwpns {
		w.logins = append(w.logins, brocadesim.Login{PortName: strings.ToUpper(n), NodeName: "20" + n[2:]})
	}
}

func (w *world) sees(a, b string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.zones, func(z brocadesim.Zone) bool {
		in := func(list []string, n string) bool { return slices.Contains(list, n) }
		if z.Peer {
			return in(z.Principals, a) && in(z.Members, b) || in(z.Principals, b) && in(z.Members, a)
		}
		return in(z.Members, a) && in(z.Members, b)
	})
}

type foreign struct {
	Defined brocadesim.Defined
	Zones   []brocadesim.Zone
}

func simRig(wrap func(t *testing.T, d driver.Fabric) driver.Fabric) func(*testing.T) zoningtest.Rig {
	return func(t *testing.T) zoningtest.Rig {
		w := &world{}
		sim, err := brocadesim.Start(brocadesim.Config{
			Password: "s3cret", Active: "prod", VirtualFabric: 128, Backend: w,
			Aliases: map[string][]string{"tape": {"50:00:00:00:00:00:00:77"}},
			Zones: []brocadesim.Zone{{Name: "backup", Members: []string{"tape", "10:00:00:00:00:00:00:99"}},
				{Name: "rr_looks_like_ours", Members: []string{"10:00:00:00:00:00:00:98"}},
				{Name: "peers", Peer: true, Members: []string{"10:00:00:00:00:00:00:97"}, Principals: []string{"tape"}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(sim.Close)
		return zoningtest.Rig{
			SetLogins: w.setLogins, Sees: w.sees, Commits: func() int { return sim.Counters().Commits },
			Open: func(t *testing.T) driver.Fabric {
				d, err := brocade.New(brocade.Config{URL: sim.URL(), VirtualFabric: 128, TLS: &tls.Config{RootCAs: sim.Roots()}, BusyWait: time.Millisecond,
					Login: func(context.Context) (string, string, error) { return "rerack", "s3cret", nil }})
				if err != nil {
					t.Fatal(err)
				}
				return wrap(t, d)
			},
			Foreign: func(t *testing.T) any {
				if sim.Open() != "" || sim.Sessions() != 0 {
					t.Errorf("left behind: a transaction of %q, %d sessions", sim.Open(), sim.Sessions())
				}
				var f foreign
				f.Defined = sim.Defined()
				ours := func(name string) bool { _, _, ok := brocade.ParseZoneName(name); return ok }
				for name := range f.Defined.Zones {
					if ours(name) {
						delete(f.Defined.Zones, name)
					}
				}
				for name, members := range f.Defined.Cfgs {
					f.Defined.Cfgs[name] = slices.DeleteFunc(members, ours)
				}
				f.Zones = slices.DeleteFunc(sim.Effective(), func(z brocadesim.Zone) bool { return ours(z.Name) })
				return f
			},
			Reload: func(t *testing.T) {
				if err := sim.Restart(); err != nil {
					t.Fatal(err)
				}
			},
		}
	}
}

func TestSimulatedBrocade(t *testing.T) {
	zoningtest.Run(t, simRig(func(_ *testing.T, d driver.Fabric) driver.Fabric { return d }))
}

// TestPortable holds the portable type to the same contract as the driver under it.
func TestPortable(t *testing.T) {
	zoningtest.Run(t, simRig(func(t *testing.T, d driver.Fabric) driver.Fabric {
		f, err := zoning.New(d, zoning.Config{Name: "san-a"})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}))
}
