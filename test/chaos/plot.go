package chaos

import (
	"context"
	"slices"
	"strconv"
	"testing/synctest"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/test/world"
)

// event is something that happens in the world at a time that was drawn before.
type event struct {
	at   time.Duration // from the beginning
	what Fault
	do   func()
}

func (s *simulation) at(at time.Duration, what Fault, do func()) {
	s.plot = append(s.plot, event{at, what, do})
	slices.SortStableFunc(s.plot, func(a, b event) int { return int(a.at - b.at) })
}

func (s *simulation) chance(p float64) bool { return s.rng.Float64() < p }

// within draws a time in [from, to).
func (s *simulation) within(from, to time.Duration) time.Duration {
	return from + time.Duration(s.rng.Int64N(int64(to-from)))
}

const theRack = "rack/rack-a"

// write draws what will happen in this seed.
func (s *simulation) write() {
	s.rate = []float64{0, 0.02, 0.05, 0.1, 0.2}[s.rng.IntN(5)]
	w := s.dc.World
	fire := s.within(time.Second, 10*time.Second)
	machines, _ := w.Machines(theRack)
	switch kind := s.rng.IntN(10); {
	case kind < 6:
		s.at(fire, Fire, func() { must(w.Burn(theRack)) })
		if s.chance(0.5) {
			s.at(s.within(fire, fire+5*time.Minute), Return, func() { s.powerReturns(theRack) })
		}
	case kind < 8:
		alive := slices.DeleteFunc(slices.Clone(machines), func(string) bool { return s.chance(0.5) })
		s.at(fire, Liar, func() { must(w.HalfBurn(theRack, alive...)) })
	case kind < 9:
		s.only = true
		s.at(fire, Partition, func() { must(w.SetManagement(theRack, false)) })
		s.at(s.within(fire, fire+2*time.Minute), "", func() { must(w.SetManagement(theRack, true)) })
	default:
		s.only = true
		s.at(fire, Blackout, func() { must(w.Burn(theRack)) })
		s.at(s.within(fire, fire+30*time.Second), Return, func() { s.powerReturns(theRack) })
	}
	asked := s.within(fire, fire+20*time.Second)
	s.at(asked, "", func() { go s.ask() })
	for range s.rng.IntN(3) {
		s.at(s.within(asked, asked+4*time.Minute), "", func() { go s.ask() })
	}
	if s.chance(0.5) {
		s.at(s.within(0, 10*time.Second), "", s.patrol)
	}
	for range s.rng.IntN(3) {
		s.at(s.within(fire, fire+2*time.Minute), Crashed, s.crash)
	}
	if s.chance(0.4) {
		s.at(s.within(fire, fire+2*time.Minute), Paused, s.pause)
	}
	if s.chance(0.3) {
		spare := []string{"b1", "b2", "b3"}[s.rng.IntN(3)]
		defect := []workflowtest.Defect{workflowtest.NeverPhonesHome, workflowtest.NeverServes, workflowtest.ReportsFailure, workflowtest.NeverTurnsOff}[s.rng.IntN(4)]
		s.at(0, BadSpare, func() { s.dc.Break(spare, defect) })
	}
	if s.chance(0.15) {
		s.at(s.within(asked, asked+time.Minute), Cancel, func() { go s.cancelAll() })
	}
	if s.chance(0.3) {
		d := []string{"rack/rack-b", "site/hall", "array/fc", "fabric/fab", "switch/tor-b"}[s.rng.IntN(5)]
		cut := s.within(fire, fire+time.Minute)
		s.at(cut, Partition, func() { must(w.SetManagement(d, false)) })
		s.at(s.within(cut, cut+time.Minute), "", func() { must(w.SetManagement(d, true)) })
	}
	s.foreign()
	for range s.rng.IntN(4) {
		s.at(s.within(0, 3*time.Minute), Person, s.person)
	}
	for i := range 60 {
		s.at(time.Duration(i)*5*time.Second, "", s.live)
	}
}

// play lets everything happen that was drawn, and goes on until nothing does any more.
func (s *simulation) play() {
	const atLeast, atMost = 5 * time.Minute, 6 * time.Hour
	s.until(atMost, func() bool { return len(s.plot) == 0 && time.Since(s.began) > atLeast && s.engine.busy() == 0 })
}

// until goes on until done says so, for atMost.
func (s *simulation) until(atMost time.Duration, done func() bool) {
	for end := time.Now().Add(atMost); !done(); {
		now := time.Since(s.began)
		limit := 10 * time.Second
		for len(s.plot) > 0 && s.plot[0].at <= now {
			e := s.plot[0]
			s.plot = s.plot[1:]
			if e.what != "" {
				s.fire(e.what)
				s.note("world", string(e.what), "")
			}
			e.do()
			synctest.Wait()
			s.check.all()
		}
		if len(s.plot) > 0 {
			limit = min(limit, s.plot[0].at-now)
		}
		if time.Now().After(end) {
			s.check.violate("L1", "%d runs have not ended after %s", s.engine.busy(), atMost)
			return
		}
		s.step(limit)
		s.check.all()
	}
}

// ask asks for the recovery until somebody accepts it.
func (s *simulation) ask() {
	for range 20 {
		_, _, err := s.svc.Start(context.Background(), recovery.Request{Domain: theRack, Trigger: "person", By: "ann"})
		if err == nil || !fault.KindOf(err).Retryable() {
			return
		}
		time.Sleep(time.Second)
	}
}

// patrol lets the detector look, again and again.
func (s *simulation) patrol() {
	go s.svc.Detect(context.Background())
	if now := time.Since(s.began); now < 4*time.Minute {
		s.at(now+10*time.Second, "", s.patrol)
	}
}

func (s *simulation) cancelAll() {
	runs, err := state.List[state.Run](context.Background(), s.kv, state.RunsAt)
	if err != nil {
		return
	}
	for _, r := range runs {
		_ = s.svc.Cancel(context.Background(), r.ID) // one that has ended refuses
	}
}

func (s *simulation) crash() {
	missed := s.worker.crash()
	s.at(time.Since(s.began)+s.within(100*time.Millisecond, heartbeat), "", missed)
}

func (s *simulation) pause() {
	missed, resume := s.worker.pause()
	now := time.Since(s.began)
	s.at(now+heartbeat, "", missed)
	s.at(now+heartbeat+s.within(-time.Second, 90*time.Second), "", resume)
}

// heartbeat is how long the engine waits for a sign of an activity, as workflows ask it to.
const heartbeat = 5 * time.Second

// powerReturns gives a domain its mains back: what was on before starts again by itself, as it was.
func (s *simulation) powerReturns(domain string) {
	w := s.dc.World
	must(w.RestorePower(domain))
	names, _ := w.Machines(domain)
	for _, m := range names {
		life, on := w.Life(m)
		if !on {
			continue
		}
		s.at(time.Since(s.began)+s.within(time.Second, 20*time.Second), "", func() { s.bootOld(life) })
	}
}

// bootOld is a machine that boots from the disk it always booted from: it takes the identity it had, if it gets
// at its disk.
func (s *simulation) bootOld(l world.Life) {
	w := s.dc.World
	for _, name := range s.topo.Names(topology.KindWorkload) {
		spec := s.topo.Workloads[name].Spec
		if spec.Home != l.Machine {
			continue
		}
		for _, v := range spec.Volumes {
			if !w.CanWrite(l.Machine, v.Volume) {
				return
			}
		}
		if w.Start(l, "", name, workflowtest.FirstEpoch) != nil {
			return
		}
		_ = w.Serve(l, "", true)
	}
}

// foreign puts things of other people on the devices, which must stay as they are.
func (s *simulation) foreign() {
	w := s.dc.World
	for _, sw := range s.topo.Names(topology.KindSwitch) {
		must(w.SetPort(sw, "theirs", world.Port{Untagged: 999, Owner: "somebody"}))
		must(w.Protect("port", sw, "theirs"))
	}
	for _, f := range s.topo.Names(topology.KindFabric) {
		must(w.SetZones(f, append(w.Zones(f), world.Zone{Name: "backup", Members: []string{"10:00:00:00:00:00:00:01", "10:00:00:00:00:00:00:02"}})))
		must(w.Protect("zone", f, "backup"))
	}
	for _, a := range s.topo.Names(topology.KindArray) {
		must(w.SetMask(a, "/vol/theirs", world.Mask{Initiators: []string{"10:00:00:00:00:00:00:01"}}))
		must(w.Protect("mask", a, "/vol/theirs"))
	}
}

// person edits a device by hand, as people do who mean well: a spare's port or power, a zone of their own.
func (s *simulation) person() {
	w := s.dc.World
	spare := []string{"b1", "b2", "b5", "b6"}[s.rng.IntN(4)]
	m, is := s.topo.Machines[spare]
	if !is || len(s.check.running(spare)) > 0 {
		return // a person looks first
	}
	nic := m.Spec.NICs[0]
	port, _ := w.PortState(nic.Switch, nic.Port)
	switch s.rng.IntN(4) {
	case 0:
		port.Untagged = 100
		must(w.SetPort(nic.Switch, nic.Port, port))
	case 1:
		port.Shut = !port.Shut && port.Epoch == 0 // who opens again only opens what is not fenced
		must(w.SetPort(nic.Switch, nic.Port, port))
	case 2:
		s.check.byHand[spare] = true
		must(w.Press(spare, !w.Power(spare).On, "person"))
	case 3:
		zones := w.Zones("fab")
		must(w.SetZones("fab", append(zones, world.Zone{Name: "by-hand-" + strconv.Itoa(len(zones)), Members: []string{"10:00:00:00:00:00:00:03"}})))
	}
}

// live lets everything that runs write to its volumes.
func (s *simulation) live() {
	w := s.dc.World
	for _, name := range s.topo.Names(topology.KindWorkload) {
		for _, r := range w.Holders(name) {
			life, on := w.Life(r.Machine)
			if !on || !r.Serving {
				continue
			}
			for _, v := range s.topo.Workloads[name].Spec.Volumes {
				_ = w.Write(life, r.VM, v.Volume, name, r.Epoch) // what cannot arrive does not
			}
		}
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
