package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/examples"
	fabric "rerack.dev/rerack/fabric/driver"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/monitor"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/pxe/images"
	san "rerack.dev/rerack/sanzoning/driver"
	"rerack.dev/rerack/workflows"
)

const token = "correct-horse"

// service is an API over a true store, whose devices and engine are away.
type service struct {
	t      *testing.T
	url    string
	store  *brittle
	images string // folder of the image store
}

// brittle is a store whose watches can be made to fail, and whose reads.
type brittle struct {
	store.Store
	broken atomic.Pointer[fault.Error]
	lost   chan struct{} // closed: every watch fails
}

func (b *brittle) List(ctx context.Context, prefix string) ([]store.Entry, uint64, error) {
	if err := b.broken.Load(); err != nil {
		return nil, 0, err
	}
	return b.Store.List(ctx, prefix)
}

func (b *brittle) Watch(ctx context.Context, prefix string, from uint64, fn func(store.Batch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-b.lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := b.Store.Watch(ctx, prefix, from, fn); err != nil {
		return err
	}
	return fault.New(fault.Unreachable, "the store is away")
}

type away struct{}

var errAway = fault.New(fault.Unreachable, "away")

func (away) Start(context.Context, state.Run) error                { return nil }
func (away) Approve(context.Context, string, state.Approval) error { return errAway }
func (away) Cancel(context.Context, string) error                  { return errAway }
func (away) PollPower(_ context.Context, machines []topology.Machine, each func(string, bmc.Reading, error)) {
	for _, m := range machines {
		each(m.Meta.Name, bmc.Reading{}, errAway)
	}
}
func (away) Ports(context.Context, topology.Switch) ([]fabric.Port, error)   { return nil, errAway }
func (away) Sessions(context.Context, topology.Array) ([]san.Session, error) { return nil, errAway }
func (away) Logins(context.Context, topology.Fabric) ([]string, error)       { return nil, errAway }
func plan(context.Context, string, []string, workflows.Scope) (policies.PlacementInput, error) {
	return policies.PlacementInput{}, errAway
}

func start(t *testing.T) *service {
	t.Helper()
	st, err := embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	check(t, err)
	t.Cleanup(func() { check(t, st.Close()) })
	s := &brittle{Store: st, lost: make(chan struct{})}
	log := slog.New(slog.DiscardHandler)
	revisions := &revision.Log{Store: s, Now: time.Now}
	mon := monitor.New(monitor.Config{Devices: away{}, Topology: revisions.Topology, Now: time.Now})
	dir := filepath.Join(t.TempDir(), "images")
	files, err := images.Open(dir, images.Options{MaxSize: 1 << 20})
	check(t, err)
	t.Cleanup(func() { check(t, files.Close()) })
	srv := &api.Server{Store: s, Revisions: revisions, Monitor: mon, Images: files, Plan: plan, Token: token, Now: time.Now, Log: log,
		Recovery: &recovery.Service{Store: s, Topology: revisions.Topology, Engine: away{}, Judge: mon.Judge, PowerOf: mon.PowerOf, Now: time.Now, Log: log}}
	h := httptest.NewServer(srv.Handler())
	t.Cleanup(h.Close)
	return &service{t: t, url: h.URL, store: s, images: dir}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// do sends a request and returns the status and the answer.
func (s *service) do(method, path, bearer, body string) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body))
	check(s.t, err)
	req.Header.Set("Content-Type", "application/json")
	if bearer != "" {
		req.Header.Set("Authorization", bearer)
	}
	resp, err := http.DefaultClient.Do(req)
	check(s.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(s.t, err)
	return resp, string(b)
}

func (s *service) ask(method, path, body string) (int, string) {
	s.t.Helper()
	resp, b := s.do(method, path, "Bearer "+token, body)
	return resp.StatusCode, b
}

// story applies the story's topology.
func (s *service) story() {
	s.t.Helper()
	topo, err := topology.LoadFS(examples.Story, "story")
	check(s.t, err)
	y, err := topology.Marshal(topo)
	check(s.t, err)
	b, err := json.Marshal(api.TopologyRequest{Files: []api.File{{Name: "story.yaml", Data: string(y)}}})
	check(s.t, err)
	if code, out := s.ask("POST", "/api/v1/topology/apply", string(b)); code != 200 || !strings.Contains(out, `"adopted":24`) {
		s.t.Fatalf("apply: %d %s", code, out)
	}
}

// Every route there is, with its methods, refuses who has no token, a wrong one, or half of one; the
// health check alone tells nothing and asks for nothing.
func TestEveryRouteAsksForTheToken(t *testing.T) {
	s := start(t)
	_, doc := s.ask("GET", "/openapi.json", "")
	var spec struct {
		OpenAPI string
		Paths   map[string]map[string]any
	}
	check(t, json.Unmarshal([]byte(doc), &spec))
	routes := map[string]string{"/openapi.json": "GET", "/nowhere": "GET", "/": "GET", "/schemas/RunView.json": "GET", "/healthz/../api/v1/machines": "GET"}
	for path, methods := range spec.Paths {
		for m := range methods {
			routes[path+"#"+m] = strings.ToUpper(m)
		}
	}
	if len(spec.Paths) < 15 || !strings.HasPrefix(spec.OpenAPI, "3.1") {
		t.Fatalf("OpenAPI %s with %d paths", spec.OpenAPI, len(spec.Paths))
	}
	for path, method := range routes {
		path, _, _ = strings.Cut(path, "#")
		path = strings.NewReplacer("{kind}", "rack", "{name}", "x", "{id}", "x", "{revision}", "1").Replace(path)
		for _, bearer := range []string{"", "Bearer ", "Bearer wrong", token, "Basic " + token, "bearer " + token, "Bearer " + token[:5], "Bearer " + token + "x"} {
			resp, body := s.do(method, path, bearer, "{}")
			if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != "Bearer" || strings.Contains(body, token) {
				t.Errorf("%s %s with %q: %d %s", method, path, bearer, resp.StatusCode, body)
			}
		}
	}
	if resp, body := s.do("GET", "/healthz", "", ""); resp.StatusCode != 204 || body != "" {
		t.Errorf("healthz: %d %q", resp.StatusCode, body)
	}
}

// The kind of what failed decides on the status, and is the title that clients decide on.
func TestKindsAndStatuses(t *testing.T) {
	s := start(t)
	for kind, want := range map[fault.Kind]int{fault.Internal: 500, fault.Invalid: 422, fault.NotFound: 404, fault.Conflict: 409, fault.Stale: 409,
		fault.Unauthorized: 403, fault.Unsupported: 501, fault.Busy: 503, fault.Unreachable: 503, fault.Timeout: 504, fault.Unverified: 500, fault.Unsafe: 409} {
		s.store.broken.Store(fault.New(kind, "why"))
		resp, body := s.do("GET", "/api/v1/machines", "Bearer "+token, "")
		var p struct {
			Status        int
			Title, Detail string
		}
		check(t, json.Unmarshal([]byte(body), &p))
		if resp.StatusCode != want || p.Status != want || p.Title != kind.String() || !strings.Contains(p.Detail, "why") ||
			resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s", kind, resp.StatusCode, body)
		}
	}
}

func TestAnswers(t *testing.T) {
	s := start(t)
	s.story()
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/api/v1/objects/Machine", "", 200, `"metadata":{"name":"a01"`},
		{"GET", "/api/v1/objects/Nothing", "", 404, "no kind"},
		{"GET", "/api/v1/machines", "", 200, `"name":"a01"`},
		{"GET", "/api/v1/workloads", "", 200, `"state":"running"`},
		{"GET", "/api/v1/topology?revision=9", "", 404, "no such revision"},
		{"GET", "/api/v1/topology?revision=-1", "", 422, "revision"},
		{"GET", "/api/v1/domains/rack/rack-a/verdict", "", 200, `"state":"`},
		{"GET", "/api/v1/domains/rack-a/verdict", "", 200, `"domain":"rack/rack-a"`},
		{"GET", "/api/v1/domains/rack/rack-q/verdict", "", 422, "did you mean"},
		{"POST", "/api/v1/recoveries/plan", `{"domain":"rack-q"}`, 422, "no such failure domain"},
		{"POST", "/api/v1/recoveries/plan", `{"domain":"rack-a"}`, 503, "away"},
		{"POST", "/api/v1/recoveries", `{"domain":"rack-a","trigger":"detector"}`, 422, "trigger"},
		{"POST", "/api/v1/recoveries", `{"domain":"rack-a","state":"done"}`, 422, "unexpected property"},
		{"POST", "/api/v1/recoveries", `{"domain":"rack-a"`, 400, ""},
		{"POST", "/api/v1/recoveries", `{"domain":"rack-a","attestation":"` + strings.Repeat("x", 1025) + `"}`, 422, "attestation"},
		{"POST", "/api/v1/recoveries", `{"domain":"rack-b"}`, 422, "no runbook"},
		{"GET", "/api/v1/recoveries/none", "", 404, "no such run"},
		{"GET", "/api/v1/recoveries/none/watch", "", 404, "no such run"},
		{"POST", "/api/v1/recoveries/none/approve", "", 404, "no such run"},
		{"GET", "/api/v1/recoveries/..%2F..%2Flease", "", 422, "segment"},
		{"POST", "/api/v1/machines/a01/unfence", "", 409, "not fenced"},
		{"POST", "/api/v1/machines/none/clear", "", 404, "no such machine"},
		{"POST", "/api/v1/workloads/none/place", "", 404, "no such workload"},
		{"POST", "/api/v1/topology/apply", `{"files":[]}`, 422, "by accident"},
		{"POST", "/api/v1/topology/apply", `{"files":[{"name":"a.yaml","data":"# nothing"}]}`, 422, "by accident"},
		{"POST", "/api/v1/topology/apply", `{"files":[{"name":"a.yaml","data":"kind: Nothing"}]}`, 422, "a.yaml:1:"},
		{"POST", "/api/v1/topology/plan", `{"files":[{"name":"a.yaml","data":"kind: Nothing"}]}`, 422, `"location":`},
		{"DELETE", "/api/v1/machines", "", 405, ""},
		{"GET", "/api/v1/nowhere", "", 404, ""},
	} {
		if code, body := s.ask(tt.method, tt.path, tt.body); code != tt.status || !strings.Contains(body, tt.says) {
			t.Errorf("%s %s %.80s: %d %.300s, want %d that says %q", tt.method, tt.path, tt.body, code, body, tt.status, tt.says)
		}
	}
	if _, body := s.ask("GET", "/api/v1/revisions", ""); strings.Count(body, `"revision":`) != 1 {
		t.Errorf("something was applied: %s", body)
	}
	if _, body := s.ask("GET", "/api/v1/recoveries", ""); body != "[]\n" {
		t.Errorf("something was started: %s", body)
	}
}

// A machine stays fenced while the run that fences it is under way.
func TestUnfenceWaitsForTheRun(t *testing.T) {
	s := start(t)
	s.story()
	_, err := state.Update(t.Context(), s.store, state.MachinesAt+"a01", func(m *state.Machine) error {
		m.Machine, m.Fence = "a01", &state.FenceState{Run: "rack-a-1", Epoch: 2}
		return nil
	})
	check(t, err)
	for _, tt := range []struct {
		run    state.RunState
		status int
		says   string
	}{{state.RunRunning, 409, "rack-a-1 is under way"}, {state.RunWaiting, 409, "rack-a-1 is under way"}, {state.RunDone, 204, ""}} {
		_, err := state.Update(t.Context(), s.store, state.RunsAt+"rack-a-1", func(r *state.Run) error {
			r.ID, r.State = "rack-a-1", tt.run
			return nil
		})
		check(t, err)
		if code, body := s.ask("POST", "/api/v1/machines/a01/unfence", ""); code != tt.status || !strings.Contains(body, tt.says) {
			t.Errorf("while the run is %s: %d %s", tt.run, code, body)
		}
	}
}

// A body that is too large is refused without being kept.
func TestBodyLimit(t *testing.T) {
	s := start(t)
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.url+"/api/v1/topology/apply",
		io.MultiReader(strings.NewReader(`{"files":[{"name":"a","data":"`), io.LimitReader(letters{}, 65<<20)))
	check(t, err)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
}

type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// Many who send the same topology at once get one revision, and each workload is adopted once.
func TestApplyAtOnce(t *testing.T) {
	s := start(t)
	topo, err := topology.LoadFS(examples.Story, "story")
	check(t, err)
	y, err := topology.Marshal(topo)
	check(t, err)
	b, err := json.Marshal(api.TopologyRequest{Files: []api.File{{Name: "story.yaml", Data: string(y)}}})
	check(t, err)
	type result struct {
		Applied           bool
		Revision, Adopted int
	}
	const people = 6
	results := make(chan result, people)
	for range people {
		go func() {
			var r result
			code, body := s.ask("POST", "/api/v1/topology/apply", string(b))
			if err := json.Unmarshal([]byte(body), &r); err != nil || code != 200 {
				t.Errorf("apply: %d %s", code, body)
			}
			results <- r
		}()
	}
	applied, adopted := 0, 0
	for range people {
		r := <-results
		adopted += r.Adopted
		if r.Applied {
			applied++
		}
		if r.Revision != 1 {
			t.Errorf("revision %d", r.Revision)
		}
	}
	if applied != 1 || adopted != 24 {
		t.Errorf("applied %d times, %d workloads adopted", applied, adopted)
	}
}

// A stream shows every change until the run ends; when the store fails it ends, so that who watches asks again
// instead of waiting for ever.
func TestWatch(t *testing.T) {
	for name, tt := range map[string]struct {
		then func(*testing.T, *service) // after the first event
		last string                     // what the last event says
	}{
		"the run ends": {func(t *testing.T, s *service) {
			_, err := state.Update(t.Context(), s.store, state.RunsAt+"rack-a-1", func(r *state.Run) error { r.State = state.RunDone; return nil })
			check(t, err)
		}, `"state":"done"`},
		"the store fails": {func(_ *testing.T, s *service) { close(s.store.lost) }, `"state":"running"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			s.story()
			if code, body := s.ask("POST", "/api/v1/recoveries", `{"domain":"rack-a","trigger":"person"}`); code != 200 || !strings.Contains(body, `"id":"rack-a-1"`) {
				t.Fatalf("start: %d %s", code, body)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/api/v1/recoveries/rack-a-1/watch", nil)
			check(t, err)
			req.Header.Set("Authorization", "Bearer "+token)
			resp, err := http.DefaultClient.Do(req)
			check(t, err)
			defer resp.Body.Close()
			lines, last := bufio.NewScanner(resp.Body), ""
			for lines.Scan() {
				if data, ok := strings.CutPrefix(lines.Text(), "data:"); ok {
					if last == "" {
						tt.then(t, s)
					}
					last = data
				}
			}
			if err := lines.Err(); err != nil || !strings.Contains(last, tt.last) {
				t.Errorf("the stream ends with %q, %v", last, err)
			}
		})
	}
}
