package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/topology"
)

// File is one YAML file as its author has it, so that errors can name it and its lines.
type File struct {
	Name string `json:"name" maxLength:"4096"`
	Data string `json:"data"`
}

// TopologyRequest carries a whole topology.
type TopologyRequest struct {
	Files   []File `json:"files"`
	Message string `json:"message,omitempty" maxLength:"1024" doc:"Why, for the record"`
	Expect  *int   `json:"expect,omitempty" doc:"Refuse unless the present revision is this one"`
}

// TopologyResult says what an apply changes, or changed.
type TopologyResult struct {
	Revision int               `json:"revision" doc:"The present revision; the new one after an apply"`
	Applied  bool              `json:"applied" doc:"A new revision was made"`
	Changes  []topology.Change `json:"changes"`
	Text     string            `json:"text" doc:"The changes, for people"`
	Adopted  int               `json:"adopted,omitempty" doc:"Workloads that were found running at home"`
}

// ObjectView is an object as it is declared.
type ObjectView struct {
	Kind topology.Kind `json:"kind"`
	Meta topology.Meta `json:"metadata"`
	Spec any           `json:"spec"`
}

func (s *Server) topologyRoutes(api huma.API) {
	type request struct {
		Actor
		Body TopologyRequest
	}
	huma.Register(api, route(http.MethodPost, "/topology/plan", "plan-topology", "What an apply would change"),
		func(ctx context.Context, in *request) (*body[TopologyResult], error) {
			return reply(s.plan(ctx, in.Body))
		})
	huma.Register(api, route(http.MethodPost, "/topology/apply", "apply-topology", "Make a topology the present one"),
		func(ctx context.Context, in *request) (*body[TopologyResult], error) {
			return reply(s.apply(ctx, in.Body, in.name()))
		})
	type exported struct {
		Revision revision.Head `json:"revision"`
		YAML     string        `json:"yaml"`
	}
	huma.Register(api, route(http.MethodGet, "/topology", "export-topology", "The present topology, or an older revision"),
		func(ctx context.Context, in *struct {
			Revision int `query:"revision" minimum:"0" doc:"0 is the present one"`
		}) (*body[exported], error) {
			head, t := s.Revisions.Current()
			if in.Revision > 0 {
				var err error
				if head, t, err = s.Revisions.Load(ctx, in.Revision); err != nil {
					return nil, problem(err)
				}
			}
			y, err := topology.Marshal(t)
			return reply(exported{head, string(y)}, err)
		})
	huma.Register(api, route(http.MethodGet, "/revisions", "list-revisions", "All revisions, oldest first"),
		func(ctx context.Context, _ *struct{}) (*body[[]revision.Head], error) {
			return reply(s.Revisions.List(ctx))
		})
	huma.Register(api, route(http.MethodPost, "/revisions/{revision}/rollback", "rollback", "Apply an older revision again"),
		func(ctx context.Context, in *struct {
			Actor
			Revision int `path:"revision" minimum:"1"`
		}) (*body[TopologyResult], error) {
			_, t, err := s.Revisions.Load(ctx, in.Revision)
			if err != nil {
				return nil, problem(err)
			}
			return reply(s.applyTopology(ctx, t, in.name(), fmt.Sprintf("rollback to revision %d", in.Revision), -1))
		})
	huma.Register(api, route(http.MethodGet, "/objects/{kind}", "list-objects", "All objects of a kind"),
		func(_ context.Context, in *struct {
			Kind string `path:"kind"`
		}) (*body[[]ObjectView], error) {
			return reply(objects(s.Revisions.Topology(), topology.Kind(in.Kind)))
		})
}

func objects(t *topology.Topology, kind topology.Kind) ([]ObjectView, error) {
	if !slices.Contains(topology.Kinds(), kind) {
		return nil, &fault.Error{Kind: fault.NotFound, What: fmt.Sprintf("no kind %q", kind), Next: fmt.Sprintf("one of %v", topology.Kinds())}
	}
	out := []ObjectView{}
	for _, n := range t.Names(kind) {
		if meta, spec, ok := t.Object(kind, n); ok {
			out = append(out, ObjectView{kind, meta, spec})
		}
	}
	return out, nil
}

func parse(q TopologyRequest) (*topology.Topology, error) {
	if len(q.Files) == 0 {
		return nil, &fault.Error{Kind: fault.Invalid, What: "no files: an empty topology is not applied by accident", Next: "name a file or folder"}
	}
	files := make([]topology.File, len(q.Files))
	for i, f := range q.Files {
		files[i] = topology.File{Name: f.Name, Data: []byte(f.Data)}
	}
	t, err := topology.Load(files)
	if err == nil && t.Len() == 0 {
		err = &fault.Error{Kind: fault.Invalid, What: "the files declare nothing: an empty topology is not applied by accident", Next: "name a file or folder"}
	}
	return t, err
}

func (s *Server) plan(ctx context.Context, q TopologyRequest) (TopologyResult, error) {
	t, err := parse(q)
	if err != nil {
		return TopologyResult{}, err
	}
	head, now := s.Revisions.Current()
	changes := topology.Diff(now, t)
	return TopologyResult{Revision: head.Revision, Changes: changes, Text: topology.FormatDiff(changes)}, recovery.Bound(ctx, s.Store, now, t)
}

func (s *Server) apply(ctx context.Context, q TopologyRequest, by string) (TopologyResult, error) {
	t, err := parse(q)
	if err != nil {
		return TopologyResult{}, err
	}
	expect := -1
	if q.Expect != nil {
		expect = *q.Expect
	}
	return s.applyTopology(ctx, t, by, q.Message, expect)
}

func (s *Server) applyTopology(ctx context.Context, t *topology.Topology, by, message string, expect int) (TopologyResult, error) {
	_, before := s.Revisions.Current()
	if err := recovery.Bound(ctx, s.Store, before, t); err != nil {
		return TopologyResult{}, err
	}
	changes := topology.Diff(before, t)
	head, applied, err := s.Revisions.Apply(ctx, t, by, message, expect)
	if err != nil {
		return TopologyResult{}, err
	}
	adopted, err := recovery.Adopt(ctx, s.Store, t, s.Now())
	return TopologyResult{Revision: head.Revision, Applied: applied, Changes: changes, Text: topology.FormatDiff(changes), Adopted: adopted}, err
}
