package policies

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"rerack.dev/rerack/orchestrator/topology"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// rackFacts is a rack of n machines behind one switch, all of them with storage logins.
func rackFacts(n int) DomainFacts {
	f := DomainFacts{Domain: "rack/r", Switches: []string{"tor"}, Homes: map[string][]string{}, Total: 100 * n}
	for i := range n {
		m := fmt.Sprintf("m%d", i)
		f.Machines = append(f.Machines, m)
		f.Stored = append(f.Stored, m)
		f.Homes[m] = []string{"tor"}
	}
	return f
}

func says(k EvidenceKind, subject string, s Sign) Evidence {
	return Evidence{Kind: k, Subject: subject, Sign: s, At: t0.Add(-time.Second), Since: t0.Add(-2 * time.Minute), Source: "probe"}
}

func linkDown(subject, from string) Evidence {
	e := says(EvidenceLink, subject, SignDown)
	e.Source = "switch/" + from
	return e
}

// all says the same of every machine of f.
func all(f DomainFacts, k EvidenceKind, s Sign) []Evidence {
	var out []Evidence
	for _, m := range f.Machines {
		out = append(out, says(k, "machine/"+m, s))
	}
	return out
}

func join(lists ...[]Evidence) []Evidence { return slices.Concat(lists...) }

func TestJudge(t *testing.T) {
	f := rackFacts(4)
	bmc := all(f, EvidenceBMC, SignDown)
	link := []Evidence{linkDown("switch/tor", "core")}
	storage := all(f, EvidenceStorage, SignDown)
	person := []Evidence{says(EvidencePerson, f.Domain, SignDown)}
	with := func(change func(*DomainFacts)) DomainFacts {
		g := rackFacts(4)
		change(&g)
		return g
	}
	changed := func(ev []Evidence, change func(*Evidence)) []Evidence {
		out := slices.Clone(ev)
		for i := range out {
			change(&out[i])
		}
		return out
	}
	cases := []struct {
		name   string
		facts  DomainFacts
		ev     []Evidence
		policy topology.EvidencePolicy
		want   VerdictState
		says   string // in Reason or Missing
	}{
		{name: "nothing known", facts: f, want: VerdictUp},
		{name: "all silent", facts: f, ev: bmc, want: VerdictSuspect, says: "link"},
		{name: "silent BMCs and a silent switch are one cause", facts: f, ev: join(bmc, []Evidence{says(EvidenceSwitch, "switch/tor", SignDown)}), want: VerdictSuspect},
		{name: "silent and no carrier", facts: f, ev: join(bmc, link), want: VerdictBurned},
		{name: "silent and logged out", facts: f, ev: join(bmc, storage), want: VerdictBurned},
		{name: "no carrier and logged out", facts: f, ev: join(link, storage), want: VerdictBurned},
		{name: "silent and a smoke alarm", facts: f, ev: join(bmc, []Evidence{says(EvidenceSensor, f.Domain, SignDown)}), want: VerdictBurned},
		{name: "silent and agents stopped", facts: f, ev: join(bmc, all(f, EvidenceAgent, SignDown)), want: VerdictBurned},
		{name: "a person alone", facts: f, ev: person, want: VerdictSuspect},
		{name: "one BMC answers on", facts: f, ev: join(bmc[1:], []Evidence{says(EvidenceBMC, "machine/m0", SignUp)}, link, storage), want: VerdictSuspect, says: "machine/m0"},
		{name: "one BMC unknown", facts: f, ev: join(bmc[1:], link), want: VerdictSuspect, says: "3 of 4"},
		{name: "one BMC unknown, two other kinds", facts: f, ev: join(bmc[1:], link, storage), want: VerdictBurned},
		{name: "one machine still logged in", facts: f, ev: join(bmc, link, []Evidence{says(EvidenceStorage, "machine/m2", SignUp)}), want: VerdictSuspect, says: "machine/m2"},
		{name: "lying BMCs over running machines", facts: f, ev: join(bmc, []Evidence{says(EvidenceAgent, "machine/m1", SignUp), says(EvidenceStorage, "machine/m2", SignUp)}), want: VerdictSuspect},
		{name: "lying BMCs, attested", facts: f, ev: join(bmc, person, []Evidence{says(EvidenceAgent, "machine/m1", SignUp), says(EvidenceStorage, "machine/m2", SignUp)}), want: VerdictBurned, says: "cut off by the fences"},
		{name: "another person objects", facts: f, ev: join(bmc, person, storage, []Evidence{says(EvidencePerson, f.Domain, SignUp)}), want: VerdictSuspect, says: "person says"},
		{name: "not held", facts: f, ev: join(bmc, changed(link, func(e *Evidence) { e.Since = t0.Add(-10 * time.Second) })), want: VerdictSuspect, says: "9s of 30s"},
		{name: "held, but seen only once", facts: f, ev: join(changed(bmc, func(e *Evidence) { e.Since = e.At }), link), want: VerdictSuspect},
		{name: "person speaks once", facts: f, ev: join(bmc, changed(person, func(e *Evidence) { e.At = t0.Add(-40 * time.Second); e.Since = e.At })), want: VerdictBurned},
		{name: "stale", facts: f, ev: join(bmc, changed(link, func(e *Evidence) { e.At = t0.Add(-61 * time.Second) })), want: VerdictSuspect},
		{name: "stale life", facts: f, ev: join(bmc, link, []Evidence{{Kind: EvidenceAgent, Subject: "machine/m0", Sign: SignUp, At: t0.Add(-2 * time.Minute)}}), want: VerdictBurned},
		{name: "from the future", facts: f, ev: join(bmc, changed(link, func(e *Evidence) { e.At = t0.Add(time.Minute) })), want: VerdictSuspect},
		{name: "since unknown", facts: f, ev: join(bmc, changed(link, func(e *Evidence) { e.Since = time.Time{} })), want: VerdictSuspect},
		{name: "unknown signs", facts: f, ev: join(bmc, changed(link, func(e *Evidence) { e.Sign = SignUnknown })), want: VerdictSuspect},
		{name: "link seen from the rack's own switch", facts: f, ev: join(bmc, []Evidence{linkDown("switch/tor", "tor")}), want: VerdictSuspect},
		{name: "link without a source", facts: f, ev: join(bmc, changed(link, func(e *Evidence) { e.Source = "" })), want: VerdictSuspect},
		{name: "one of two uplinks still up", facts: f, ev: join(bmc, link, []Evidence{{Kind: EvidenceLink, Subject: "switch/tor", Sign: SignUp, At: t0, Source: "switch/core-2"}}), want: VerdictSuspect},
		{name: "one of two uplinks not seen", facts: with(func(g *DomainFacts) { g.Uplinks = map[string]int{"tor": 2} }), ev: join(bmc, link), want: VerdictSuspect},
		{name: "both uplinks seen", facts: with(func(g *DomainFacts) { g.Uplinks = map[string]int{"tor": 2} }), ev: join(bmc, []Evidence{linkDown("switch/tor", "core:p1"), linkDown("switch/tor", "core:p2")}), want: VerdictBurned},
		{name: "one of two access ports not seen", facts: with(func(g *DomainFacts) { g.Homes["m3"] = []string{"eor", "eor"} }), ev: join(bmc, link, []Evidence{linkDown("machine/m3", "eor:p7")}), want: VerdictSuspect},
		{name: "second home without evidence", facts: with(func(g *DomainFacts) { g.Homes["m3"] = []string{"tor", "eor"} }), ev: join(bmc, link), want: VerdictSuspect},
		{name: "second home's access port down", facts: with(func(g *DomainFacts) { g.Homes["m3"] = []string{"tor", "eor"} }), ev: join(bmc, link, []Evidence{linkDown("machine/m3", "eor:p7")}), want: VerdictBurned},
		{name: "machines without logins to miss", facts: with(func(g *DomainFacts) { g.Stored = nil }), ev: join(bmc, storage), want: VerdictSuspect},
		{name: "some without logins, covered by carrier", facts: with(func(g *DomainFacts) { g.Stored = []string{"m0", "m1"}; g.Homes["m0"], g.Homes["m1"] = nil, nil }), ev: join(bmc, link, storage), want: VerdictBurned},
		{name: "other domain's evidence", facts: f, ev: join(bmc, []Evidence{linkDown("switch/other", "core"), says(EvidenceSensor, "rack/q", SignDown)}), want: VerdictSuspect},
		{name: "empty domain", facts: DomainFacts{Domain: "rack/r", Total: 100}, ev: join(person, []Evidence{says(EvidenceSensor, "rack/r", SignDown)}), want: VerdictSuspect, says: "no machine"},
		{name: "partition of ours", facts: with(func(g *DomainFacts) { g.SilentAll = 137 }), ev: join(bmc, link, storage, person), want: VerdictCutOff, says: "137 of 400"},
		{name: "just below the brake", facts: with(func(g *DomainFacts) { g.SilentAll = 136 }), ev: join(bmc, link), want: VerdictBurned},
		{name: "observer just started", facts: with(func(g *DomainFacts) { g.Disclaimer = "watching for 4 s only" }), ev: join(bmc, link, person), want: VerdictSuspect, says: "4 s only"},
		{name: "three kinds asked for", facts: f, ev: join(bmc, link), policy: topology.EvidencePolicy{MinKinds: 3}, want: VerdictSuspect},
		{name: "three kinds there", facts: f, ev: join(bmc, link, storage), policy: topology.EvidencePolicy{MinKinds: 3}, want: VerdictBurned},
		{name: "one kind cannot be asked for", facts: f, ev: bmc, policy: topology.EvidencePolicy{MinKinds: 1}, want: VerdictSuspect},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			v := Judge(c.facts, c.ev, c.policy, t0)
			if v.State != c.want {
				t.Fatalf("got %s (%s), want %s", v.State, v.Reason, c.want)
			}
			if text := v.Reason + strings.Join(v.Missing, ";"); !strings.Contains(text, c.says) {
				t.Errorf("%q is not in %q", c.says, text)
			}
			if v.Domain != c.facts.Domain || v.Reason == "" {
				t.Errorf("no domain or reason: %+v", v)
			}
			if v.State == VerdictSuspect && len(v.Missing) == 0 {
				t.Error("suspect without telling what is missing")
			}
			if v.State == VerdictBurned && len(v.Kinds) < 2 {
				t.Errorf("burned by %v", v.Kinds)
			}
		})
	}
}

func TestJudgeBoundsWhatItReturns(t *testing.T) {
	f := rackFacts(500)
	v := Judge(f, join(all(f, EvidenceBMC, SignDown), all(f, EvidenceStorage, SignDown), all(f, EvidenceAgent, SignUp)), topology.EvidencePolicy{}, t0)
	if len(v.Used) > 40 || len(v.Against) > 40 || len(v.Used) == 0 || len(v.Against) == 0 {
		t.Fatalf("%d used, %d against", len(v.Used), len(v.Against))
	}
	kinds := map[EvidenceKind]bool{}
	for _, e := range v.Used {
		kinds[e.Kind] = true
	}
	if !kinds[EvidenceBMC] || !kinds[EvidenceStorage] {
		t.Errorf("the sample shows only %v", kinds)
	}
}

var kindGroup = map[EvidenceKind]string{
	EvidenceBMC: "management", EvidenceSwitch: "management", EvidenceLink: "link", EvidenceStorage: "storage",
	EvidenceSensor: "sensor", EvidencePerson: "person", EvidenceAgent: "agent",
}

func drawEvidence(t *rapid.T, f DomainFacts) Evidence {
	kind := rapid.SampledFrom([]EvidenceKind{EvidenceBMC, EvidenceSwitch, EvidenceLink, EvidenceStorage, EvidenceSensor, EvidencePerson, EvidenceAgent}).Draw(t, "kind")
	subjects := []string{"switch/tor", f.Domain, "machine/other"}
	for _, m := range f.Machines {
		subjects = append(subjects, "machine/"+m)
	}
	age := time.Duration(rapid.IntRange(-5, 80).Draw(t, "age")) * time.Second
	return Evidence{Kind: kind, Subject: rapid.SampledFrom(subjects).Draw(t, "subject"),
		Sign:   rapid.SampledFrom([]Sign{SignDown, SignDown, SignDown, SignUp, SignUnknown}).Draw(t, "sign"),
		At:     t0.Add(-age),
		Since:  t0.Add(-age - time.Duration(rapid.IntRange(0, 90).Draw(t, "held"))*time.Second),
		Source: rapid.SampledFrom([]string{"core", "tor", "probe"}).Draw(t, "source")}
}

// drawScene starts from evidence that is enough or nearly so, since random evidence alone hardly ever is.
func drawScene(t *rapid.T) (DomainFacts, []Evidence) {
	f := rackFacts(rapid.IntRange(0, 3).Draw(t, "machines"))
	var ev []Evidence
	for _, k := range []EvidenceKind{EvidenceBMC, EvidenceStorage, EvidenceAgent} {
		if rapid.Bool().Draw(t, string(k)) {
			ev = append(ev, all(f, k, SignDown)...)
		}
	}
	if rapid.Bool().Draw(t, "link") {
		ev = append(ev, linkDown("switch/tor", "core"))
	}
	if rapid.Bool().Draw(t, "person") {
		ev = append(ev, says(EvidencePerson, f.Domain, SignDown))
	}
	for range rapid.IntRange(0, 4).Draw(t, "noise") {
		ev = append(ev, drawEvidence(t, f))
	}
	return f, ev
}

func TestJudgeProperties(t *testing.T) {
	burned := 0
	rapid.Check(t, func(t *rapid.T) {
		f, ev := drawScene(t)
		p := topology.EvidencePolicy{MinKinds: rapid.IntRange(0, 4).Draw(t, "minKinds")}
		v := Judge(f, ev, p, t0)
		if v.State == VerdictBurned {
			burned++
			groups := map[string]bool{}
			for _, e := range ev {
				if e.Sign == SignDown {
					groups[kindGroup[e.Kind]] = true
				}
			}
			if len(groups) < max(2, p.MinKinds) || len(f.Machines) == 0 {
				t.Fatalf("burned on %v with %d machines", groups, len(f.Machines))
			}
			for _, e := range v.Used {
				if e.Sign != SignDown || t0.Sub(e.At) > time.Minute {
					t.Fatalf("used %+v", e)
				}
			}
		}

		shuffled := slices.Clone(ev)
		rand.New(rand.NewPCG(uint64(len(ev)), 7)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if w := Judge(f, shuffled, p, t0); !reflect.DeepEqual(v, w) {
			t.Fatalf("the order matters:\n%+v\n%+v", v, w)
		}

		extra := drawEvidence(t, f)
		extra.Sign = SignUnknown
		if w := Judge(f, append(slices.Clone(ev), extra), p, t0); !reflect.DeepEqual(v, w) {
			t.Fatalf("unknown is not the same as absent:\n%+v\n%+v", v, w)
		}
		extra = drawEvidence(t, f)
		extra.Sign = SignUp
		if w := Judge(f, append(slices.Clone(ev), extra), p, t0); v.State != VerdictBurned && w.State == VerdictBurned {
			t.Fatalf("a sign of life burned the domain: %+v", extra)
		}

		// Monotonic: held, fresh evidence of down never takes a verdict of burned back.
		k := rapid.SampledFrom([]EvidenceKind{EvidenceBMC, EvidenceStorage, EvidenceSensor, EvidencePerson, EvidenceAgent}).Draw(t, "more")
		if w := Judge(f, append(slices.Clone(ev), all(f, k, SignDown)...), p, t0); v.State == VerdictBurned && w.State != VerdictBurned {
			t.Fatalf("more evidence of down took the verdict back: %s", w.Reason)
		}
		g := f
		g.SilentAll, g.Total = 35, 100
		if w := Judge(g, ev, p, t0); w.State == VerdictBurned {
			t.Fatal("burned beyond the mass brake")
		}
	})
	if burned == 0 {
		t.Error("no scene was burned: the properties were never tried on one")
	}
}

// One group of evidence, however much of it, never burns.
func TestJudgeOneGroupNeverBurns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rackFacts(rapid.IntRange(1, 4).Draw(t, "machines"))
		group := rapid.SampledFrom([]string{"management", "link", "storage", "sensor", "person", "agent"}).Draw(t, "group")
		var ev []Evidence
		for range rapid.IntRange(1, 20).Draw(t, "n") {
			if e := drawEvidence(t, f); kindGroup[e.Kind] == group {
				ev = append(ev, e)
			}
		}
		for k, g := range kindGroup {
			if g == group && k != EvidenceSwitch && k != EvidenceLink {
				ev = append(ev, all(f, k, SignDown)...)
			}
		}
		if group == "link" {
			ev = append(ev, linkDown("switch/tor", "core"))
		}
		if v := Judge(f, ev, topology.EvidencePolicy{}, t0); v.State == VerdictBurned {
			t.Fatalf("%s alone burned: %s", group, v.Reason)
		}
	})
}

func BenchmarkJudge2000(b *testing.B) {
	f := rackFacts(2000)
	ev := join(all(f, EvidenceBMC, SignDown), all(f, EvidenceStorage, SignDown), all(f, EvidenceAgent, SignUp), []Evidence{linkDown("switch/tor", "core")})
	for b.Loop() {
		Judge(f, ev, topology.EvidencePolicy{}, t0)
	}
}
