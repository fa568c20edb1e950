package monitor

import (
	"context"
	"fmt"
	"time"

	bmcdriver "rerack.dev/rerack/bmc/driver"
	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// Judge returns the verdict on a domain from what was seen last. by and attestation are a person and
// what that person states, or empty.
func (m *Monitor) Judge(_ context.Context, domain, by, attestation string, attested time.Time) (policies.Verdict, error) {
	t := m.cfg.Topology()
	d, err := t.Domain(domain)
	if err != nil {
		return policies.Verdict{}, err
	}
	policy := topology.EffectivePolicy(t, policyOf(t, d)).Evidence
	now := m.cfg.Now()
	facts, ev := m.gather(t, d, policy, now)
	if attestation != "" {
		ev = append(ev, policies.Evidence{Kind: policies.EvidencePerson, Subject: domain, Sign: policies.SignDown,
			At: now, Since: attested, Source: by, Detail: attestation})
	}
	return policies.Judge(facts, ev, policy, now), nil
}

// policyOf is the policy that governs detection in a domain: that of its first rack that names one.
func policyOf(t *topology.Topology, d topology.Domain) string {
	for _, m := range d.Machines {
		if p := t.Racks[t.Machines[m].Spec.Rack].Spec.Policy; p != "" {
			return p
		}
	}
	return ""
}

func (m *Monitor) gather(t *topology.Topology, d topology.Domain, p topology.EvidencePolicy, now time.Time) (policies.DomainFacts, []policies.Evidence) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	silentAfter := p.SilentAfter.Or(30 * time.Second)
	f := policies.DomainFacts{Domain: d.Name, Switches: d.Switches, Homes: map[string][]string{}}
	if now.Sub(m.started) < silentAfter {
		f.Disclaimer = fmt.Sprintf("the monitor has been watching for %s only", now.Sub(m.started).Round(time.Second))
	}
	for name := range t.Machines {
		f.Total++
		if s := m.power[name].silent; !s.IsZero() && now.Sub(s) >= silentAfter {
			f.SilentAll++
		}
	}
	var ev []policies.Evidence
	inside := map[string]bool{}
	for _, s := range d.Switches {
		inside[s] = true
		ev = append(ev, m.switchEvidence(t, s, now, silentAfter)...)
	}
	for _, name := range d.Machines {
		mc := t.Machines[name]
		if mc.Spec.Maintenance {
			continue
		}
		f.Machines = append(f.Machines, name)
		ev = append(ev, m.powerEvidence(name, now, silentAfter))
		for _, nic := range mc.Spec.NICs {
			f.Homes[name] = append(f.Homes[name], nic.Switch)
			ev = append(ev, m.linkEvidence("machine/"+name, nic.Switch, nic.Port))
		}
		if l := m.storage[name]; l != nil && l.seen {
			f.Stored = append(f.Stored, name)
			ev = append(ev, storageEvidence(name, *l, now))
		}
	}
	return f, ev
}

// storageEvidence knows nothing while the devices that would tell do not answer: what they said before they burned
// too is no sign of life.
func storageEvidence(name string, l login, now time.Time) policies.Evidence {
	e := policies.Evidence{Kind: policies.EvidenceStorage, Subject: "machine/" + name, Sign: policies.SignUnknown,
		At: now, Since: l.since, Source: "storage logins", Detail: "no array or fabric answers"}
	switch {
	case !l.clear:
	case l.up:
		e.Sign, e.Detail = policies.SignUp, "logged in"
	default:
		e.Sign, e.Detail = policies.SignDown, "logged out"
	}
	return e
}

func (m *Monitor) powerEvidence(name string, now time.Time, silentAfter time.Duration) policies.Evidence {
	tr := m.power[name]
	e := policies.Evidence{Kind: policies.EvidenceBMC, Subject: "machine/" + name, Sign: policies.SignUnknown,
		At: tr.tried, Since: tr.since, Source: "BMC"}
	switch {
	case tr.unclear || tr.tried.IsZero():
	case !tr.silent.IsZero():
		e.Since, e.Detail = tr.silent, "silent"
		if now.Sub(tr.silent) >= silentAfter {
			e.Sign = policies.SignDown
		}
	case tr.last.State == bmcdriver.PowerOff:
		e.Sign, e.Detail = policies.SignDown, "reads off"
	case tr.last.State == bmcdriver.PowerOn:
		e.Sign, e.Detail = policies.SignUp, "reads on"
	}
	return e
}

// switchEvidence is the switch's own silence, and what surviving switches see at the far ends of its
// uplinks. All of them must be down for down: one live uplink is a sign of life.
func (m *Monitor) switchEvidence(t *topology.Topology, name string, now time.Time, silentAfter time.Duration) []policies.Evidence {
	var out []policies.Evidence
	tr := m.ports[name]
	e := policies.Evidence{Kind: policies.EvidenceSwitch, Subject: "switch/" + name, Sign: policies.SignUnknown, At: tr.tried, Source: "switch management"}
	switch {
	case !tr.silent.IsZero() && now.Sub(tr.silent) >= silentAfter:
		e.Sign, e.Since, e.Detail = policies.SignDown, tr.silent, "silent"
	case tr.silent.IsZero() && !tr.read.IsZero():
		e.Sign, e.Since, e.Detail = policies.SignUp, tr.read, "answers"
	}
	out = append(out, e)
	for _, u := range t.Switches[name].Spec.Uplinks {
		out = append(out, m.linkEvidence("switch/"+name, u.Switch, u.PeerPort))
	}
	return out
}

func (m *Monitor) linkEvidence(subject, seer, port string) policies.Evidence {
	tr := m.ports[seer]
	l := tr.last[port]
	e := policies.Evidence{Kind: policies.EvidenceLink, Subject: subject, Sign: policies.SignUnknown, At: tr.read,
		Since: l.since, Source: "switch/" + seer + ":" + port}
	if tr.read.IsZero() || !tr.silent.IsZero() || tr.unclear {
		return e
	}
	switch l.state {
	case fabric.LinkUp:
		e.Sign, e.Detail = policies.SignUp, "carrier"
	case fabric.LinkDown:
		e.Sign, e.Detail = policies.SignDown, "no carrier"
	case fabric.LinkUnknown:
	}
	return e
}
