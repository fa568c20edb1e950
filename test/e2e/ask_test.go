package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// However many ask at once, one run recovers the domain.
func TestOneRunForAllWhoAsk(t *testing.T) {
	t.Parallel()
	e := watched(t)
	e.run("lab", "burn", "rack-a")
	const people = 8
	out := make(chan string, people)
	for range people {
		go func() {
			b, err := e.command(t.Context(), "recovery", "start", "rack-a", "-o", "json").CombinedOutput()
			if err != nil {
				b = append(b, err.Error()...)
			}
			out <- string(b)
		}()
	}
	started := 0
	for range people {
		var got struct {
			Run     struct{ ID string }
			Started bool
		}
		s := <-out
		if err := json.Unmarshal([]byte(s), &got); err != nil || got.Run.ID != "rack-a-1" {
			t.Errorf("asked for the recovery, got %s", s)
		}
		if got.Started {
			started++
		}
	}
	if started > 1 {
		t.Errorf("%d requests started a run", started)
	}
	e.run("recovery", "wait", "rack-a-1", "--timeout", "3m")
	if got := strings.Count(e.run("recovery", "list"), "rack-a-"); got != 1 {
		t.Errorf("%d runs are listed", got)
	}
}

// A machine that never phones home is taken out of use and its workload comes back elsewhere, or is
// named in the report with the machine that was tried.
func TestSilentTargetIsReplaced(t *testing.T) {
	t.Parallel()
	e := watched(t)
	e.run("lab", "fault", "machine", "b05", "no-phone-home")
	e.run("lab", "burn", "rack-a")
	out, _, code := e.try("recovery", "wait", "rack-a", "--timeout", "4m")
	if code == 0 {
		t.Error("all came back although one of two arm64 machines never phones home")
	}
	for _, want := range []string{"19/20 recovered", "Tried without success", "b05: no phone-home within"} {
		if !strings.Contains(out, want) {
			t.Errorf("the report does not say %q", want)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
	if m := e.run("get", "machine", "b05"); !strings.Contains(m, "suspect") {
		t.Errorf("b05 is not suspect: %s", m)
	}
	e.checkInvariants()
}
