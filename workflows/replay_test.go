package workflows_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/api/proxy"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"

	"rerack.dev/rerack/workflows"
)

// replaying registers workflows with a replayer, which knows no activities.
type replaying struct{ worker.WorkflowReplayer }

func (replaying) RegisterActivity(any) {}

func replay(t *testing.T, h *history.History) error {
	t.Helper()
	r, err := worker.NewWorkflowReplayerWithOptions(worker.WorkflowReplayerOptions{DisableDeadlockDetection: true})
	if err != nil {
		t.Fatal(err)
	}
	workflows.Register(replaying{r}, nil)
	return r.ReplayWorkflowHistory(sdklog.NewStructuredLogger(quiet), h)
}

func histories(t *testing.T) map[string]*history.History {
	t.Helper()
	files, err := filepath.Glob("testdata/histories/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no histories: %v", err)
	}
	out := map[string]*history.History{}
	for _, f := range files {
		r, err := os.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		h, err := client.HistoryFromJSON(r, client.HistoryJSONOptions{})
		if err != nil {
			t.Fatal(f, err)
		}
		_ = r.Close()
		out[filepath.Base(f)] = h
	}
	return out
}

// A run that was begun by a released version goes on under this one, wherever it stood: every history
// and every beginning of one that a worker can have been given replays to the same commands. The files
// come from real runs (RERACK_RECORD_HISTORIES with the tests of workflows/engine) and are kept: a
// change that breaks one needs workflow.GetVersion, not another file.
func TestReplay(t *testing.T) {
	t.Parallel()
	for name, h := range histories(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := replay(t, h); err != nil {
				t.Fatal(err)
			}
			beginnings := 0
			for i, e := range h.Events[:len(h.Events)-1] {
				// Tasks that were started and did not complete gave no commands.
				if e.EventType != enums.EVENT_TYPE_WORKFLOW_TASK_STARTED || h.Events[i+1].EventType != enums.EVENT_TYPE_WORKFLOW_TASK_COMPLETED {
					continue
				}
				beginnings++
				if err := replay(t, &history.History{Events: h.Events[:i+1]}); err != nil {
					t.Errorf("up to event %d of %d: %v", i+1, len(h.Events), err)
				}
			}
			if beginnings == 0 {
				t.Error("no beginning was tried")
			}
		})
	}
}

// The replay notices a change: with another activity in place of one of its first a history does not
// replay.
func TestReplayBites(t *testing.T) {
	t.Parallel()
	h := histories(t)["recovery.json"]
	tried := 0
	for i, e := range h.Events {
		a := e.GetActivityTaskScheduledEventAttributes()
		if a == nil || tried == 10 {
			continue
		}
		tried++
		was := a.ActivityType.Name
		a.ActivityType.Name = "Other"
		if err := replay(t, h); err == nil {
			t.Errorf("event %d may be another activity than %s", i+1, was)
		}
		a.ActivityType.Name = was
	}
	if tried == 0 {
		t.Error("no activity in the history")
	}
}

// Histories are published with the code: they name no machine they were made on, and no workflow ever
// sees a secret. The small data centre has two, by reference.
func TestHistoriesTellNothing(t *testing.T) {
	t.Parallel()
	local := regexp.MustCompile(`(?i)/(home|root|tmp|work|var|users)/|@[a-z0-9-]+@|password|passwd|secret|token|bearer|private key`)
	files, err := filepath.Glob("testdata/histories/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if found := local.Find(b); found != nil {
			t.Errorf("%s has %q", f, found)
		}
	}
	payloads := 0
	for name, h := range histories(t) {
		err := proxy.VisitPayloads(t.Context(), h, proxy.VisitPayloadsOptions{Visitor: func(_ *proxy.VisitPayloadsContext, p []*common.Payload) ([]*common.Payload, error) {
			for _, x := range p {
				payloads++
				if found := local.Find(x.Data); found != nil {
					return nil, fmt.Errorf("a payload has %q", found)
				}
			}
			return p, nil
		}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if payloads < 100 {
		t.Errorf("only %d payloads looked at", payloads)
	}
}
