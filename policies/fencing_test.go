package policies

import (
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rerack.dev/rerack/orchestrator/topology"
)

// TestFencedTruthTable walks every combination of needs and of fences that are absent, open or
// confirmed, and compares with rule F2 written as a formula.
func TestFencedTruthTable(t *testing.T) {
	type state int // 0 absent, 1 open, 2 confirmed
	met := 0
	for needs := range 4 {
		n := FenceNeeds{Machine: "m", Workload: "w", Network: needs&1 != 0, Storage: needs&2 != 0}
		for combo := range 27 {
			states := []state{state(combo % 3), state(combo / 3 % 3), state(combo / 9)}
			var got []Fence
			for i, k := range []FenceKind{FencePower, FenceNetwork, FenceStorage} {
				if states[i] > 0 {
					got = append(got, Fence{Kind: k, Confirmed: states[i] == 2, Detail: "read"})
				}
			}
			power, network, storage := states[0] == 2, states[1] == 2, states[2] == 2
			kinds := 0
			for _, c := range []bool{power, network, storage || !n.Storage} {
				if c {
					kinds++
				}
			}
			want := kinds >= 2 && (power || network || storage) && // two kinds, one of them real
				(network || storage || !n.Storage) && // one that needs no power, or no storage to reach
				(network || !n.Network) && (storage || !n.Storage)
			v := Fenced(n, got)
			if v.Met != want {
				t.Errorf("needs network %v storage %v, power %v network %v storage %v: met %v, want %v (%s)", n.Network, n.Storage, power, network, storage, v.Met, want, v.Reason)
			}
			if v.Met == (len(v.Missing) > 0) || v.Reason == "" || v.Machine != "m" {
				t.Errorf("inconsistent verdict %+v", v)
			}
			if v.Met {
				met++
			}
			if v.Met && !n.Storage && !storage && !strings.Contains(v.Reason, "no volume exists") {
				t.Errorf("counted a declaration without saying so: %s", v.Reason)
			}
		}
	}
	if met == 0 {
		t.Error("no combination is ever met")
	}
}

func TestFencedPowerAlone(t *testing.T) {
	got := []Fence{{Kind: FencePower, Confirmed: true}}
	for _, n := range []FenceNeeds{{Network: true}, {Storage: true}, {Network: true, Storage: true}} {
		if v := Fenced(n, got); v.Met {
			t.Errorf("%+v met by power alone: power returns by itself", n)
		}
	}
}

// A second witness may confirm power, but one open port keeps the network fence open.
func TestFencedSeveralOfOneKind(t *testing.T) {
	n := FenceNeeds{Network: true, Storage: true}
	ok := []Fence{{Kind: FencePower, Detail: "BMC silent"}, {Kind: FencePower, Confirmed: true, Detail: "PDU outlet off"},
		{Kind: FenceNetwork, Confirmed: true}, {Kind: FenceStorage, Confirmed: true}}
	if v := Fenced(n, ok); !v.Met || !strings.Contains(v.Reason, "power") {
		t.Errorf("%+v", v)
	}
	if v := Fenced(n, append(ok, Fence{Kind: FenceNetwork, Detail: "port 7 still up"})); v.Met || !strings.Contains(strings.Join(v.Missing, ""), "port 7") {
		t.Errorf("%+v", v)
	}
}

func TestFencedIsMonotonic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := FenceNeeds{Network: rapid.Bool().Draw(t, "network"), Storage: rapid.Bool().Draw(t, "storage")}
		fence := rapid.Custom(func(t *rapid.T) Fence {
			return Fence{Kind: rapid.SampledFrom([]FenceKind{FencePower, FenceNetwork, FenceStorage}).Draw(t, "kind"), Confirmed: rapid.Bool().Draw(t, "confirmed")}
		})
		got := rapid.SliceOfN(fence, 0, 6).Draw(t, "got")
		v := Fenced(n, got)
		if more := fence.Draw(t, "more"); more.Confirmed && v.Met && !Fenced(n, append(got, more)).Met {
			t.Fatal("a confirmed fence took a met verdict back")
		}
		if v.Met {
			if !Fenced(FenceNeeds{Network: false, Storage: n.Storage}, got).Met {
				t.Fatal("needing less is harder")
			}
		}
	})
}

func TestNeeds(t *testing.T) {
	s := newSite()
	s.workload("plain", 1, 1, 1)
	s.workload("stored", 1, 1, 1, func(w *topology.WorkloadSpec) { w.Volumes = []topology.VolumeUse{{Volume: "v"}}; w.Home = "m1" })
	s.workload("alone", 1, 1, 1, func(w *topology.WorkloadSpec) { w.Networks = nil })
	for name, want := range map[string]FenceNeeds{
		"plain":   {Workload: "plain", Network: true},
		"stored":  {Machine: "m1", Workload: "stored", Network: true, Storage: true},
		"alone":   {Workload: "alone"},
		"unknown": {Workload: "unknown", Network: true, Storage: true},
	} {
		if got := Needs(s.Topology, name); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func TestOffConfirmed(t *testing.T) {
	at := func(seconds int, s PowerState) PowerSample {
		return PowerSample{s, t0.Add(time.Duration(seconds) * time.Second)}
	}
	cases := []struct {
		name     string
		readings []PowerSample
		witness  Sign
		want     bool
	}{
		{"none", nil, SignUnknown, false},
		{"one", []PowerSample{at(0, PowerOff)}, SignDown, false},
		{"three", []PowerSample{at(0, PowerOff), at(5, PowerOff), at(10, PowerOff)}, SignUnknown, true},
		{"three, witness agrees", []PowerSample{at(0, PowerOff), at(5, PowerOff), at(10, PowerOff)}, SignDown, true},
		{"three, witness sees it run", []PowerSample{at(0, PowerOff), at(5, PowerOff), at(10, PowerOff)}, SignUp, false},
		{"any order", []PowerSample{at(10, PowerOff), at(0, PowerOff), at(5, PowerOff)}, SignUnknown, true},
		{"too close", []PowerSample{at(0, PowerOff), at(1, PowerOff), at(2, PowerOff), at(3, PowerOff)}, SignUnknown, false},
		{"close ones between", []PowerSample{at(0, PowerOff), at(3, PowerOff), at(5, PowerOff), at(8, PowerOff), at(10, PowerOff)}, SignUnknown, true},
		{"one reading thrice", []PowerSample{at(0, PowerOff), at(0, PowerOff), at(0, PowerOff)}, SignUnknown, false},
		{"powering off", []PowerSample{at(0, PowerOff), at(5, PowerOff), at(10, PowerOff), at(12, PowerChanging)}, SignDown, false},
		{"changing between", []PowerSample{at(0, PowerOff), at(5, PowerChanging), at(10, PowerOff), at(15, PowerOff)}, SignDown, false},
		{"unknown between", []PowerSample{at(0, PowerOff), at(5, PowerUnknown), at(10, PowerOff), at(15, PowerOff)}, SignDown, false},
		{"on at the same instant", []PowerSample{at(0, PowerOff), at(5, PowerOff), at(10, PowerOff), at(10, PowerOn)}, SignDown, false},
		{"on long ago", []PowerSample{at(0, PowerOn), at(5, PowerOff), at(10, PowerOff), at(15, PowerOff)}, SignUnknown, true},
		{"without time", []PowerSample{{State: PowerOff}, {State: PowerOff}, {State: PowerOff}}, SignUnknown, false},
	}
	for _, c := range cases {
		if got, why := OffConfirmed(c.readings, 3, 5*time.Second, c.witness); got != c.want || why == "" {
			t.Errorf("%s: %v (%s), want %v", c.name, got, why, c.want)
		}
	}
	if ok, why := OffConfirmed([]PowerSample{at(0, PowerOff), at(5, PowerOff), at(10, PowerOff)}, 0, 0, SignUnknown); !ok {
		t.Errorf("the defaults are 3 readings 5 s apart: %s", why)
	}
}
