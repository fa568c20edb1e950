package fabrictest_test

import (
	"slices"
	"sync"
	"testing"

	"rerack.dev/rerack/fabric"
	"rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/fabric/fabrictest"
	"rerack.dev/rerack/fabric/ovs"
	"rerack.dev/rerack/fabric/ovssim"
)

// world is what the simulated switch told.
type world struct {
	mu    sync.Mutex
	ports map[string]ovssim.PortState
}

func (w *world) PortChanged(port string, s ovssim.PortState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[port] = s
}

func (w *world) check(t *testing.T, p driver.Port) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	got := w.ports[p.Name]
	if got.Untagged != p.Untagged || !slices.Equal(got.Tagged, p.Tagged) || got.Quarantined != p.Shut || got.Epoch != p.Epoch || got.Owner != p.Owner {
		t.Fatalf("the world has port %s as %+v, the switch says %+v", p.Name, got, p)
	}
}

func simRig(wrap func(t *testing.T, d driver.Switch) driver.Switch) func(*testing.T) fabrictest.Rig {
	return func(t *testing.T) fabrictest.Rig {
		w := &world{ports: map[string]ovssim.PortState{}}
		names := []string{"p1", "p2", "p3", "p4", "p5", "p6"}
		ports := []ovssim.Port{{Name: "uplink", Tagged: []int{10, 20}, LinkUp: true}}
		for i, n := range names {
			ports = append(ports, ovssim.Port{Name: n, Untagged: i, LinkUp: true})
		}
		sim, err := ovssim.Start(ovssim.Config{Ports: ports, Backend: w})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(sim.Close)
		return fabrictest.Rig{
			Ports: names, SetLink: sim.SetLink, World: w.check,
			Open: func(t *testing.T) driver.Switch {
				d, err := ovs.New(ovs.Config{Endpoint: sim.Endpoint(), Bridge: "br0"})
				if err != nil {
					t.Fatal(err)
				}
				return wrap(t, d)
			},
			Stranger: func(t *testing.T, port string) func(*testing.T) {
				sim.SetExternalID(port, "iface-id", "vif-of-"+port)
				return func(t *testing.T) {
					if got := sim.ExternalIDs(port)["iface-id"]; got != "vif-of-"+port {
						t.Errorf("external_ids:iface-id of %s is %q", port, got)
					}
				}
			},
			Reload: func(t *testing.T) {
				if err := sim.Restart(); err != nil {
					t.Fatal(err)
				}
			},
		}
	}
}

func TestSimulatedOpenVSwitch(t *testing.T) {
	fabrictest.Run(t, simRig(func(_ *testing.T, d driver.Switch) driver.Switch { return d }))
}

// TestPortable holds the portable type to the same contract as the driver under it.
func TestPortable(t *testing.T) {
	fabrictest.Run(t, simRig(func(t *testing.T, d driver.Switch) driver.Switch {
		s, err := fabric.New(d, fabric.Config{Name: "tor-a"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}))
}
