package policies

import (
	"fmt"
	"strings"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
)

// verdict weighs what was taken in.
func (j *judgement) verdict(p topology.EvidencePolicy) Verdict {
	v := Verdict{Domain: j.facts.Domain, Used: sample(j.used), Against: sample(j.against)}
	need := max(p.MinKinds, leastKinds)
	whole, partial, least := j.count()
	v.Kinds = whole

	if j.facts.Disclaimer != "" {
		v.State = VerdictUp
		if len(j.used) > 0 {
			v.State = VerdictSuspect
		}
		v.Reason = fmt.Sprintf("no verdict on %s: %s", v.Domain, j.facts.Disclaimer)
		v.Missing = []string{"an observer that has watched long enough"}
		return v
	}
	if silent, total, limit, over := j.brake(p); over {
		v.State = VerdictCutOff
		v.Reason = fmt.Sprintf("%d of %d machines of the site are silent at once, more than %d %%: the fault is taken to be ours, nothing is done automatically",
			silent, total, limit)
		v.Missing = []string{fmt.Sprintf("no more than %d %% of the site's machines silent, or a policy that allows for more", limit)}
		return v
	}
	if len(j.used) == 0 {
		v.State = VerdictUp
		v.Reason = fmt.Sprintf("nothing fresh says that %s is down", v.Domain)
		return v
	}

	v.State = VerdictSuspect
	attested := len(j.machines) > 0 && j.coversAll(EvidencePerson)
	alive := j.alive()
	switch {
	case len(j.machines) == 0:
		v.Reason = fmt.Sprintf("%s has no machine to judge", v.Domain)
		v.Missing = []string{"a machine in the domain that is not in maintenance"}
	case j.denied:
		v.Reason = fmt.Sprintf("a person says that %s is up", v.Domain)
		v.Missing = []string{"that statement withdrawn"}
	case least < need:
		v.Reason = fmt.Sprintf("%s: %s for all %d machines, %d independent kinds are needed for each", v.Domain, kindList(whole), len(j.machines), need)
		v.Missing = j.missing()
	case len(alive) > 0 && !attested:
		v.Reason = fmt.Sprintf("%s: %s say down, but %d show life: %s", v.Domain, kindList(append(whole, partial...)), len(alive), few(alive))
		v.Missing = []string{"no more sign of life of " + few(alive), fmt.Sprintf("or a person's statement that %s is down", v.Domain)}
	default:
		v.State = VerdictBurned
		if len(whole) < need { // different kinds for different machines, each of them with enough
			v.Kinds = append(whole, partial...)
		}
		v.Reason = fmt.Sprintf("%s: %s agree for all %d machines, held for %s", v.Domain, kindList(v.Kinds), len(j.machines), j.hold)
		if len(alive) > 0 {
			v.Reason += fmt.Sprintf("; a person attests it, although %s show life and must be cut off by the fences", few(alive))
		}
	}
	return v
}

// count returns the kinds that cover every machine, those that cover some, and the least number of
// kinds any one machine has.
func (j *judgement) count() (whole, partial []EvidenceKind, least int) {
	per := make([]int, len(j.machines))
	for _, k := range evidenceOrder {
		n := 0
		for i, m := range j.machines {
			if j.covers(k, m) {
				n++
				per[i]++
			}
		}
		switch {
		case n > 0 && n == len(j.machines):
			whole = append(whole, k)
		case n > 0:
			partial = append(partial, k)
		}
	}
	for i, n := range per {
		if i == 0 || n < least {
			least = n
		}
	}
	return whole, partial, least
}

func (j *judgement) coversAll(k EvidenceKind) bool {
	for _, m := range j.machines {
		if !j.covers(k, m) {
			return false
		}
	}
	return true
}

// brake is rule F6: losing sight of this much at once is a partition of the observer.
func (j *judgement) brake(p topology.EvidencePolicy) (silent, total, limit int, over bool) {
	limit = p.MassPercent
	if limit <= 0 {
		limit = defaultMassPercent
	}
	silent, total = j.facts.SilentAll, max(j.facts.Total, len(j.machines))
	return silent, total, limit, silent*100 > limit*total
}

// missing says per kind what would make the verdict certain.
func (j *judgement) missing() []string {
	want := map[EvidenceKind]string{
		EvidenceBMC:     "the BMC silent or reading off",
		EvidenceLink:    "no carrier, seen from a surviving switch",
		EvidenceStorage: "no storage login left",
		EvidenceSensor:  "a sensor alarm",
		EvidencePerson:  "a person's statement",
		EvidenceAgent:   "no word of the agent",
	}
	var out []string
	for _, k := range evidenceOrder {
		n := 0
		for _, m := range j.machines {
			if j.covers(k, m) {
				n++
			}
		}
		if n == len(j.machines) {
			continue
		}
		line := fmt.Sprintf("%s: %s (now for %d of %d machines", k, want[k], n, len(j.machines))
		if d, waiting := j.waiting(k); waiting {
			line += fmt.Sprintf("; some held only %s of %s", d.Round(time.Second), j.hold)
		}
		if k == EvidenceStorage && len(j.stored) < len(j.machines) {
			line += fmt.Sprintf("; only %d have logins to miss", len(j.stored))
		}
		out = append(out, line+")")
	}
	return out
}

// waiting returns the shortest time a reading of kind k that says down has held, if below HoldFor.
func (j *judgement) waiting(k EvidenceKind) (time.Duration, bool) {
	least, any := time.Duration(0), false
	for _, f := range j.found[k] {
		if f.down && !f.up && f.held < j.hold && (!any || f.held < least) {
			least, any = f.held, true
		}
	}
	return least, any
}

func kindList(kinds []EvidenceKind) string {
	if len(kinds) == 0 {
		return "no kind of evidence"
	}
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, " and ")
}
