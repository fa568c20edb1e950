package policies

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
)

// Defaults of the evidence policy, for hundreds of machines. A small site sets its own.
const (
	defaultHoldFor     = 30 * time.Second
	defaultMaxAge      = 60 * time.Second
	defaultMassPercent = 34
	leastKinds         = 2 // rule F1: never fewer, whatever a policy says
	evidenceSample     = 40
)

// Judge decides whether a failure domain is down for certain (rules F1 and F6).
//
// Burned needs MinKinds independent kinds of evidence for every machine of the domain, each fresh,
// each held for HoldFor, and nothing that still shows a sign of life. What dies of one cause counts
// once: a silent BMC and a silent switch are both the management network, so together they are one
// kind. Unknown, stale, missing and self-contradicting evidence is no evidence, and an empty domain is
// never burned.
//
// What each kind has to say:
//   - bmc: the machine's BMC is silent or reads off. A switch's silence is kept as context only.
//   - link: per switch the machine is cabled to, a switch that survives sees no carrier. The subject is
//     "switch/x" when x stands in the domain and dies with it (all its uplinks are down, seen from the
//     far ends) and "machine/m" when m's access port is on a surviving switch; Source names the seeing
//     switch and its port. Every uplink, or every access port, has to be seen. Down seen by a switch of
//     the domain itself does not count.
//   - storage: array or fabric misses the machine's login; only of machines listed in Stored.
//   - agent: the agent or workload on the machine stopped reporting.
//   - sensor, person: about the machine, or about the domain as a whole.
//
// A sign of life of any machine (BMC on, carrier, login, agent) vetoes the verdict unless a person has
// attested that the whole domain is down: then a machine may be half alive behind a lying BMC, the
// signs go to Against, and the fences have to cut them off. A person who says up vetoes always.
//
// Devices are read again and again, so their evidence has to span HoldFor between Since and At. A
// person and a sensor alarm speak once: theirs has held since Since. The caller renews At for as long
// as the statement or alarm stands.
func Judge(f DomainFacts, ev []Evidence, p topology.EvidencePolicy, now time.Time) Verdict {
	j := newJudgement(f, p, now)
	for _, e := range sortedEvidence(ev) {
		j.take(e)
	}
	return j.verdict(p)
}

// evidenceOrder lists the independent kinds in the order they are reported. A silent switch is not among
// them: it dies of the same cause as the BMCs.
var evidenceOrder = [...]EvidenceKind{EvidenceBMC, EvidenceLink, EvidenceStorage, EvidenceSensor, EvidencePerson, EvidenceAgent}

// finding is what all fresh readings of one kind about one subject say together.
type finding struct {
	down, up bool
	held     time.Duration   // the shortest time a down has held; meaningless without down
	sources  map[string]bool // who says down
}

type judgement struct {
	facts    DomainFacts
	machines []string // without repeats, sorted
	member   map[string]bool
	inside   map[string]bool // switches of the domain
	stored   map[string]bool
	hold     time.Duration
	maxAge   time.Duration
	now      time.Time

	found   map[EvidenceKind]map[string]finding
	used    []Evidence
	against []Evidence
	denied  bool // a person says up
}

func newJudgement(f DomainFacts, p topology.EvidencePolicy, now time.Time) *judgement {
	j := &judgement{
		facts: f, member: setOf(f.Machines), inside: setOf(f.Switches), stored: setOf(f.Stored),
		hold: p.HoldFor.Or(defaultHoldFor), maxAge: p.MaxAge.Or(defaultMaxAge), now: now,
		found: map[EvidenceKind]map[string]finding{},
	}
	j.machines = sortedKeys(j.member)
	return j
}

// take adds one observation if it is fresh, about this domain, and from a place that can know.
func (j *judgement) take(e Evidence) {
	kind, name, ok := strings.Cut(e.Subject, "/")
	whole := e.Subject == j.facts.Domain
	if !ok || !(whole || kind == "machine" && j.member[name] || kind == "switch" && j.inside[name]) {
		return
	}
	age := j.now.Sub(e.At)
	if age > j.maxAge {
		return
	}
	switch e.Sign {
	case SignUp: // one from a clock that runs ahead counts too: that errs on the safe side
		j.against = append(j.against, e)
		if e.Kind == EvidencePerson {
			j.denied = true
		}
	case SignDown:
		if age < 0 || e.Since.IsZero() || e.Since.After(e.At) || !j.canKnow(e) {
			return
		}
		j.used = append(j.used, e)
	default:
		return
	}
	j.add(e)
}

// canKnow refuses what cannot be evidence of down: a port seen from a switch that is itself in the
// domain, and a missing login of a machine that never had one.
func (j *judgement) canKnow(e Evidence) bool {
	switch e.Kind {
	case EvidenceLink:
		seer := seeingSwitch(e.Source)
		return seer != "" && !j.inside[seer]
	case EvidenceStorage:
		name, ok := strings.CutPrefix(e.Subject, "machine/")
		return ok && j.stored[name]
	default:
		return true
	}
}

func (j *judgement) add(e Evidence) {
	at := e.Subject
	if e.Kind == EvidenceLink && strings.HasPrefix(at, "machine/") {
		at += "@" + seeingSwitch(e.Source) // each access port is a finding of its own
	}
	if j.found[e.Kind] == nil {
		j.found[e.Kind] = map[string]finding{}
	}
	f, seen := j.found[e.Kind][at]
	if e.Sign == SignUp {
		f.up = true
	} else {
		held := e.At.Sub(e.Since)
		if e.Kind == EvidencePerson || e.Kind == EvidenceSensor {
			held = j.now.Sub(e.Since)
		}
		if !seen || !f.down || held < f.held {
			f.held = held
		}
		f.down = true
		if f.sources == nil {
			f.sources = map[string]bool{}
		}
		f.sources[e.Source] = true
	}
	j.found[e.Kind][at] = f
}

// down says whether the readings of kind about subject agree on down and have held long enough.
func (j *judgement) down(k EvidenceKind, subject string) bool {
	f := j.found[k][subject]
	return f.down && !f.up && f.held >= j.hold
}

// covers says whether evidence of kind k shows machine m down.
func (j *judgement) covers(k EvidenceKind, m string) bool {
	subject := "machine/" + m
	switch k {
	case EvidenceBMC, EvidenceStorage, EvidenceAgent:
		return j.down(k, subject)
	case EvidenceSensor, EvidencePerson:
		return j.down(k, j.facts.Domain) || j.down(k, subject)
	case EvidenceLink:
		ports := map[string]int{}
		for _, s := range j.facts.Homes[m] {
			ports[s]++
		}
		for s, n := range ports {
			at := subject + "@" + s
			if j.inside[s] {
				at, n = "switch/"+s, j.facts.Uplinks[s]
			}
			if !j.down(k, at) || len(j.found[k][at].sources) < n {
				return false
			}
		}
		return len(ports) > 0
	default: // a silent switch, or a kind of a later version: no independent word on a machine
		return false
	}
}

// alive lists the machines that show a sign of life a verdict must not overrule by itself.
func (j *judgement) alive() []string {
	seen := map[string]bool{}
	for _, e := range j.against {
		switch e.Kind {
		case EvidenceBMC, EvidenceLink, EvidenceStorage, EvidenceAgent:
			if !strings.HasPrefix(e.Subject, "switch/") { // a switch may live on while its machines are gone
				seen[e.Subject] = true
			}
		}
	}
	return sortedKeys(seen)
}

// seeingSwitch takes the switch out of a source such as "switch/core-1" or "switch/core-1:eth7".
func seeingSwitch(source string) string {
	s := strings.TrimPrefix(source, "switch/")
	if i := strings.IndexAny(s, ":/ "); i >= 0 {
		s = s[:i]
	}
	return s
}

func sortedEvidence(ev []Evidence) []Evidence {
	out := slices.Clone(ev)
	slices.SortFunc(out, func(a, b Evidence) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Source, b.Source),
			cmp.Compare(a.Sign, b.Sign), a.Since.Compare(b.Since), a.At.Compare(b.At), cmp.Compare(a.Detail, b.Detail))
	})
	return out
}

// sample keeps at most evidenceSample observations, spread over the kinds.
func sample(ev []Evidence) []Evidence {
	if len(ev) <= evidenceSample {
		return ev
	}
	kinds := map[EvidenceKind]int{}
	for _, e := range ev {
		kinds[e.Kind]++
	}
	share := evidenceSample / len(kinds)
	taken := map[EvidenceKind]int{}
	var out []Evidence
	for _, e := range ev {
		if taken[e.Kind] < share {
			taken[e.Kind]++
			out = append(out, e)
		}
	}
	return out
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	return set
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// few writes at most three names and how many more there are.
func few(names []string) string {
	if len(names) <= 4 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
}
