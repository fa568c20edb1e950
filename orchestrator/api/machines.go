package api

import (
	"context"
	"net/http"
	"sort"

	"github.com/danielgtaylor/huma/v2"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
)

// Named is a path that ends in an object's name. It is exported because the router sets the fields of
// embedded structs only then.
type Named struct {
	Name string `path:"name" maxLength:"63"`
}

func (s *Server) machineRoutes(api huma.API) {
	huma.Register(api, route(http.MethodGet, "/machines", "list-machines", "All machines: declared, observed, decided"),
		func(ctx context.Context, _ *struct{}) (*body[[]MachineView], error) { return reply(s.machines(ctx)) })
	huma.Register(api, route(http.MethodGet, "/workloads", "list-workloads", "All workloads and where they run"),
		func(ctx context.Context, _ *struct{}) (*body[[]WorkloadView], error) { return reply(s.workloads(ctx)) })
	for kind, summary := range map[state.RunKind]string{state.KindPlace: "Start a workload that runs nowhere",
		state.KindRelease: "Stop a workload and take its identity and volumes back"} {
		huma.Register(api, route(http.MethodPost, "/workloads/{name}/"+string(kind), string(kind)+"-workload", summary),
			func(ctx context.Context, in *struct {
				Actor
				Named
			}) (*body[StartResult], error) {
				r, started, err := s.Recovery.StartWorkload(ctx, kind, in.Name, in.name())
				return reply(StartResult{r, started}, err)
			})
	}
	huma.Register(api, route(http.MethodPost, "/machines/{name}/unfence", "unfence", "Let a fenced machine be used again; nothing is connected by it"),
		func(ctx context.Context, in *struct {
			Actor
			Named
		}) (*struct{}, error) {
			return nil, problem(s.changeMachine(ctx, in.Name, func(m *state.Machine) error {
				if m.Fence == nil {
					return &fault.Error{Kind: fault.Conflict, Where: "machine " + in.Name, What: "it is not fenced"}
				}
				// It may still be at turning the machine off, and would do so under whoever uses it next.
				if r, _, err := state.Load[state.Run](ctx, s.Store, state.RunsAt+m.Fence.Run); err != nil {
					return err
				} else if r.State != "" && !r.State.Ended() {
					return &fault.Error{Kind: fault.Conflict, Where: "machine " + in.Name, What: "unfence",
						Evidence: "run " + r.ID + " is under way and fences it", Next: "wait for it, or rerack recovery cancel " + r.ID}
				}
				s.Log.Warn("machine unfenced", "machine", in.Name, "by", in.name(), "run", m.Fence.Run)
				m.Fence = nil
				return nil
			}))
		})
	huma.Register(api, route(http.MethodPost, "/machines/{name}/clear", "clear-suspect", "Trust a machine again that failed to boot"),
		func(ctx context.Context, in *struct {
			Actor
			Named
		}) (*struct{}, error) {
			return nil, problem(s.changeMachine(ctx, in.Name, func(m *state.Machine) error {
				if m.Suspect == nil {
					return &fault.Error{Kind: fault.Conflict, Where: "machine " + in.Name, What: "it is not suspect"}
				}
				s.Log.Info("machine cleared", "machine", in.Name, "by", in.name(), "was", m.Suspect.Reason)
				m.Suspect = nil
				return nil
			}))
		})
}

func (s *Server) changeMachine(ctx context.Context, name string, change func(*state.Machine) error) error {
	if _, ok := s.Revisions.Topology().Machines[name]; !ok {
		return &fault.Error{Kind: fault.NotFound, What: "no such machine", Where: name, Next: "rerack get machines"}
	}
	_, err := state.Update(ctx, s.Store, state.MachinesAt+name, change)
	return err
}

func (s *Server) machines(ctx context.Context) ([]MachineView, error) {
	t := s.Revisions.Topology()
	records, err := state.List[state.Machine](ctx, s.Store, state.MachinesAt)
	if err != nil {
		return nil, err
	}
	leases, err := state.List[state.Lease](ctx, s.Store, state.LeasesAt)
	if err != nil {
		return nil, err
	}
	byName := map[string]state.Machine{}
	for _, r := range records {
		byName[r.Machine] = r
	}
	runs := map[string][]string{}
	for _, l := range leases {
		runs[l.Holder.Machine] = append(runs[l.Holder.Machine], l.Workload)
	}
	out := make([]MachineView, 0, len(t.Machines))
	for name, m := range t.Machines {
		p, rec := s.Monitor.PowerOf(name), byName[name]
		v := MachineView{Name: name, Rack: m.Spec.Rack, Type: m.Spec.HardwareType, Use: t.UseOf(name), Power: string(p.State),
			PowerAt: p.At, Detail: p.Detail, Runs: runs[name], Host: rec.Host != nil}
		if rec.Fence != nil {
			v.Fenced, v.Fences, v.Zombie = rec.Fence.Run, rec.Fence.Fences, rec.Fence.Zombie != nil
		}
		if rec.Suspect != nil {
			v.Suspect = rec.Suspect.Reason
		}
		if rec.Claim != nil {
			v.Claimed = rec.Claim.Run
		}
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

func (s *Server) workloads(ctx context.Context) ([]WorkloadView, error) {
	t := s.Revisions.Topology()
	leases, err := state.List[state.Lease](ctx, s.Store, state.LeasesAt)
	if err != nil {
		return nil, err
	}
	held := map[string]state.Lease{}
	for _, l := range leases {
		held[l.Workload] = l
	}
	out := make([]WorkloadView, 0, len(t.Workloads))
	for name, w := range t.Workloads {
		l := held[name]
		v := WorkloadView{Name: name, Priority: w.Spec.Priority, RunsOn: string(w.Spec.RunsOn), Repurposable: w.Spec.Repurposable,
			State: "down", Machine: l.Holder.Machine, VM: l.Holder.VM, Epoch: l.Epoch, Since: l.Since, Run: l.Run}
		switch {
		case l.Holder.Machine != "" && l.Healthy:
			v.State = "running"
		case l.Holder.Machine != "":
			v.State = "starting"
		}
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}
