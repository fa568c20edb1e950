package workflows_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/interceptor"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"rerack.dev/rerack/examples"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/test/world"
	"rerack.dev/rerack/workflows"
)

const rackA = "rack/rack-a"

var quiet = slog.New(slog.DiscardHandler)

// trial is a data centre of its own with a control plane whose workflows run on mock time.
type trial struct {
	*testing.T
	dc   *workflowtest.DataCentre
	topo *topology.Topology
	kv   store.Store
	revs *revision.Log
	svc  *recovery.Service
	acts *workflows.Activities

	mu  sync.Mutex
	env *testsuite.TestWorkflowEnvironment // of the run that is under way
}

func load(t *testing.T, fsys fs.FS, paths ...string) *topology.Topology {
	t.Helper()
	top, err := topology.LoadFS(fsys, paths...)
	if err == nil {
		err = topology.Validate(top)
	}
	if err != nil {
		t.Fatal(err)
	}
	return top
}

// small is the small data centre, with more machines of the named types.
func small(t *testing.T, more ...string) *topology.Topology {
	paths := []string{"small"}
	for _, m := range more {
		paths = append(paths, "more/"+m+".yaml")
	}
	return load(t, os.DirFS("testdata"), paths...)
}

func story(t *testing.T) *topology.Topology { return load(t, examples.Story, "story") }

func newTrial(t *testing.T, top *topology.Topology) *trial {
	t.Helper()
	r := &trial{T: t, topo: top}
	kv, err := embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kv.Close() })
	r.kv = kv
	if r.dc, err = workflowtest.New(t.Context(), workflowtest.Config{Topology: top, Store: kv, Signals: r}); err != nil {
		t.Fatal(err)
	}
	r.revs = &revision.Log{Store: kv, Now: r.dc.Now}
	r.apply(top)
	r.acts = &workflows.Activities{Store: r.dc.Store(), Topology: r.revs.Topology, Revisions: r.revs, Devices: r.dc, Observer: r.dc, Probe: r.dc, Now: r.dc.Now, Log: quiet}
	r.svc = &recovery.Service{Store: kv, Topology: r.acts.Topology, Engine: started{}, Judge: r.dc.Judge, PowerOf: r.dc.PowerOf, Now: r.dc.Now, Log: quiet}
	if _, err := recovery.Adopt(t.Context(), kv, top, r.dc.Now()); err != nil {
		t.Fatal(err)
	}
	return r
}

// apply makes a topology the next revision.
func (r *trial) apply(top *topology.Topology) {
	r.Helper()
	if _, _, err := r.revs.Apply(r.Context(), top, "ann", "", -1); err != nil {
		r.Error(err)
	}
}

// started is an engine that is told of runs whose workflows the test starts itself.
type started struct{}

func (started) Start(context.Context, state.Run) error                { return nil }
func (started) Approve(context.Context, string, state.Approval) error { return nil }
func (started) Cancel(context.Context, string) error                  { return nil }

// Reached passes milestones to the run's workflows. It is called by activities, and the environment may
// be touched by its own loop only.
func (r *trial) Reached(_ context.Context, id string, m workflows.Milestone) error {
	r.mu.Lock()
	env := r.env
	r.mu.Unlock()
	env.RegisterDelayedCallback(func() { _ = env.SignalWorkflowByID(id, workflows.SignalMilestone, m) }, 0)
	return nil
}

// ended is how a run ended.
type ended struct {
	run     state.Run
	res     workflows.RecoverResult
	err     error
	results map[string]state.Result
}

// recover runs a recovery of rack-a from its acceptance to its end. Every activity passes through tap,
// which may be nil; before runs when everything is set up.
func (r *trial) recover(q recovery.Request, tap tapFunc, before ...func(*testsuite.TestWorkflowEnvironment)) ended {
	r.Helper()
	if q.Domain == "" {
		q.Domain = rackA
	}
	if q.Trigger == "" {
		q.Trigger, q.By = "person", "ann"
	}
	run, _, err := r.svc.Start(r.Context(), q)
	if err != nil {
		r.Fatal(err)
	}
	return r.execute(run, workflows.Recover, tap, before...)
}

func (r *trial) execute(run state.Run, procedure any, tap tapFunc, before ...func(*testsuite.TestWorkflowEnvironment)) ended {
	r.Helper()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(sdklog.NewStructuredLogger(quiet))
	suite.SetDisableRegistrationAliasing(true)
	env := suite.NewTestWorkflowEnvironment()
	env.SetTestTimeout(2 * time.Minute)
	env.SetStartWorkflowOptions(client.StartWorkflowOptions{ID: workflows.RecoveryID(run.ID), TaskQueue: workflows.TaskQueue})
	taps := newTapping(tap)
	env.SetOnActivityCanceledListener(taps.cancel)
	env.SetWorkerOptions(worker.Options{DisableRegistrationAliasing: true, Interceptors: []interceptor.WorkerInterceptor{taps}})
	workflows.Register(env, r.acts)
	r.mu.Lock()
	r.env = env
	r.mu.Unlock()
	for _, f := range before {
		f(env)
	}
	env.ExecuteWorkflow(procedure, workflows.RecoverInput{Run: run.ID, Domain: run.Domain, Runbook: run.Runbook})
	taps.flight.Wait()
	out := ended{err: env.GetWorkflowError(), results: map[string]state.Result{}}
	var stuck *temporal.TimeoutError
	if !env.IsWorkflowCompleted() || errors.As(out.err, &stuck) {
		r.Fatalf("the workflow did not end: %v", out.err)
	}
	if out.err == nil {
		if err := env.GetWorkflowResult(&out.res); err != nil {
			r.Fatal(err)
		}
	}
	var err error
	if out.run, err = r.svc.Get(r.Context(), run.ID); err != nil {
		r.Fatal(err)
	}
	results, err := r.svc.Results(r.Context(), run.ID)
	if err != nil {
		r.Fatal(err)
	}
	for _, x := range results {
		if !x.Host {
			out.results[x.Name] = x
		}
	}
	return out
}

// burn burns rack-a.
func (r *trial) burn() *trial {
	r.Helper()
	if err := r.dc.World.Burn(rackA); err != nil {
		r.Fatal(err)
	}
	return r
}

func (r *trial) leases() map[string]state.Lease {
	r.Helper()
	list, err := state.List[state.Lease](r.Context(), r.kv, state.LeasesAt)
	if err != nil {
		r.Fatal(err)
	}
	out := map[string]state.Lease{}
	for _, l := range list {
		out[l.Workload] = l
	}
	return out
}

func (r *trial) machines() map[string]state.Machine {
	r.Helper()
	list, err := state.List[state.Machine](r.Context(), r.kv, state.MachinesAt)
	if err != nil {
		r.Fatal(err)
	}
	out := map[string]state.Machine{}
	for _, m := range list {
		out[m.Machine] = m
	}
	return out
}

// trust takes machines outside the burned rack back into service, as a person does who has looked at
// them: neither suspect nor fenced.
func (r *trial) trust() {
	r.Helper()
	burned, err := r.dc.World.Machines(rackA)
	if err != nil {
		r.Fatal(err)
	}
	for _, m := range slices.Sorted(maps.Keys(r.machines())) {
		if slices.Contains(burned, m) {
			continue
		}
		if _, err := state.Update(r.Context(), r.kv, state.MachinesAt+m, func(rec *state.Machine) error {
			rec.Suspect, rec.Fence = nil, nil
			return nil
		}); err != nil {
			r.Fatal(err)
		}
	}
}

// sound lists what is wrong after a run has ended, whatever happened in it.
func (r *trial) sound(e ended) (wrong []string) {
	r.Helper()
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for _, v := range r.dc.World.Check() {
		say("%s broken: %s: %s", v.Rule, v.Subject, v.Detail)
	}
	if !e.run.State.Ended() {
		say("the run's record says %q", e.run.State)
	}
	if e.run.Ended.IsZero() || e.run.Reason == "" {
		say("the run's record does not say when and why it ended")
	}
	dom, _, err := state.Load[state.Domain](r.Context(), r.kv, state.DomainsAt+e.run.Domain)
	if err != nil || dom.Active != "" {
		say("the domain still has run %q, %v", dom.Active, err)
	}
	for name, m := range r.machines() {
		if m.Claim != nil {
			say("%s is still claimed by %s", name, m.Claim.Run)
		}
	}
	leases := r.leases()
	for _, w := range e.run.Workloads {
		res, held := e.results[w], r.dc.Holders(w)
		switch {
		case res.State == "healthy":
			if len(held) != 1 || !held[0].Serving || at(held[0].Machine, held[0].VM) != leases[w].Holder || !leases[w].Healthy {
				say("%s is reported healthy; the lease says %+v, the world %+v", w, leases[w], held)
			}
		case res.State == "released":
			if len(held) > 0 || leases[w].LastHolder() != (policies.Where{}) {
				say("%s is reported released; the lease says %+v, the world %+v", w, leases[w], held)
			}
		case res.State == "running":
			if e.run.Kind != state.KindRelease || leases[w].LastHolder() == (policies.Where{}) {
				say("%s is reported running; the lease says %+v, the world %+v", w, leases[w], held)
			}
		case res.State != "left-out" && e.run.Epoch != 0 && len(e.results) > 0:
			say("%s is neither healthy nor left out: %q", w, res.State)
		case res.State == "left-out" && res.Reason == "":
			say("%s stays down and nobody says why", w)
		case leases[w].Healthy && leases[w].Epoch == e.run.Epoch:
			say("%s is reported down and its lease healthy", w)
		}
	}
	for _, w := range r.topo.Names(topology.KindWorkload) {
		for _, run := range r.dc.Holders(w) {
			if leases[w].LastHolder() != at(run.Machine, run.VM) {
				say("%s runs on %s%s, which its lease does not know: %+v", w, run.Machine, run.VM, leases[w])
			}
		}
	}
	for _, m := range r.dc.World.State() {
		for _, vm := range m.VMs {
			if leases[vm.Name].LastHolder() != at(m.Name, vm.Name) {
				say("VM %s is on at %s, which its lease does not know: %+v", vm.Name, m.Name, leases[vm.Name])
			}
		}
	}
	return wrong
}

type holder = world.Run

func at(machine, vm string) policies.Where { return policies.Where{Machine: machine, VM: vm != ""} }

func (r *trial) mustBeSound(e ended) {
	r.Helper()
	if wrong := r.sound(e); len(wrong) > 0 {
		r.Errorf("after run %s (%s: %s):\n%s", e.run.ID, e.run.State, e.run.Reason, strings.Join(wrong, "\n"))
	}
}

// healthy lists the workloads that serve now, by what the world says.
func (r *trial) healthy(names []string) (up, down []string) {
	for _, w := range names {
		if held := r.dc.Holders(w); len(held) == 1 && held[0].Serving {
			up = append(up, w)
		} else {
			down = append(down, w)
		}
	}
	return up, down
}

// acts is the journal as text, sorted: parallel acts have no order.
func (r *trial) journal() []string {
	var out []string
	for _, a := range r.dc.Journal() {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return out
}
