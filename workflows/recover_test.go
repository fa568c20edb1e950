package workflows_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
)

func TestSmallRecovery(t *testing.T) {
	t.Parallel()
	r := newTrial(t, small(t)).burn()
	var steps []string
	e := r.recover(recovery.Request{}, func(_ context.Context, step string, _ int, do func() (any, error)) (any, error) {
		r.mu.Lock()
		steps = append(steps, step)
		r.mu.Unlock()
		return do()
	})
	r.mustBeSound(e)
	if e.err != nil || e.run.State != state.RunDone || e.res.Recovered != 4 {
		t.Fatalf("%+v, %v, %+v", e.res, e.err, e.results)
	}
	slices.Sort(steps)
	t.Logf("%d steps:\n%s", len(steps), strings.Join(steps, "\n"))
	t.Log(strings.Join(r.journal(), "\n"))
}
