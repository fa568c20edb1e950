package world_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rerack.dev/rerack/test/world"
)

// takeover is a recovery done right: rack-a burns, a1's workload goes to b2, which is evicted.
func takeover(t testing.TB, w *world.World) {
	t.Helper()
	must(t, w.Burn("rack-a"))
	mask(t, w, "a1", 2)
	must(t, w.Press("b2", false, "rerack"))
	must(t, w.SetPort("tor-b", "p2", world.Port{Untagged: 10, Tagged: []int{20}, Epoch: 2}))
	must(t, w.SetZones("fa", []world.Zone{zone("a1", 2, "b2"), zone("b1", 1, "b1")}))
	mask(t, w, "a1", 2, "b2")
	must(t, w.Press("b2", true, "rerack"))
	must(t, w.Start(life(t, w, "b2"), "", "w-a1", 2))
	must(t, w.Serve(life(t, w, "b2"), "", true))
	must(t, w.Write(life(t, w, "b2"), "", "fc-a1", "w-a1", 2))
}

func TestEveryRuleFindsItsViolation(t *testing.T) {
	for name, c := range map[string]struct {
		rule, subject string // rule "" means nothing may be found
		act           func(*testing.T, *world.World)
	}{
		"takeover done right": {"", "", func(t *testing.T, w *world.World) { takeover(t, w) }},
		"zombies return fenced": {"", "", func(t *testing.T, w *world.World) {
			takeover(t, w)
			must(t, w.SetPort("tor-a", "p1", world.Port{Shut: true, Epoch: 2}))
			must(t, w.RestorePower("rack-a"))
			must(t, w.Start(life(t, w, "a1"), "", "w-a1", 1))
			must(t, w.Serve(life(t, w, "a1"), "", true))
			must(t, w.Press("a1", false, "rerack"))
		}},
		"zombie with its old port": {"S1", "workload w-a1", func(t *testing.T, w *world.World) {
			takeover(t, w)
			must(t, w.RestorePower("rack-a"))
			must(t, w.Start(life(t, w, "a1"), "", "w-a1", 1))
		}},
		"two holders on the network": {"S1", "workload w-a1", func(t *testing.T, w *world.World) {
			must(t, w.Start(life(t, w, "b2"), "", "w-a1", 2))
		}},
		"a VM beside its original": {"S1", "workload w-a1", func(t *testing.T, w *world.World) {
			must(t, w.BecomeHost(life(t, w, "b2")))
			must(t, w.StartVM(life(t, w, "b2"), world.VM{Name: "w-a1", VLANs: []int{20}, Epoch: 2}))
			must(t, w.Start(life(t, w, "b2"), "w-a1", "w-a1", 2))
		}},
		"a VM on no network and no volume": {"", "", func(t *testing.T, w *world.World) {
			must(t, w.BecomeHost(life(t, w, "b2")))
			must(t, w.StartVM(life(t, w, "b2"), world.VM{Name: "w-a1", VLANs: []int{99}, Epoch: 2}))
			must(t, w.Start(life(t, w, "b2"), "w-a1", "w-a1", 2))
		}},
		"two masked machines": {"S2", "volume fc-a1", func(t *testing.T, w *world.World) {
			must(t, w.SetZones("fa", []world.Zone{zone("a1", 1, "a1", "b1"), zone("b1", 1, "b1"), zone("a2", 1, "a2")}))
			mask(t, w, "a1", 2, "a1", "b1")
		}},
		"two masked machines, one zoned": {"", "", func(t *testing.T, w *world.World) {
			must(t, w.SetMask("arr", "/vol/a1", world.Mask{Epoch: 2, Initiators: []string{string(wwpn("a1")), "20:00:00:00:00:00:ff:ff"}}))
		}},
		"a session that outlives its mask": {"S2", "volume is-a1", func(t *testing.T, w *world.World) {
			must(t, w.Attest("a1"))
			must(t, w.SetSession("arr", "iqn.2026-01.org.example:a1", addr("a1"), true))
			mask(t, w, "a1", 2, "b2")
		}},
		"an old epoch writes late": {"S2", "volume fc-a1", func(t *testing.T, w *world.World) {
			takeover(t, w)
			must(t, w.Arrived("a1", "", "fc-a1", "w-a1", 1))
		}},
		"two writers of one epoch": {"S2", "volume fc-a1", func(t *testing.T, w *world.World) {
			must(t, w.Arrived("a1", "", "fc-a1", "w-a1", 1))
			must(t, w.Arrived("b1", "", "fc-a1", "w-a1", 1))
			must(t, w.Arrived("a1", "", "fc-a1", "w-a1", 1))
		}},
		"one writer boots again": {"", "", func(t *testing.T, w *world.World) {
			must(t, w.Attest("a1"))
			must(t, w.Write(life(t, w, "a1"), "", "fc-a1", "w-a1", 1))
			must(t, w.Press("a1", false, "person"))
			must(t, w.Press("a1", true, "person"))
			must(t, w.Write(life(t, w, "a1"), "", "fc-a1", "w-a1", 1))
		}},
		"power off what is needed": {"S3", "machine b1", func(t *testing.T, w *world.World) {
			must(t, w.Press("b1", false, "rerack"))
		}},
		"power off what is repurposable": {"", "", func(t *testing.T, w *world.World) {
			must(t, w.Press("b2", false, "rerack"))
		}},
		"power off what a person gave up": {"", "", func(t *testing.T, w *world.World) {
			must(t, w.Attest("b1"))
			must(t, w.Press("b1", false, "rerack"))
		}},
		"power off what runs on in a fire": {"", "", func(t *testing.T, w *world.World) {
			must(t, w.HalfBurn("rack-a", "a1"))
			must(t, w.Press("a1", false, "rerack"))
		}},
		"power off what never served": {"", "", func(t *testing.T, w *world.World) {
			must(t, w.Serve(life(t, w, "b1"), "", false))
			must(t, w.Press("b1", false, "rerack"))
		}},
		"shut the port of what is needed": {"S3", "machine b1", func(t *testing.T, w *world.World) {
			must(t, w.SetPort("tor-b", "p1", world.Port{Shut: true, Epoch: 2}))
		}},
		"close the uplink of a rack that lives": {"S3", "machine b1", func(t *testing.T, w *world.World) {
			must(t, w.SetPort("core", "down-b", world.Port{Trunk: true, Shut: true, Epoch: 2}))
		}},
		"close the uplink of a rack that burns": {"", "", func(t *testing.T, w *world.World) {
			must(t, w.Burn("rack-a"))
			must(t, w.SetPort("core", "down-a", world.Port{Trunk: true, Shut: true, Epoch: 2}))
		}},
		"unmask what is needed": {"S3", "machine b1", func(t *testing.T, w *world.World) { mask(t, w, "b1", 2) }},
		"unzone what is needed": {"S3", "machine b1", func(t *testing.T, w *world.World) {
			must(t, w.SetZones("fa", []world.Zone{zone("a1", 1, "a1"), zone("a2", 1, "a2"), zone("b2", 1, "b2")}))
		}},
		"fence after cutting management": {"S3", "machine a1", func(t *testing.T, w *world.World) {
			must(t, w.SetManagement("rack-a", false))
			mask(t, w, "a1", 2)
		}},
		"port epoch goes down": {"S5", "port tor-b/p2", func(t *testing.T, w *world.World) {
			must(t, w.SetPort("tor-b", "p2", world.Port{Untagged: 10, Tagged: []int{20}, Epoch: 3}))
			must(t, w.SetPort("tor-b", "p2", world.Port{Untagged: 10, Tagged: []int{20}, Epoch: 2}))
		}},
		"zone epoch goes down": {"S5", "zone fa/vol-fc-b2", func(t *testing.T, w *world.World) {
			must(t, w.SetZones("fb", nil))
			must(t, w.Attest("b1"))
			must(t, w.Attest("a1"))
			must(t, w.Attest("a2"))
			must(t, w.SetZones("fa", []world.Zone{zone("b2", 4, "b2")}))
			must(t, w.SetZones("fa", []world.Zone{zone("b2", 3, "b2")}))
		}},
		"mask epoch goes down": {"S5", "mask arr//vol/b2", func(t *testing.T, w *world.World) {
			mask(t, w, "b2", 5, "b2")
			mask(t, w, "b2", 4, "b2")
		}},
		"foreign port touched": {"S6", "port tor-b/printer", func(t *testing.T, w *world.World) {
			must(t, w.SetPort("tor-b", "printer", world.Port{Untagged: 7}))
			must(t, w.Protect("port", "tor-b", "printer"))
			must(t, w.SetPort("tor-b", "printer", world.Port{Untagged: 10}))
		}},
		"foreign zone gone": {"S6", "zone fb/tape", func(t *testing.T, w *world.World) {
			must(t, w.SetZones("fb", []world.Zone{{Name: "tape", Members: []string{"10:00:00:00:00:00:00:01"}}}))
			must(t, w.Protect("zone", "fb", "tape"))
			must(t, w.SetZones("fb", nil))
		}},
		"foreign mask touched": {"S6", "mask arr//vol/theirs", func(t *testing.T, w *world.World) {
			must(t, w.SetMask("arr", "/vol/theirs", world.Mask{Initiators: []string{"10.1.2.3"}}))
			must(t, w.Protect("mask", "arr", "/vol/theirs"))
			must(t, w.SetMask("arr", "/vol/theirs", world.Mask{}))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := running(t)
			c.act(t, w)
			got := w.Check()
			if c.rule == "" {
				clean(t, w)
				return
			}
			if len(got) == 0 || got[0].Rule != c.rule || got[0].Subject != c.subject || got[0].Detail == "" || got[0].At.IsZero() {
				t.Fatalf("want %s on %s first, got %+v", c.rule, c.subject, got)
			}
			if again := w.Check(); len(again) != len(got) {
				t.Errorf("violations are not sticky: %d, then %d", len(got), len(again))
			}
		})
	}
}

func TestActsSayWhatRan(t *testing.T) {
	w := running(t)
	must(t, w.Press("b2", false, "redfish"))
	must(t, w.Press("b2", false, "redfish"))
	acts := w.Acts()
	if len(acts) != 1 || acts[0].By != "redfish" || len(acts[0].Runs) != 1 || acts[0].Runs[0].Workload != "w-b2" {
		t.Errorf("acts %+v", acts)
	}
	if p := w.Power("b2").Presses; p.Off != 2 || p.On != 1 {
		t.Errorf("presses %+v", p)
	}
}

// TestOneHolderIsNeverBlamed walks at random through powers, ports, masks and starts, of which each
// workload is granted to one machine at a time in the right order. Whatever happens, S1, S2, S5 hold.
func TestOneHolderIsNeverBlamed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := running(t)
		holder, epoch := "a1", uint64(1)
		machines := rapid.SampledFrom([]string{"a1", "a2", "b1", "b2"})
		rt.Repeat(map[string]func(*rapid.T){
			"burn":    func(rt *rapid.T) { _ = w.Burn("rack-" + machines.Draw(rt, "m")[:1]) },
			"restore": func(rt *rapid.T) { _ = w.RestorePower("rack-" + machines.Draw(rt, "m")[:1]) },
			"press":   func(rt *rapid.T) { _ = w.Press(machines.Draw(rt, "m"), rapid.Bool().Draw(rt, "on"), "rapid") },
			"write": func(rt *rapid.T) {
				m := machines.Draw(rt, "m")
				l, _ := w.Life(m)
				if err := w.Write(l, "", "fc-a1", "w-a1", epoch); err == nil && m != holder {
					rt.Fatalf("%s wrote, %s holds", m, holder)
				}
			},
			"move": func(rt *rapid.T) {
				to := machines.Draw(rt, "to")
				epoch++
				mask(t, w, "a1", epoch)
				_ = w.Press(holder, false, "rapid")
				_ = w.Press(to, false, "rapid")
				must(t, w.SetPort("tor-"+to[:1], "p"+to[1:], world.Port{Untagged: 10, Tagged: []int{20}, Epoch: epoch}))
				must(t, w.SetZones("fa", []world.Zone{zone("a1", epoch, to)}))
				mask(t, w, "a1", epoch, to)
				holder = to
				_ = w.Press(to, true, "rapid")
				if l, ok := w.Life(to); ok {
					must(t, w.Start(l, "", "w-a1", epoch))
				}
			},
			"": func(rt *rapid.T) {
				for _, v := range w.Check() {
					if !strings.HasPrefix(v.Rule, "S3") {
						rt.Fatalf("%+v", v)
					}
				}
			},
		})
	})
}
