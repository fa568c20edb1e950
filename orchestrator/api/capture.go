package api

import (
	"context"
	"net/http"
	"sort"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
)

// CaptureView is how far the copy of a machine's disk has come.
type CaptureView struct {
	Run      string         `json:"run"`
	State    state.RunState `json:"state"`
	Reason   string         `json:"reason,omitempty" doc:"Why it ended so"`
	Machine  string         `json:"machine"`
	Disk     string         `json:"disk"`
	Volume   string         `json:"volume"`
	Phase    string         `json:"phase,omitempty" doc:"What the run is at"`
	Stage    string         `json:"stage,omitempty" enum:"copy,verify,done,failed" doc:"copy: from the disk to the volume; verify: the volume is read back"`
	Size     int64          `json:"size" doc:"Bytes of the disk; 0 until it was found"`
	Bytes    int64          `json:"bytes" doc:"How many of them are proven in this stage"`
	SHA256   string         `json:"sha256,omitempty" doc:"Of the whole disk, as read back from the volume"`
	Boots    int            `json:"boots" doc:"Times the machine was booted for it"`
	Began    time.Time      `json:"began,omitzero" doc:"First report of the machine"`
	Updated  time.Time      `json:"updated,omitzero" doc:"Last report of the machine"`
	Finished time.Time      `json:"finished,omitzero"`
}

func (s *Server) captureRoutes(api huma.API) {
	type capture struct {
		Actor
		Named
		Body struct {
			Disk     string `json:"disk" maxLength:"100" doc:"wwn:5000c500a1b2c3d4 or serial:S3Z8NB0K" example:"serial:S3Z8NB0K"`
			Volume   string `json:"volume" maxLength:"63" doc:"Volume that gets the copy; what is in it is lost"`
			Image    string `json:"image,omitempty" maxLength:"63" doc:"Image of type capture; default: the only one"`
			PowerOff bool   `json:"powerOff,omitempty" doc:"Turn the machine off if it is on"`
		}
	}
	huma.Register(api, route(http.MethodPost, "/machines/{name}/capture", "start-capture", "Copy a local disk of a machine into a volume"),
		func(ctx context.Context, in *capture) (*body[StartResult], error) {
			r, started, err := s.startCapture(ctx, state.CaptureRequest{Machine: in.Name, Disk: in.Body.Disk, Volume: in.Body.Volume, Image: in.Body.Image,
				PowerOff: in.Body.PowerOff}, in.name())
			return reply(StartResult{r, started}, err)
		})
	huma.Register(api, route(http.MethodGet, "/captures", "list-captures", "All captures, newest first"),
		func(ctx context.Context, _ *struct{}) (*body[[]CaptureView], error) { return reply(s.captures(ctx)) })
	huma.Register(api, route(http.MethodGet, "/captures/{id}", "get-capture", "How far a capture has come"),
		func(ctx context.Context, in *RunRef) (*body[CaptureView], error) {
			r, err := s.Recovery.Get(ctx, in.ID)
			if err == nil && r.Kind != state.KindCapture {
				err = &fault.Error{Kind: fault.NotFound, What: "this run is no capture", Where: in.ID}
			}
			if err != nil {
				return nil, problem(err)
			}
			return reply(s.captureView(ctx, r))
		})
}

// startCapture refuses at once what cannot be. A run under way is joined without: the disk is being used by it.
func (s *Server) startCapture(ctx context.Context, q state.CaptureRequest, by string) (state.Run, bool, error) {
	d, _, err := state.Load[state.Domain](ctx, s.Store, state.DomainsAt+"volume/"+q.Volume)
	if err != nil {
		return state.Run{}, false, err
	}
	if d.Active == "" {
		if err := s.CheckCapture(ctx, q); err != nil {
			return state.Run{}, false, err
		}
	}
	return s.Recovery.StartCapture(ctx, q, by)
}

func (s *Server) captures(ctx context.Context) ([]CaptureView, error) {
	runs, err := s.Recovery.List(ctx)
	if err != nil {
		return nil, err
	}
	out := []CaptureView{}
	for _, r := range runs {
		if r.Kind != state.KindCapture {
			continue
		}
		v, err := s.captureView(ctx, r)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	sort.SliceStable(out, func(i, j int) bool { return !out[i].State.Ended() && out[j].State.Ended() })
	return out, nil
}

func (s *Server) captureView(ctx context.Context, r state.Run) (CaptureView, error) {
	v := CaptureView{Run: r.ID, State: r.State, Reason: r.Reason}
	if q := r.Capture; q != nil {
		v.Machine, v.Disk, v.Volume = q.Machine, q.Disk, q.Volume
	}
	if n := len(r.Phases); n > 0 && !r.State.Ended() {
		v.Phase = r.Phases[n-1].Name
	}
	c, rev, err := state.Load[state.Capture](ctx, s.Store, state.CapturesAt+r.ID)
	if err != nil || rev == 0 {
		return v, err
	}
	v.Stage, v.Size, v.Bytes, v.SHA256, v.Boots = c.Stage, c.Size, c.Proven(), c.SHA256, c.Attempts
	v.Began, v.Updated, v.Finished = c.Began, c.Updated, c.Ended
	return v, nil
}
