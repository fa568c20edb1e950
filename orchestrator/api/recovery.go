package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/workflows"
)

// StartResult says which run it is, and whether this request started it.
type StartResult struct {
	Run     state.Run `json:"run"`
	Started bool      `json:"started"`
}

// RunRef is a path that names a run.
type RunRef struct {
	ID string `path:"id" maxLength:"200"`
}

func (s *Server) recoveryRoutes(api huma.API) {
	type start struct {
		Actor
		Body struct {
			Domain      string `json:"domain" doc:"Failure domain, e.g. rack/rack-a"`
			Runbook     string `json:"runbook,omitempty"`
			Trigger     string `json:"trigger,omitempty" enum:"person,api,alert" default:"api"`
			Attestation string `json:"attestation,omitempty" maxLength:"1024" doc:"What a person on site states; counts as evidence"`
		}
	}
	huma.Register(api, route(http.MethodPost, "/recoveries", "start-recovery", "Start the recovery of a failure domain, or get the one under way"),
		func(ctx context.Context, in *start) (*body[StartResult], error) {
			r, started, err := s.Recovery.Start(ctx, recovery.Request{Domain: in.Body.Domain, Runbook: in.Body.Runbook,
				Trigger: in.Body.Trigger, By: in.name(), Attestation: in.Body.Attestation})
			return reply(StartResult{r, started}, err)
		})
	huma.Register(api, route(http.MethodGet, "/recoveries", "list-recoveries", "All runs, newest first"),
		func(ctx context.Context, _ *struct{}) (*body[[]state.Run], error) { return reply(s.Recovery.List(ctx)) })
	huma.Register(api, route(http.MethodGet, "/recoveries/{id}", "get-recovery", "One run with the result of every workload"),
		func(ctx context.Context, in *RunRef) (*body[RunView], error) { return reply(s.runView(ctx, in.ID)) })
	huma.Register(api, route(http.MethodPost, "/recoveries/{id}/approve", "approve-recovery", "Say yes to a run that waits"),
		func(ctx context.Context, in *struct {
			Actor
			RunRef
		}) (*struct{}, error) {
			return nil, problem(s.Recovery.Approve(ctx, in.ID, in.name()))
		})
	huma.Register(api, route(http.MethodPost, "/recoveries/{id}/cancel", "cancel-recovery", "Stop a run at its next safe point"),
		func(ctx context.Context, in *RunRef) (*struct{}, error) {
			return nil, problem(s.Recovery.Cancel(ctx, in.ID))
		})
	huma.Register(api, route(http.MethodPost, "/recoveries/plan", "plan-recovery", "What a recovery would do now, touching nothing"),
		func(ctx context.Context, in *struct {
			Body struct {
				Domain string `json:"domain"`
			}
		}) (*body[policies.Placement], error) {
			return reply(s.dryRun(ctx, in.Body.Domain))
		})
	type domainIn struct {
		Kind string `path:"kind"`
		Named
	}
	judge := func(ctx context.Context, name string) (*body[policies.Verdict], error) {
		domain, err := s.Recovery.Domain(name)
		if err != nil {
			return nil, problem(err)
		}
		return reply(s.Monitor.Judge(ctx, domain, "", "", time.Time{}))
	}
	huma.Register(api, route(http.MethodGet, "/domains/{kind}/{name}/verdict", "verdict", "What is believed of a failure domain, and on which evidence"),
		func(ctx context.Context, in *domainIn) (*body[policies.Verdict], error) {
			return judge(ctx, in.Kind+"/"+in.Name)
		})
	huma.Register(api, route(http.MethodGet, "/domains/{name}/verdict", "verdict-by-name", "The same for a domain whose name no other domain has"),
		func(ctx context.Context, in *Named) (*body[policies.Verdict], error) { return judge(ctx, in.Name) })
	watch := route(http.MethodGet, "/recoveries/{id}/watch", "watch-recovery", "The run, again after every change, until it ends")
	watch.Middlewares = huma.Middlewares{s.runExists(api)}
	sse.Register(api, watch, map[string]any{"run": RunView{}}, s.watch)
}

func (s *Server) runView(ctx context.Context, id string) (RunView, error) {
	r, err := s.Recovery.Get(ctx, id)
	if err != nil {
		return RunView{}, err
	}
	results, err := s.Recovery.Results(ctx, id)
	return RunView{r, recovery.Order(results), recovery.Summarize(r, results)}, err
}

// runExists answers for a run that is not there, which a stream of events cannot.
func (s *Server) runExists(api huma.API) func(huma.Context, func(huma.Context)) {
	return func(c huma.Context, next func(huma.Context)) {
		if _, err := s.Recovery.Get(c.Context(), c.Param("id")); err != nil {
			k := fault.KindOf(err)
			c.SetHeader("Content-Type", "application/problem+json")
			c.SetStatus(status(k))
			_ = api.Marshal(c.BodyWriter(), "application/json", problem(err)) // the client has gone
			return
		}
		next(c)
	}
}

// watch sends the whole run whenever its record or a result changes, at most every 200 ms: a recovery
// makes many changes at once, and people read no faster.
func (s *Server) watch(ctx context.Context, in *RunRef, send sse.Sender) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan struct{}, 1)
	poke := func(store.Batch) error {
		select {
		case changed <- struct{}{}:
		default:
		}
		return nil
	}
	for _, prefix := range []string{state.RunsAt + in.ID, state.ResultsAt + in.ID + "/"} {
		_, rev, err := s.Store.List(ctx, prefix)
		if err != nil {
			return
		}
		go func() {
			_ = s.Store.Watch(ctx, prefix, rev, poke)
			cancel() // the store has failed, or the client has gone: without a watch the stream would stand still
		}()
	}
	for {
		v, err := s.runView(ctx, in.ID)
		if err != nil || send.Data(v) != nil || v.State.Ended() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// dryRun plans the recovery of a domain on the present state. It claims and writes nothing.
func (s *Server) dryRun(ctx context.Context, domain string) (policies.Placement, error) {
	domain, err := s.Recovery.Domain(domain)
	if err != nil {
		return policies.Placement{}, err
	}
	t := s.Revisions.Topology()
	d, err := t.Domain(domain)
	if err != nil {
		return policies.Placement{}, err
	}
	inside := map[string]bool{}
	for _, m := range d.Machines {
		inside[m] = true
	}
	leases, err := state.List[state.Lease](ctx, s.Store, state.LeasesAt)
	if err != nil {
		return policies.Placement{}, err
	}
	var pending []string
	for _, l := range leases {
		if inside[l.Holder.Machine] {
			pending = append(pending, l.Workload)
		}
	}
	scope := workflows.Scope{Machines: d.Machines}
	for _, b := range t.Runbooks {
		for _, sc := range b.Spec.Scope {
			if sc == domain {
				scope.Policy = topology.EffectivePolicy(t, b.Spec.Policy)
				scope.BootHosts = b.Spec.HypervisorImage != ""
			}
		}
	}
	in, err := s.Plan(ctx, "", pending, scope)
	if err != nil {
		return policies.Placement{}, err
	}
	return policies.Place(in), nil
}
