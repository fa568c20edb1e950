package workflows_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/workflowtest"
)

// A run waits for its verdict, with one kind of evidence only, when somebody gets to the rack: what he states is
// heard, also when it comes while the last verdict is being given.
func TestLateStatementIsHeard(t *testing.T) {
	t.Parallel()
	for _, at := range []int{2, 15, 20} { // looks, a second each; the last is at 20
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			r := newTrial(t, small(t)).burn()
			if err := r.dc.World.SetManagement("switch/spine", false); err != nil { // nobody sees the rack's links
				t.Fatal(err)
			}
			watch := &judged{DataCentre: r.dc, at: at, state: func() {
				q := recovery.Request{Domain: rackA, Trigger: "person", By: "bob", Attestation: "I stand before it and it burns"}
				if run, started, err := r.svc.Start(t.Context(), q); err != nil || started || len(run.Attested) != 1 {
					t.Errorf("%+v, %t, %v", run, started, err)
				}
			}}
			r.acts.Observer = watch
			e := r.recover(recovery.Request{}, nil)
			r.mustBeSound(e)
			if e.run.State == state.RunSuspect || e.run.Verdict == nil || len(e.run.Attested) != 1 {
				t.Errorf("%s: %s; %+v", e.run.State, e.run.Reason, e.run.Verdict)
			}
		})
	}
}

// judged calls state once, in the given look at the domain, before anybody hears what was seen.
type judged struct {
	*workflowtest.DataCentre
	at    int
	state func()
	looks int
}

func (j *judged) Judge(ctx context.Context, domain, by, attestation string, attested time.Time) (policies.Verdict, error) {
	v, err := j.DataCentre.Judge(ctx, domain, by, attestation, attested)
	if j.looks++; j.looks == j.at {
		j.state()
	}
	return v, err
}
