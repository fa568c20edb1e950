package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/world"
)

// checker knows the whole truth and looks for broken rules after every event. The rules S1-S6 it leaves to the
// world itself; its own are about what the control plane holds to be true.
type checker struct {
	s      *simulation
	broken []string
	seen   int             // violations of the world told
	byHand map[string]bool // machines a person has turned on
	told   map[string]bool
	dirty  bool
}

func newChecker(s *simulation) *checker {
	c := &checker{s: s, byHand: map[string]bool{}, told: map[string]bool{}, dirty: true}
	s.dc.World.Watch(func(e world.Event) {
		c.dirty = true
		s.note("world", string(e.Kind), e.Name+" "+e.Port)
	})
	return c
}

func (c *checker) violate(rule, format string, args ...any) {
	what := rule + ": " + fmt.Sprintf(format, args...)
	if c.told[what] {
		return
	}
	c.told[what] = true
	c.broken = append(c.broken, what)
	c.s.note("checker", what, "BROKEN")
}

// all looks at everything once.
func (c *checker) all() {
	if !c.dirty {
		return
	}
	c.dirty = false
	for _, v := range c.s.dc.World.Check()[c.seen:] {
		c.seen++
		c.violate(v.Rule, "%s: %s", v.Subject, v.Detail)
	}
	c.fences()
}

// fences is I6: who is fenced stays cut off until somebody unfences it.
func (c *checker) fences() {
	for _, m := range c.machines() {
		cutOff := m.Fence != nil && slices.ContainsFunc(m.Fence.Fences, func(f policies.Fence) bool { return f.Kind == policies.FenceNetwork && f.Confirmed })
		reaches := c.s.dc.World.Connected(m.Machine)
		if cutOff && reaches {
			c.violate("I6", "machine %s is fenced by %s, ports confirmed closed, and reaches the network", m.Machine, m.Fence.Run)
		}
	}
}

func (c *checker) machines() []state.Machine {
	list, err := state.List[state.Machine](context.Background(), c.s.kv, state.MachinesAt)
	must(err)
	return list
}

// touches is I4: a run turns on and off only machines that are in its scope, or claimed by it.
func (c *checker) touches(ctx context.Context, machine string) {
	p := processOf(ctx)
	if p == nil {
		return
	}
	run := runOf(p.run)
	m, _, err := state.Load[state.Machine](context.Background(), c.s.kv, state.MachinesAt+machine)
	must(err)
	if m.Fence != nil && m.Fence.Run == run || m.Claim != nil && m.Claim.Run == run || m.Suspect != nil && m.Suspect.Run == run {
		return
	}
	c.violate("I4", "%s touches the power of %s, which is neither fenced nor claimed nor given up by it: %+v", p.name, machine, m)
}

// running lists what runs on a machine.
func (c *checker) running(machine string) []world.Run {
	for _, m := range c.s.dc.World.State() {
		if m.Name == machine {
			return m.Runs
		}
	}
	return nil
}

func runOf(workflow string) string {
	_, rest, _ := strings.Cut(workflow, "/")
	run, _, _ := strings.Cut(rest, "/")
	return run
}
