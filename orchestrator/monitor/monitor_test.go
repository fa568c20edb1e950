package monitor_test

import (
	"context"
	"sync"
	"testing"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/examples"
	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/monitor"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	san "rerack.dev/rerack/sanzoning/driver"
)

// hall is a data centre that a monitor reads: what is up, what does not answer, and what time it is.
type hall struct {
	mu     sync.Mutex
	topo   *topology.Topology
	now    time.Time
	burned map[string]bool  // machines without power, whose BMCs are dead too
	silent map[string]error // devices that answer with an error, by kind/name
}

func newHall(t *testing.T) (*hall, *monitor.Monitor) {
	t.Helper()
	h := &hall{topo: again(t, func(*topology.Topology) {}), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), burned: map[string]bool{}, silent: map[string]error{}}
	return h, monitor.New(monitor.Config{Devices: h, Now: h.clock, Topology: func() *topology.Topology {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.topo
	}})
}

// again is the story's topology with a change.
func again(t *testing.T, change func(*topology.Topology)) *topology.Topology {
	t.Helper()
	topo, err := topology.LoadFS(examples.Story, "story")
	if err != nil {
		t.Fatal(err)
	}
	change(topo)
	return topo
}

func (h *hall) clock() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}

// pass lets time go by, with a poll every second.
func (h *hall) pass(t *testing.T, m *monitor.Monitor, d time.Duration) {
	t.Helper()
	for ; d > 0; d -= time.Second {
		h.mu.Lock()
		h.now = h.now.Add(time.Second)
		h.mu.Unlock()
		m.Poll(t.Context())
	}
}

func (h *hall) answers(device string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.silent[device]
}

func (h *hall) alive(machine string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.burned[machine]
}

func (h *hall) PollPower(_ context.Context, machines []topology.Machine, each func(string, bmc.Reading, error)) {
	for _, m := range machines {
		name := m.Meta.Name
		err := h.answers("bmc/" + name)
		if !h.alive(name) {
			err = fault.New(fault.Unreachable, "no route")
		}
		each(name, bmc.Reading{State: bmc.PowerOn, At: h.clock()}, err)
	}
}

func (h *hall) Ports(_ context.Context, s topology.Switch) ([]fabric.Port, error) {
	var out []fabric.Port
	for _, m := range h.topo.Machines {
		for _, n := range m.Spec.NICs {
			if n.Switch == s.Meta.Name {
				link := fabric.LinkDown
				if h.alive(m.Meta.Name) {
					link = fabric.LinkUp
				}
				out = append(out, fabric.Port{Name: n.Port, Link: link})
			}
		}
	}
	for name, other := range h.topo.Switches {
		for _, u := range other.Spec.Uplinks {
			if u.Switch == s.Meta.Name {
				link := fabric.LinkUp
				if h.answers("switch/"+name) != nil {
					link = fabric.LinkDown
				}
				out = append(out, fabric.Port{Name: u.PeerPort, Link: link})
			}
		}
	}
	return out, h.answers("switch/" + s.Meta.Name)
}

func (h *hall) Sessions(_ context.Context, a topology.Array) ([]san.Session, error) {
	var out []san.Session
	for name, m := range h.topo.Machines {
		if m.Spec.StorageAddress.IsValid() && h.alive(name) {
			out = append(out, san.Session{Initiator: m.Spec.StorageAddress.String()})
		}
	}
	return out, h.answers("array/" + a.Meta.Name)
}

func (h *hall) Logins(_ context.Context, f topology.Fabric) ([]string, error) {
	var out []string
	for name, m := range h.topo.Machines {
		for _, a := range m.Spec.HBAs {
			if a.Fabric == f.Meta.Name && h.alive(name) {
				out = append(out, string(a.WWPN))
			}
		}
	}
	return out, h.answers("fabric/" + f.Meta.Name)
}

// set changes the hall.
func (h *hall) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

func (h *hall) burn() {
	h.set(func() {
		for name, m := range h.topo.Machines {
			if m.Spec.Rack == "rack-a" {
				h.burned[name] = true
			}
		}
		h.silent["switch/tor-a"] = fault.New(fault.Unreachable, "no route")
	})
}

func verdict(t *testing.T, m *monitor.Monitor) policies.Verdict {
	t.Helper()
	v, err := m.Judge(t.Context(), "rack/rack-a", "", "", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestBurnedRack(t *testing.T) {
	h, m := newHall(t)
	h.pass(t, m, 10*time.Second)
	if v := verdict(t, m); v.State != policies.VerdictUp {
		t.Fatalf("%s: %s", v.State, v.Reason)
	}
	h.burn()
	h.pass(t, m, 3*time.Second)
	if v := verdict(t, m); v.State == policies.VerdictBurned {
		t.Fatalf("burned after 3 s: %s", v.Reason)
	}
	h.pass(t, m, 20*time.Second)
	if v := verdict(t, m); v.State != policies.VerdictBurned {
		t.Fatalf("%s: %s, missing %v, against %v", v.State, v.Reason, v.Missing, v.Against)
	}
}

// Storage that does not answer any more says nothing about a machine: not that it is gone, and not that it is still
// logged in as when it was last seen.
func TestStorageThatBurnsToo(t *testing.T) {
	h, m := newHall(t)
	h.pass(t, m, 10*time.Second)
	h.burn()
	h.set(func() {
		for name := range h.topo.Arrays {
			h.silent["array/"+name] = fault.New(fault.Timeout, "no answer")
		}
		for name := range h.topo.Fabrics {
			h.silent["fabric/"+name] = fault.New(fault.Unreachable, "no route")
		}
	})
	h.pass(t, m, 25*time.Second)
	v := verdict(t, m)
	for _, e := range append(v.Against, v.Used...) {
		if e.Kind == policies.EvidenceStorage {
			t.Fatalf("storage that does not answer gives evidence: %+v", e)
		}
	}
	if v.State != policies.VerdictBurned {
		t.Fatalf("%s: %s, missing %v", v.State, v.Reason, v.Missing)
	}
}

// What is not declared any more is forgotten: a fabric that was taken out while machines were logged in to it is no
// sign of life for ever after.
func TestForgetsWhatIsNotDeclared(t *testing.T) {
	h, m := newHall(t)
	h.pass(t, m, 10*time.Second)
	h.set(func() {
		h.silent["switch/gone"] = fault.New(fault.Unreachable, "no route")
		h.topo = again(t, func(next *topology.Topology) {
			next.Switches["gone"] = topology.Switch{Meta: topology.Meta{Name: "gone"}}
		})
	})
	h.pass(t, m, time.Second)
	if !m.SilentSwitches()["gone"] {
		t.Fatal("a switch that does not answer is not listed")
	}
	h.set(func() {
		h.topo = again(t, func(next *topology.Topology) { clear(next.Fabrics) })
	})
	h.burn()
	h.pass(t, m, 25*time.Second)
	if m.SilentSwitches()["gone"] {
		t.Error("a switch that is not declared is listed as silent")
	}
	if v := verdict(t, m); v.State != policies.VerdictBurned {
		t.Fatalf("%s: %s, against %v", v.State, v.Reason, v.Against)
	}
}

// Losing sight of the management network alone is no fire, and a BMC that refuses our credentials is not silent.
func TestSilenceAlone(t *testing.T) {
	h, m := newHall(t)
	h.pass(t, m, 10*time.Second)
	h.set(func() {
		for name, mc := range h.topo.Machines {
			if mc.Spec.Rack == "rack-a" {
				h.silent["bmc/"+name] = fault.New(fault.Timeout, "no answer")
			}
		}
	})
	h.pass(t, m, 60*time.Second)
	if v := verdict(t, m); v.State == policies.VerdictBurned || len(v.Against) == 0 {
		t.Errorf("silent BMCs: %s, against %v", v.State, v.Against)
	}
	if p := m.PowerOf("a01"); p.State != bmc.PowerUnknown || p.Detail == "" {
		t.Errorf("a silent BMC: %+v", p)
	}
	h.set(func() {
		for name := range h.silent {
			h.silent[name] = fault.New(fault.Unauthorized, "wrong password")
		}
	})
	h.pass(t, m, 60*time.Second)
	if v := verdict(t, m); v.State != policies.VerdictUp && v.State != policies.VerdictSuspect {
		t.Errorf("refused credentials: %s", v.State)
	}
	if p := m.PowerOf("a01"); p.State != bmc.PowerUnknown {
		t.Errorf("a BMC that refuses us: %+v", p)
	}
	if m.LinkOf("a01") != policies.SignUp {
		t.Errorf("its carrier: %v", m.LinkOf("a01"))
	}
}

// Run polls without being asked and looks at a new revision at once.
func TestRun(t *testing.T) {
	h, m := newHall(t)
	rounds := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.Run(ctx, func(ctx context.Context) {
			select {
			case rounds <- struct{}{}:
			case <-ctx.Done():
			}
		})
	}()
	<-rounds
	h.set(func() { h.topo = again(t, func(*topology.Topology) {}) })
	<-rounds
	cancel()
	<-ended
	if m.PowerOf("a01").State != bmc.PowerOn {
		t.Error("nothing was read")
	}
	if _, err := m.Judge(t.Context(), "rack/none", "", "", time.Time{}); err == nil {
		t.Error("a verdict on a domain that is not there")
	}
}
