package workflows_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"go.temporal.io/sdk/testsuite"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/test/world"
	"rerack.dev/rerack/workflows"
)

func wanted() state.CaptureRequest {
	return state.CaptureRequest{Machine: "b1", Disk: "serial:S1", Volume: "copy"}
}

// capture runs a capture from its acceptance to its end.
func capture(q state.CaptureRequest) procedure {
	return func(r *trial, tap tapFunc, before ...func(*testsuite.TestWorkflowEnvironment)) ended {
		r.Helper()
		run, _, err := r.svc.StartCapture(r.Context(), q, "ann")
		if err != nil {
			r.Fatal(err)
		}
		return r.execute(run, workflows.CaptureDisk, tap, before...)
	}
}

func capturing(t *testing.T) *trial { return newTrial(t, small(t, "capture")) }

// copied is the record of a run's capture.
func (r *trial) copied(run string) state.Capture {
	r.Helper()
	c, _, err := state.Load[state.Capture](r.Context(), r.kv, state.CapturesAt+run)
	if err != nil {
		r.Fatal(err)
	}
	return c
}

// reached lists who may reach the volume that a capture fills.
func (r *trial) reached() []string {
	m, _ := r.dc.World.MaskOf("iscsi", "iqn.2026-01.org.example:copy")
	return m.Initiators
}

// mustBeBack checks that a capture has left nothing behind but the copy.
func (r *trial) mustBeBack(e ended) {
	r.Helper()
	r.mustBeSound(e)
	if who := r.reached(); len(who) > 0 {
		r.Errorf("%s may still write the volume", who)
	}
	m := r.machines()["b1"]
	if p := r.dc.World.Power("b1"); p.Reported && m.Suspect == nil && r.powered() {
		r.Error("the machine is still on, and nobody is told")
	}
	if b, rev, err := state.Load[state.Boot](r.Context(), r.kv, state.BootsAt+"b1"); err != nil || rev != 0 {
		r.Errorf("it would boot again: %+v, %v", b, err)
	}
}

// powered reports whether rerack has turned the machine on.
func (r *trial) powered() bool {
	return slices.ContainsFunc(r.dc.Journal(), func(a workflowtest.Act) bool { return a.Device == "machine/b1" && a.State == "on" })
}

func TestCapture(t *testing.T) {
	t.Parallel()
	r := capturing(t)
	e := capture(wanted())(r, nil)
	r.mustBeBack(e)
	c := r.copied(e.run.ID)
	if e.run.State != state.RunDone || c.Stage != state.CaptureDone || c.Proven() != workflowtest.DiskChunks*c.ChunkBytes || c.SHA256 == "" {
		t.Fatalf("%s: %s; %+v", e.run.State, e.run.Reason, c)
	}
	if !strings.Contains(e.run.Reason, c.SHA256) {
		t.Errorf("the run does not tell the digest: %s", e.run.Reason)
	}
	if left, _, err := r.kv.List(t.Context(), "capture-chunks/"); err != nil || len(left) > 0 {
		t.Errorf("%d pages of digests are left, %v", len(left), err)
	}
	granted := "array/iscsi iqn.2026-01.org.example:copy@2 " + r.topo.Machines["b1"].Spec.StorageAddress.String()
	if !slices.Contains(r.journal(), granted) {
		t.Errorf("the array was told\n%s\nnot %s", strings.Join(r.journal(), "\n"), granted)
	}
}

// A machine that stops in mid-copy is booted again, and goes on behind what is proven.
func TestCaptureGoesOn(t *testing.T) {
	t.Parallel()
	r := capturing(t)
	r.dc.Break("b1", workflowtest.NeverServes)
	var at []int64
	e := capture(wanted())(r, func(_ context.Context, step string, attempt int, do func() (any, error)) (any, error) {
		if strings.HasPrefix(step, "PrepareCapture(") {
			list, err := state.List[state.Capture](context.Background(), r.kv, state.CapturesAt)
			if err != nil || len(list) != 1 {
				t.Errorf("%d captures, %v", len(list), err)
				return do()
			}
			if at = append(at, list[0].Next); len(at) == 3 {
				r.dc.Break("b1", workflowtest.Sound)
			}
		}
		return do()
	})
	r.mustBeBack(e)
	if c := r.copied(e.run.ID); e.run.State != state.RunDone || c.Attempts != 3 {
		t.Fatalf("%s: %s; %d boots", e.run.State, e.run.Reason, c.Attempts)
	}
	if !slices.Equal(at, []int64{0, 2, 4}) {
		t.Errorf("the boots began at chunks %v", at)
	}
}

func TestCaptureThatCannotBe(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		setup func(*trial, *state.CaptureRequest)
		says  string
	}{
		"bad sector":     {func(r *trial, _ *state.CaptureRequest) { r.dc.Break("b1", workflowtest.ReadsBadly) }, "read error at LBA 4711"},
		"machine is on":  {func(r *trial, _ *state.CaptureRequest) { r.press("b1") }, "it is not off"},
		"machine in use": {func(_ *trial, q *state.CaptureRequest) { q.Machine = "b3" }, "workload batch runs on it"},
		"volume in use":  {func(_ *trial, q *state.CaptureRequest) { q.Volume = "mail" }, "workload mail uses it"},
		"not iSCSI":      {func(_ *trial, q *state.CaptureRequest) { q.Volume = "db" }, "a disk is copied over iSCSI"},
		"masked to another": {func(r *trial, _ *state.CaptureRequest) {
			if err := r.dc.World.SetMask("iscsi", "iqn.2026-01.org.example:copy", world.Mask{Initiators: []string{"127.9.9.9"}}); err != nil {
				r.Fatal(err)
			}
		}, "it is masked to another: 127.9.9.9"},
		"no such image": {func(_ *trial, q *state.CaptureRequest) { q.Image = "linux" }, "0 images of type capture"},
		"no disk named": {func(_ *trial, q *state.CaptureRequest) { q.Disk = "/dev/sda" }, "name of a disk"},
		"suspect": {func(r *trial, _ *state.CaptureRequest) {
			if _, err := state.Update(r.Context(), r.kv, state.MachinesAt+"b1", func(m *state.Machine) error {
				m.Machine, m.Suspect = "b1", &state.Suspect{Reason: "smells"}
				return nil
			}); err != nil {
				r.Fatal(err)
			}
		}, "it is suspect: smells"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := capturing(t)
			q := wanted()
			tt.setup(r, &q)
			before := len(r.reached())
			e := capture(q)(r, nil)
			r.mustBeSound(e)
			if e.run.State != state.RunFailed || !strings.Contains(e.run.Reason, tt.says) {
				t.Errorf("%s: %s", e.run.State, e.run.Reason)
			}
			if name != "bad sector" && (len(r.dc.Journal()) > 0 || len(r.reached()) != before) {
				t.Errorf("something was touched: %v", r.journal())
			}
		})
	}
}

// Of a placement and a capture of one volume, the later is refused.
func TestCaptureAndPlacementExclude(t *testing.T) {
	t.Parallel()
	r := capturing(t)
	r.mustEnd(release("batch")(r, nil))
	q := wanted()
	q.Volume = "batch"
	placing, _, err := r.svc.StartWorkload(t.Context(), state.KindPlace, "batch", "ann")
	if err != nil {
		t.Fatal(err)
	}
	if e := capture(q)(r, nil); e.run.State != state.RunFailed || !strings.Contains(e.run.Reason, "workload batch is being started") {
		t.Errorf("%s: %s", e.run.State, e.run.Reason)
	}
	r.mustEnd(r.execute(placing, workflows.PlaceWorkload, nil))
	r.mustEnd(release("batch")(r, nil))
	copying, _, err := r.svc.StartCapture(t.Context(), q, "ann")
	if err != nil {
		t.Fatal(err)
	}
	if e := place("batch")(r, nil); e.run.State != state.RunFailed || !strings.Contains(e.run.Reason, "a disk is being copied into it") {
		t.Errorf("%s: %s", e.run.State, e.run.Reason)
	}
	r.mustEnd(r.execute(copying, workflows.CaptureDisk, nil))
	r.mustEnd(place("batch")(r, nil))
}

// press turns a machine on by hand.
func (r *trial) press(machine string) {
	r.Helper()
	if err := r.dc.World.Press(machine, true, "operator"); err != nil {
		r.Fatal(err)
	}
}

func TestCaptureTurnsOffWhenTold(t *testing.T) {
	t.Parallel()
	r := capturing(t)
	r.press("b1")
	q := wanted()
	q.PowerOff = true
	if e := capture(q)(r, nil); e.run.State != state.RunDone {
		t.Errorf("%s: %s", e.run.State, e.run.Reason)
	}
}

func TestOneCaptureForEachVolume(t *testing.T) {
	t.Parallel()
	r := capturing(t)
	first, started, err := r.svc.StartCapture(t.Context(), wanted(), "ann")
	if err != nil || !started {
		t.Fatal(started, err)
	}
	if same, started, err := r.svc.StartCapture(t.Context(), wanted(), "bob"); err != nil || started || same.ID != first.ID {
		t.Errorf("asked again: %v, %v, %v", same.ID, started, err)
	}
	other := wanted()
	other.Machine = "b2"
	if _, _, err := r.svc.StartCapture(t.Context(), other, "bob"); !fault.Is(err, fault.Conflict) {
		t.Errorf("another machine into the same volume: %v", err)
	}
}

// TestFailEveryStepOfACapture lets every misfortune happen to every step, and then has the disk captured.
func TestFailEveryStepOfACapture(t *testing.T) {
	t.Parallel()
	s := scene{run: capture(wanted()), setup: func(*trial) {}, topo: func(t *testing.T) *topology.Topology { return small(t, "capture") }}
	steps, journal, end := baseline(t, s)
	if len(steps) < 15 {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	for _, step := range steps {
		for _, m := range []misfortune{refused, doneFailed, replyLost, cancelled, cancelledAt, repeated} {
			t.Run(step+"/"+string(m), func(t *testing.T) {
				t.Parallel()
				r := capturing(t)
				e := r.suffer(s.run, step, m)
				r.mustBeSound(e)
				switch m {
				case doneFailed, repeated:
					if got := r.journal(); e.run.State != end || !slices.Equal(got, journal) {
						t.Errorf("%s (%s); the devices were told\n%s\nwant\n%s", e.run.State, e.run.Reason, strings.Join(got, "\n"), strings.Join(journal, "\n"))
					}
				case cancelled, cancelledAt:
					if e.run.State == state.RunFailed {
						t.Errorf("a cancelled run is %s (%s)", e.run.State, e.run.Reason)
					}
				case refused, replyLost:
				}
				r.captureAgain()
			})
		}
	}
}

// captureAgain captures the disk after a person has taken the machine into service again, and turned it off.
func (r *trial) captureAgain() {
	r.Helper()
	r.trust()
	q := wanted()
	q.PowerOff = true
	if who := r.reached(); len(who) > 0 && !slices.Equal(who, []string{r.topo.Machines["b1"].Spec.StorageAddress.String()}) {
		r.Fatalf("%s may write the volume", who)
	}
	e := capture(q)(r, nil)
	r.mustBeBack(e)
	if e.run.State != state.RunDone {
		r.Errorf("again: %s: %s", e.run.State, e.run.Reason)
	}
}
