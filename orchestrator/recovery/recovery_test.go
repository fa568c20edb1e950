package recovery_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/examples"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// engine remembers which runs it was given, and can be away.
type engine struct {
	mu       sync.Mutex
	away     bool
	runs     map[string]int
	approved map[string][]string
}

func (e *engine) Start(_ context.Context, r state.Run) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.away {
		return fault.New(fault.Unreachable, "the engine is away")
	}
	e.runs[r.ID]++
	return nil
}

func (e *engine) Approve(_ context.Context, run string, by state.Approval) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.approved[run] = append(e.approved[run], by.By)
	return nil
}

func (e *engine) Cancel(context.Context, string) error { return nil }

// evening is a service over a true store.
type evening struct {
	*recovery.Service
	engine  *engine
	topo    *topology.Topology
	verdict policies.VerdictState
	power   map[string]bmc.Reading
}

func open(t *testing.T) *evening {
	t.Helper()
	s, err := embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	topo, err := topology.LoadFS(examples.Story, "story")
	check(t, err)
	e := &evening{engine: &engine{runs: map[string]int{}, approved: map[string][]string{}}, topo: topo, verdict: policies.VerdictUp, power: map[string]bmc.Reading{}}
	e.Service = &recovery.Service{Store: s, Engine: e.engine, Log: slog.New(slog.DiscardHandler),
		Topology: func() *topology.Topology { return e.topo },
		Judge: func(_ context.Context, domain, _, _ string, _ time.Time) (policies.Verdict, error) {
			return policies.Verdict{Domain: domain, State: e.verdict}, nil
		},
		PowerOf: func(m string) bmc.Reading { return e.power[m] },
		Now:     func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }}
	return e
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (e *evening) update(t *testing.T, run string, change func(*state.Run)) {
	t.Helper()
	_, err := state.Update(t.Context(), e.Store, state.RunsAt+run, func(r *state.Run) error { change(r); return nil })
	check(t, err)
}

func person(domain string) recovery.Request {
	return recovery.Request{Domain: domain, Trigger: "person", By: "ann"}
}

func TestManyWhoStartGetOneRun(t *testing.T) {
	e := open(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	started := map[string]int{}
	for i := range 40 {
		wg.Go(func() {
			name := []string{"rack-a", "rack/rack-a"}[i%2]
			r, first, err := e.Start(t.Context(), person(name))
			mu.Lock()
			defer mu.Unlock()
			if err != nil || r.ID != "rack-a-1" {
				t.Errorf("run %q, %v", r.ID, err)
			}
			if first {
				started[r.ID]++
			}
		})
	}
	wg.Wait()
	runs, err := e.List(t.Context())
	if err != nil || len(runs) != 1 || started["rack-a-1"] != 1 || e.engine.runs["rack-a-1"] == 0 {
		t.Errorf("%d runs, started %v, the engine has %v, %v", len(runs), started, e.engine.runs, err)
	}
}

// Accepting is one transaction: a failure of the store leaves neither a domain that is blocked for ever nor a run
// of no domain.
func TestStoreThatFailsWhileAccepting(t *testing.T) {
	e := open(t)
	whole := e.Store
	for n := range 8 {
		e.Store = &failing{Store: whole, after: n}
		r, _, err := e.Start(t.Context(), person("rack-a"))
		if err == nil {
			if n == 0 || r.ID != "rack-a-1" {
				t.Fatalf("run %s was accepted after %d transactions", r.ID, n)
			}
			return
		}
		e.Store = whole
		d, _, err := state.Load[state.Domain](t.Context(), whole, state.DomainsAt+"rack/rack-a")
		check(t, err)
		if d.Active != "" {
			if _, err := e.Get(t.Context(), d.Active); err != nil {
				t.Fatalf("the domain waits for a run that is not there: %v", err)
			}
		}
	}
	t.Fatal("it never succeeds")
}

// failing lets some transactions pass.
type failing struct {
	store.Store
	after int
}

func (f *failing) Txn(ctx context.Context, ops ...store.Op) error {
	if f.after--; f.after < 0 {
		return fault.New(fault.Unreachable, "the store is away")
	}
	return f.Store.Txn(ctx, ops...)
}

// A run that was accepted while the engine was away is with it after Resume.
func TestResume(t *testing.T) {
	e := open(t)
	e.engine.away = true
	if _, _, err := e.Start(t.Context(), person("rack-a")); !fault.Is(err, fault.Unreachable) {
		t.Fatalf("Start without an engine: %v", err)
	}
	if err := e.Resume(t.Context()); !fault.Is(err, fault.Unreachable) {
		t.Fatalf("Resume without an engine: %v", err)
	}
	e.engine.away = false
	check(t, e.Resume(t.Context()))
	if e.engine.runs["rack-a-1"] != 1 {
		t.Errorf("the engine has %v", e.engine.runs)
	}
	e.update(t, "rack-a-1", func(r *state.Run) { r.State = state.RunDone })
	check(t, e.Resume(t.Context()))
	if e.engine.runs["rack-a-1"] != 1 {
		t.Errorf("an ended run was started again: %v", e.engine.runs)
	}
}

// A request is never served by a run that does something else, or that would not hear what it says.
func TestJoining(t *testing.T) {
	e := open(t)
	place, _, err := e.StartWorkload(t.Context(), state.KindPlace, "db1", "ann")
	check(t, err)
	if r, started, err := e.StartWorkload(t.Context(), state.KindPlace, "db1", "bob"); err != nil || started || r.ID != place.ID {
		t.Errorf("the same again: %+v %t %v", r, started, err)
	}
	if _, _, err := e.StartWorkload(t.Context(), state.KindRelease, "db1", "bob"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), place.ID) {
		t.Errorf("release while it is being placed: %v", err)
	}
	run, _, err := e.Start(t.Context(), person("rack-a"))
	check(t, err)
	q := person("rack-a")
	q.Attestation = "it burns"
	q.By = "bob"
	for range 2 { // asked again it is the same statement
		r, started, err := e.Start(t.Context(), q)
		if err != nil || started || len(r.Attested) != 1 || r.Statement().By != "bob" || r.Statement().Text != "it burns" || r.Statement().At.IsZero() {
			t.Errorf("a statement while the run awaits its verdict: %+v %t %v", r, started, err)
		}
	}
	e.update(t, run.ID, func(r *state.Run) { r.State = state.RunWaiting })
	for _, by := range []string{"bob", run.By} {
		if err := e.Approve(t.Context(), run.ID, by); !fault.Is(err, fault.Unsafe) {
			t.Errorf("%s approves: %v", by, err)
		}
	}
	e.update(t, run.ID, func(r *state.Run) { r.Verdict = &policies.Verdict{State: policies.VerdictSuspect} })
	q.Attestation = "it burns still"
	if _, _, err := e.Start(t.Context(), q); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), run.ID) {
		t.Errorf("a statement that the run would never hear: %v", err)
	}
	e.update(t, run.ID, func(r *state.Run) { r.Verdict = &policies.Verdict{State: policies.VerdictBurned} })
	if r, started, err := e.Start(t.Context(), q); err != nil || started || r.ID != run.ID {
		t.Errorf("the verdict is there already: %+v %t %v", r, started, err)
	}
}

func TestWhatIsRefused(t *testing.T) {
	e := open(t)
	for _, tt := range []struct {
		q    recovery.Request
		kind fault.Kind
		says string
	}{
		{person("rack-q"), fault.Invalid, `did you mean "rack-a"`},
		{person(""), fault.Invalid, "no such failure domain"},
		{person("shelf/1"), fault.Invalid, "shelf"},
		{person("rack/"), fault.Invalid, "no such failure domain"},
		{person("rack-b"), fault.Invalid, "no runbook"},
		{recovery.Request{Domain: "rack-a", Trigger: "person", Runbook: "other"}, fault.Invalid, "no runbook"},
		{recovery.Request{Domain: "rack-a", Trigger: "moon"}, fault.Unsafe, "may not be triggered by moon"},
		{recovery.Request{Domain: "rack-a"}, fault.Unsafe, "may not be triggered by"},
	} {
		if _, _, err := e.Start(t.Context(), tt.q); !fault.Is(err, tt.kind) || !strings.Contains(fmt.Sprint(err), tt.says) {
			t.Errorf("%+v: %v, want %s that says %q", tt.q, err, tt.kind, tt.says)
		}
	}
	if _, _, err := e.StartWorkload(t.Context(), state.KindPlace, "nothing", "ann"); !fault.Is(err, fault.NotFound) {
		t.Errorf("no workload: %v", err)
	}
	if runs, err := e.List(t.Context()); err != nil || len(runs) != 0 {
		t.Errorf("refused, and yet there are %v, %v", runs, err)
	}
}

func TestApproval(t *testing.T) {
	e := open(t)
	r, _, err := e.Start(t.Context(), person("rack-a"))
	check(t, err)
	if err := e.Approve(t.Context(), r.ID, "bob"); !fault.Is(err, fault.Conflict) {
		t.Errorf("approve what does not wait: %v", err)
	}
	e.update(t, r.ID, func(r *state.Run) { r.State = state.RunWaiting })
	if err := e.Approve(t.Context(), r.ID, "ann"); !fault.Is(err, fault.Unsafe) {
		t.Errorf("approve one's own: %v", err)
	}
	check(t, e.Approve(t.Context(), r.ID, "bob"))
	if got := e.engine.approved[r.ID]; len(got) != 1 || got[0] != "bob" {
		t.Errorf("approved by %v", got)
	}
	e.update(t, r.ID, func(r *state.Run) { r.State = state.RunDone })
	if err := e.Cancel(t.Context(), r.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("cancel what has ended: %v", err)
	}
}

// The detector starts one run of a burned domain that holds workloads, and none of another.
func TestDetector(t *testing.T) {
	e := open(t)
	n, err := recovery.Adopt(t.Context(), e.Store, e.topo, e.Now())
	if err != nil || n != 24 {
		t.Fatalf("adopted %d, %v", n, err)
	}
	for _, v := range []policies.VerdictState{policies.VerdictUp, policies.VerdictSuspect, policies.VerdictCutOff} {
		e.verdict = v
		e.Detect(t.Context())
		if len(e.engine.runs) != 0 {
			t.Fatalf("%s: the engine has %v", v, e.engine.runs)
		}
	}
	e.verdict = policies.VerdictBurned
	e.Detect(t.Context())
	e.Detect(t.Context())
	if len(e.engine.runs) != 1 || e.engine.runs["rack-a-1"] != 1 {
		t.Fatalf("the engine has %v", e.engine.runs)
	}
	// It has ended and everything is elsewhere: the ashes are not recovered again.
	_, err = state.Update(t.Context(), e.Store, state.DomainsAt+"rack/rack-a", func(d *state.Domain) error { d.Active = ""; return nil })
	check(t, err)
	for name := range e.topo.Workloads {
		_, err = state.Update(t.Context(), e.Store, state.LeasesAt+name, func(l *state.Lease) error { l.Holder.Machine = "b01"; return nil })
		check(t, err)
	}
	e.Detect(t.Context())
	if len(e.engine.runs) != 1 {
		t.Errorf("the engine has %v", e.engine.runs)
	}
}

// A fenced machine that starts again is written down, once, and one that was still on when it was fenced is not.
func TestZombies(t *testing.T) {
	e := open(t)
	since := e.Now()
	for m, at := range map[string]time.Time{"a01": since.Add(time.Second), "a02": since.Add(-time.Second), "a03": {}} {
		_, err := state.Update(t.Context(), e.Store, state.MachinesAt+m, func(r *state.Machine) error {
			r.Machine, r.Fence = m, &state.FenceState{Run: "rack-a-1", Since: since}
			return nil
		})
		check(t, err)
		if !at.IsZero() {
			e.power[m] = bmc.Reading{State: bmc.PowerOn, At: at}
		}
	}
	e.Detect(t.Context())
	e.power["a01"] = bmc.Reading{State: bmc.PowerOn, At: since.Add(time.Hour)}
	e.Detect(t.Context())
	for m, want := range map[string]bool{"a01": true, "a02": false, "a03": false} {
		r, _, err := state.Load[state.Machine](t.Context(), e.Store, state.MachinesAt+m)
		check(t, err)
		if got := r.Fence.Zombie; (got != nil) != want || want && !got.Equal(since.Add(time.Second)) {
			t.Errorf("%s: seen on at %v", m, got)
		}
	}
}

// Several who apply the same topology at once adopt each workload once, and none of them fails.
func TestAdoptAtOnce(t *testing.T) {
	e := open(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 8 {
		wg.Go(func() {
			n, err := recovery.Adopt(t.Context(), e.Store, e.topo, e.Now())
			mu.Lock()
			defer mu.Unlock()
			total += n
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if total != 24 {
		t.Errorf("%d workloads were adopted", total)
	}
	leases, err := state.List[state.Lease](t.Context(), e.Store, state.LeasesAt)
	check(t, err)
	for _, l := range leases {
		if l.Epoch != 1 || !l.Healthy || l.Holder.Machine != e.topo.Workloads[l.Workload].Spec.Home {
			t.Errorf("%+v", l)
		}
	}
}
