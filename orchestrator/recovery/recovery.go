// Package recovery starts runs, answers questions about them, and makes sure that what was accepted
// goes on: of two who start a recovery of one domain at once, both get the same run.
package recovery

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
)

// Engine is what runs the workflows.
type Engine interface {
	Start(ctx context.Context, r state.Run) error
	Approve(ctx context.Context, run string, by state.Approval) error
	Cancel(ctx context.Context, run string) error
}

// Service starts and shows runs.
type Service struct {
	Store    store.Store
	Topology func() *topology.Topology
	Engine   Engine
	Judge    func(ctx context.Context, domain, by, attestation string, attested time.Time) (policies.Verdict, error)
	PowerOf  func(machine string) bmc.Reading // last reading
	Now      func() time.Time
	Log      *slog.Logger
}

// Request asks for a recovery.
type Request struct {
	Domain      string `json:"domain"`
	Runbook     string `json:"runbook,omitempty"` // default: the only one whose scope names the domain
	Trigger     string `json:"trigger"`           // person, api, alert, detector
	By          string `json:"by"`
	Attestation string `json:"attestation,omitempty"`
}

// StartWorkload accepts the placement or release of one workload, under the same rules as Start.
func (s *Service) StartWorkload(ctx context.Context, kind state.RunKind, workload, by string) (r state.Run, started bool, err error) {
	if _, ok := s.Topology().Workloads[workload]; !ok {
		return r, false, &fault.Error{Kind: fault.NotFound, What: "no such workload", Where: workload, Next: "rerack get workloads"}
	}
	return s.accept(ctx, state.Run{Kind: kind, Domain: "workload/" + workload, Trigger: "person", By: by, Workloads: []string{workload}})
}

// StartCapture accepts the copy of a machine's disk into a volume, under the same rules as Start: one run for
// each volume. The machine is claimed by the run.
func (s *Service) StartCapture(ctx context.Context, q state.CaptureRequest, by string) (r state.Run, started bool, err error) {
	return s.accept(ctx, state.Run{Kind: state.KindCapture, Domain: "volume/" + q.Volume, Trigger: "person", By: by, Capture: &q})
}

// Start accepts a recovery. When one of the domain is under way, that one is returned and started is
// false. An accepted run is durable before Start returns, and goes on after any crash.
func (s *Service) Start(ctx context.Context, q Request) (r state.Run, started bool, err error) {
	if q.Domain, err = s.Domain(q.Domain); err != nil {
		return r, false, err
	}
	if q.Runbook, err = s.runbook(q); err != nil {
		return r, false, err
	}
	return s.accept(ctx, state.Run{Domain: q.Domain, Runbook: q.Runbook, Trigger: q.Trigger, By: q.By, Attestation: q.Attestation})
}

func (s *Service) accept(ctx context.Context, want state.Run) (r state.Run, started bool, err error) {
	for {
		r, started, err = s.claim(ctx, want)
		if !fault.Is(err, fault.Conflict) {
			break
		}
	}
	if err == nil && !started {
		r, err = s.join(ctx, want, r)
	}
	if err != nil {
		return r, false, err
	}
	return r, started, s.Engine.Start(ctx, r)
}

// claim makes want the run of its domain in one transaction, or returns the one under way. It returns
// fault.Conflict when another changed the domain meanwhile.
func (s *Service) claim(ctx context.Context, want state.Run) (state.Run, bool, error) {
	key := state.DomainsAt + want.Domain
	d, rev, err := state.Load[state.Domain](ctx, s.Store, key)
	if err != nil {
		return want, false, err
	}
	if d.Active != "" {
		r, err := s.Get(ctx, d.Active)
		return r, false, err
	}
	d.Domain, d.Last = want.Domain, d.Last+1
	d.Active = runID(want.Domain, d.Last)
	want.ID, want.State, want.Requested = d.Active, state.RunRunning, s.Now()
	domain, err := state.Encode(d)
	if err != nil {
		return want, false, err
	}
	run, err := state.Encode(want)
	if err != nil {
		return want, false, err
	}
	err = s.Store.Txn(ctx, store.PutIf(key, domain, rev), store.PutIf(state.RunsAt+want.ID, run, 0))
	return want, err == nil, err
}

// join lets a request be served by the run under way, which is told of a person's statement that comes with it.
// One that asks for something else, or brings evidence which that run would never hear of, is not served.
func (s *Service) join(ctx context.Context, want, r state.Run) (state.Run, error) {
	if want.Kind != r.Kind {
		return r, conflict(want, r, "another procedure is under way")
	}
	if want.Capture != nil && (r.Capture == nil || *want.Capture != *r.Capture) {
		return r, conflict(want, r, "another disk is being copied into it")
	}
	if want.Attestation == "" || want.Attestation == r.Attestation {
		return r, nil
	}
	said := state.Statement{By: want.By, At: s.Now(), Text: want.Attestation}
	return state.Update(ctx, s.Store, state.RunsAt+r.ID, func(r *state.Run) error {
		switch {
		case r.State.Ended() || r.Verdict != nil && r.Verdict.State != policies.VerdictBurned:
			return conflict(want, *r, "its verdict was given without this statement")
		case r.Statement().By != said.By || r.Statement().Text != said.Text: // else asked again
			r.Attested = append(r.Attested, said)
		}
		return nil
	})
}

func conflict(want, r state.Run, what string) error {
	return &fault.Error{Kind: fault.Conflict, Where: want.Domain, What: what, Evidence: fmt.Sprintf("run %s by %s", r.ID, r.By),
		Next: "rerack recovery cancel " + r.ID + ", or wait until it has ended, and ask again"}
}

// Resume starts the workflow of every accepted run that has not ended: after a crash between accepting
// and starting, or with a fresh workflow engine. For one that runs it changes nothing.
func (s *Service) Resume(ctx context.Context) error {
	runs, err := s.List(ctx)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if r.State.Ended() {
			continue
		}
		if err := s.Engine.Start(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func runID(domain string, n int) string {
	kind, name, _ := strings.Cut(domain, "/")
	if kind != "rack" {
		name = kind + "-" + name
	}
	return fmt.Sprintf("%s-%d", name, n)
}

// Domain returns the whole name of a failure domain. "rack-a" stands for "rack/rack-a" when no other
// domain has that name.
func (s *Service) Domain(name string) (string, error) {
	t := s.Topology()
	var found []string
	for _, d := range t.Domains() {
		if _, short, _ := strings.Cut(d, "/"); short == name {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", &fault.Error{Kind: fault.Invalid, What: "several domains are called " + name, Evidence: strings.Join(found, ", "), Next: "name one of them whole"}
	case !strings.Contains(name, "/"):
		name = "rack/" + name
	}
	d, err := t.Domain(name)
	if err != nil {
		return "", &fault.Error{Kind: fault.Invalid, What: "no such failure domain", Evidence: err.Error(), Next: "rerack get racks"}
	}
	return d.Name, nil
}

func (s *Service) runbook(q Request) (string, error) {
	t := s.Topology()
	var fit []string
	for name, b := range t.Runbooks {
		for _, d := range b.Spec.Scope {
			if d == q.Domain && (q.Runbook == "" || q.Runbook == name) {
				fit = append(fit, name)
			}
		}
	}
	sort.Strings(fit)
	if len(fit) != 1 {
		e := &fault.Error{Kind: fault.Invalid, Where: q.Domain, What: "no runbook is for this domain", Next: "add the domain to a runbook's scope"}
		if len(fit) > 1 {
			e.What, e.Next = "several runbooks are for this domain: "+strings.Join(fit, ", "), "name one with --runbook"
		}
		return "", e
	}
	allowed := t.Runbooks[fit[0]].Spec.Triggers
	if ok := map[string]bool{"person": allowed.Person, "api": allowed.API, "alert": allowed.Alert, "detector": allowed.Detector}[q.Trigger]; !ok {
		return "", &fault.Error{Kind: fault.Unsafe, Where: "runbook " + fit[0], What: "it may not be triggered by " + q.Trigger,
			Next: "set spec.triggers." + q.Trigger + " in the runbook, or have a person start it"}
	}
	return fit[0], nil
}

// Get returns one run.
func (s *Service) Get(ctx context.Context, id string) (state.Run, error) {
	r, rev, err := state.Load[state.Run](ctx, s.Store, state.RunsAt+id)
	if err == nil && rev == 0 {
		err = &fault.Error{Kind: fault.NotFound, What: "no such run", Where: id, Next: "rerack recovery list"}
	}
	return r, err
}

// List returns all runs, newest first.
func (s *Service) List(ctx context.Context) ([]state.Run, error) {
	runs, err := state.List[state.Run](ctx, s.Store, state.RunsAt)
	sort.SliceStable(runs, func(i, j int) bool { return runs[i].Requested.After(runs[j].Requested) })
	return runs, err
}

// Results returns what became of each workload and Host of a run.
func (s *Service) Results(ctx context.Context, id string) ([]state.Result, error) {
	return state.List[state.Result](ctx, s.Store, state.ResultsAt+id+"/")
}

// Approve adds a person's yes.
func (s *Service) Approve(ctx context.Context, id, by string) error {
	r, err := s.Get(ctx, id)
	if err != nil {
		return err
	}
	if r.State != state.RunWaiting {
		return &fault.Error{Kind: fault.Conflict, Where: "run " + id, What: "it does not wait for approval", Evidence: string(r.State)}
	}
	if r.Proposed(by) {
		return &fault.Error{Kind: fault.Unsafe, Where: "run " + id, What: "who asks for a recovery, or states what it rests on, cannot approve it", Evidence: by,
			Next: "have somebody else approve"}
	}
	return s.Engine.Approve(ctx, id, state.Approval{By: by, At: s.Now()})
}

// Cancel asks a run to stop at its next safe point.
func (s *Service) Cancel(ctx context.Context, id string) error {
	r, err := s.Get(ctx, id)
	if err != nil {
		return err
	}
	if r.State.Ended() {
		return &fault.Error{Kind: fault.Conflict, Where: "run " + id, What: "it has ended", Evidence: string(r.State)}
	}
	return s.Engine.Cancel(ctx, id)
}

// Detect starts the recovery of every domain that some runbook lets the detector recover and that is
// certainly burned, and lists fenced machines that have started again. It is called after each round
// of the monitor.
func (s *Service) Detect(ctx context.Context) {
	t := s.Topology()
	if err := s.zombies(ctx); err != nil && ctx.Err() == nil {
		s.Log.Error("look for fenced machines that run", "error", err)
	}
	for _, book := range t.Runbooks {
		if !book.Spec.Triggers.Detector {
			continue
		}
		for _, d := range book.Spec.Scope {
			if err := s.detect(ctx, d, book.Meta.Name); err != nil && ctx.Err() == nil {
				s.Log.Error("detector", "domain", d, "error", err)
			}
		}
	}
}

func (s *Service) detect(ctx context.Context, domain, runbook string) error {
	v, err := s.Judge(ctx, domain, "", "", time.Time{})
	if err != nil || v.State != policies.VerdictBurned {
		return err
	}
	needed, err := s.needed(ctx, domain)
	if err != nil || !needed {
		return err
	}
	r, started, err := s.Start(ctx, Request{Domain: domain, Runbook: runbook, Trigger: "detector", By: "detector"})
	if started {
		s.Log.Warn("failure domain burned, recovery started", "domain", domain, "run", r.ID, "reason", v.Reason)
	}
	return err
}

// zombies writes down which fenced machines read as powered on. They stay cut off; a person decides.
func (s *Service) zombies(ctx context.Context) error {
	machines, err := state.List[state.Machine](ctx, s.Store, state.MachinesAt)
	if err != nil {
		return err
	}
	for _, m := range machines {
		p := s.PowerOf(m.Machine)
		if m.Fence == nil || m.Fence.Zombie != nil || p.State != bmc.PowerOn || !p.At.After(m.Fence.Since) {
			continue
		}
		s.Log.Warn("a fenced machine is powered on; it stays cut off", "machine", m.Machine, "run", m.Fence.Run)
		if _, err := state.Update(ctx, s.Store, state.MachinesAt+m.Machine, func(rec *state.Machine) error {
			if rec.Fence != nil {
				at := p.At
				rec.Fence.Zombie = &at
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// needed says whether the domain still holds a workload and no run is under way.
func (s *Service) needed(ctx context.Context, domain string) (bool, error) {
	rec, _, err := state.Load[state.Domain](ctx, s.Store, state.DomainsAt+domain)
	if err != nil || rec.Active != "" {
		return false, err
	}
	d, err := s.Topology().Domain(domain)
	if err != nil {
		return false, err
	}
	inside := map[string]bool{}
	for _, m := range d.Machines {
		inside[m] = true
	}
	leases, err := state.List[state.Lease](ctx, s.Store, state.LeasesAt)
	for _, l := range leases {
		if inside[l.Holder.Machine] {
			return true, err
		}
	}
	return false, err
}

// Adopt records, for every workload with a home and no lease, that it runs at home under epoch 1: what
// already runs when it is first declared is taken over without touching it.
func Adopt(ctx context.Context, s store.Store, t *topology.Topology, now time.Time) (adopted int, err error) {
	for {
		n, err := adopt(ctx, s, t, now)
		adopted += n
		if err == nil || !fault.Is(err, fault.Conflict) { // else somebody adopted some of them meanwhile
			return adopted, err
		}
	}
}

func adopt(ctx context.Context, s store.Store, t *topology.Topology, now time.Time) (adopted int, err error) {
	have, _, err := s.List(ctx, state.LeasesAt)
	if err != nil {
		return 0, err
	}
	known := map[string]bool{}
	for _, e := range have {
		known[e.Key] = true
	}
	var names []string
	for name, w := range t.Workloads {
		if w.Spec.Home != "" && !known[state.LeasesAt+name] {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for len(names) > 0 {
		n := min(len(names), store.MaxOps)
		var ops []store.Op
		for _, name := range names[:n] {
			b, err := state.Encode(state.Lease{Workload: name, Epoch: 1, Since: now, Healthy: true,
				Holder: policies.Where{Machine: t.Workloads[name].Spec.Home}})
			if err != nil {
				return adopted, err
			}
			ops = append(ops, store.PutIf(state.LeasesAt+name, b, 0))
		}
		if err := s.Txn(ctx, ops...); err != nil {
			return adopted, fault.Wrap(err, "adopt workloads at home", "store")
		}
		adopted += n
		names = names[n:]
	}
	return adopted, nil
}
