package chaos

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/workflowtest"
)

// heal makes everything whole but the rack, and looks whether what was promised is done: every run ends, nothing
// is left behind, and all that ran in the rack runs again after a recovery that nothing disturbs.
func (s *simulation) heal() {
	s.rate = 0
	w := s.dc.World
	s.note("world", "everything is healed", "")
	must(w.SetManagement("site/hall", true))
	for _, m := range s.topo.Names(topology.KindMachine) {
		s.dc.Break(m, workflowtest.Sound)
	}
	s.check.left()
	if s.only {
		return
	}
	// What is left of the rack goes for good, so that there is no doubt about it.
	must(w.Burn(theRack))
	lost := s.homes(theRack)
	for range 3 {
		if s.down(lost) == nil {
			break
		}
		s.trust()
		go s.ask()
		s.until(time.Hour, func() bool { return s.engine.busy() > 0 })
		s.until(time.Hour, func() bool { return s.engine.busy() == 0 })
		s.check.left()
	}
	if down := s.down(lost); down != nil && !s.scarce {
		s.check.violate("L3", "%v are down after everything was healed and the rack was recovered three times", down)
		s.note("checker", s.check.why(down), "")
	}
}

// homes lists the workloads that a domain was built for.
func (s *simulation) homes(domain string) (out []string) {
	machines, err := s.dc.World.Machines(domain)
	must(err)
	for _, name := range s.topo.Names(topology.KindWorkload) {
		if slices.Contains(machines, s.topo.Workloads[name].Spec.Home) {
			out = append(out, name)
		}
	}
	return out
}

// down lists which of the workloads do not serve.
func (s *simulation) down(workloads []string) (out []string) {
	for _, name := range workloads {
		if held := s.dc.Holders(name); len(held) != 1 || !held[0].Serving {
			out = append(out, name)
		}
	}
	return out
}

// trust is a person who looks at each machine outside the rack that failed, turns off what should not run there and
// takes it back into service.
func (s *simulation) trust() {
	ctx, w := context.Background(), s.dc.World
	burned, err := w.Machines(theRack)
	must(err)
	held := s.check.held()
	for _, m := range s.check.machines() {
		if slices.Contains(burned, m.Machine) || m.Fence == nil && m.Suspect == nil {
			continue
		}
		used := slices.ContainsFunc(slices.Collect(maps.Values(held)), func(at policies.Where) bool { return at.Machine == m.Machine })
		if !used {
			must(w.Attest(m.Machine))
			must(w.Press(m.Machine, false, "person"))
		}
		_, err := state.Update(ctx, s.kv, state.MachinesAt+m.Machine, func(rec *state.Machine) error {
			rec.Suspect, rec.Fence = nil, nil
			if !used {
				rec.Host = nil
			}
			return nil
		})
		must(err)
	}
}

// why says what the last runs said of workloads, and what is known of the machines.
func (c *checker) why(workloads []string) (out string) {
	results, err := state.List[state.Result](context.Background(), c.s.kv, state.ResultsAt)
	must(err)
	for _, r := range results {
		if slices.Contains(workloads, r.Name) {
			out += fmt.Sprintf("\n  %s %s at %+v: %s; tried %v", r.Name, r.State, r.Where, r.Reason, r.Tried)
		}
	}
	for _, m := range c.machines() {
		out += fmt.Sprintf("\n  %s suspect %+v fence %+v claim %+v host %+v", m.Machine, m.Suspect, m.Fence, m.Claim, m.Host)
	}
	for w, at := range c.held() {
		out += fmt.Sprintf("\n  %s held by %+v", w, at)
	}
	return out
}

// held is who holds which workload by its lease.
func (c *checker) held() map[string]policies.Where {
	list, err := state.List[state.Lease](context.Background(), c.s.kv, state.LeasesAt)
	must(err)
	out := map[string]policies.Where{}
	for _, l := range list {
		out[l.Workload] = l.LastHolder()
	}
	return out
}

// left looks at what is left when every run has ended.
func (c *checker) left() {
	c.dirty = true
	c.all()
	ctx := context.Background()
	runs, err := state.List[state.Run](ctx, c.s.kv, state.RunsAt)
	must(err)
	for _, r := range runs {
		if !r.State.Ended() || r.Ended.IsZero() {
			c.violate("L1", "run %s is recorded as %q, ended %s", r.ID, r.State, r.Ended)
		}
		if d, _, err := state.Load[state.Domain](ctx, c.s.kv, state.DomainsAt+r.Domain); err != nil || d.Active != "" {
			c.violate("L1", "domain %s still has run %q", r.Domain, d.Active)
		}
	}
	for _, m := range c.machines() {
		if m.Claim != nil {
			c.violate("L2", "machine %s is still claimed by %s for %s", m.Machine, m.Claim.Run, m.Claim.For)
		}
	}
	c.leases()
	c.lit()
}

// lit is L2 for power: outside the rack nothing is on that nobody knows of.
func (c *checker) lit() {
	known := map[string]bool{}
	burned, err := c.s.dc.World.Machines(theRack)
	must(err)
	for _, m := range burned {
		known[m] = true
	}
	for _, at := range c.held() {
		known[at.Machine] = true
	}
	for _, m := range c.machines() {
		known[m.Machine] = known[m.Machine] || m.Host != nil || m.Fence != nil || m.Suspect != nil
	}
	for _, m := range c.s.dc.World.State() {
		if m.On && !known[m.Name] && !c.byHand[m.Name] {
			c.violate("L2", "machine %s is on, and no lease, host, fence or suspicion says why", m.Name)
		}
	}
}

// leases compares what the control plane believes with what is: whoever can use an identity has its lease, and what
// is said to be healthy serves.
func (c *checker) leases() {
	list, err := state.List[state.Lease](context.Background(), c.s.kv, state.LeasesAt)
	must(err)
	for _, l := range list {
		held := c.s.dc.Holders(l.Workload)
		for _, r := range held {
			if at := (policies.Where{Machine: r.Machine, VM: r.VM != ""}); l.LastHolder() != at {
				c.violate("L4", "%s runs on %s%s with epoch %d, which its lease does not know: %+v", l.Workload, r.Machine, r.VM, r.Epoch, l)
			}
		}
		// What ran in the rack when it died is not missed before somebody asks.
		dead := len(held) == 0 && slices.Contains(c.s.homes(theRack), l.Workload) && l.Epoch == workflowtest.FirstEpoch
		if l.Healthy && !dead && (len(held) != 1 || !held[0].Serving) {
			c.violate("L4", "%s is said to be healthy: %+v; the world says %+v", l.Workload, l, held)
		}
	}
}
