package e2e

import (
	"maps"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/api"
)

// Too little is left: what matters most comes back, and the report says of every other why it does not.
func TestTooLittleLeft(t *testing.T) {
	t.Parallel()
	e := watched(t, "--example", "story-scarce")
	e.run("lab", "burn", "rack-a")
	v, code := e.wait("rack-a")
	if code != 3 || v.State != "partial" || v.Report.Recovered == 0 || v.Report.Recovered >= v.Report.Of || v.Report.Of != 20 {
		t.Errorf("the run ends %s (exit code %d): %+v", v.State, code, v.Report)
	}
	back, down := 1000, 0
	for _, r := range v.Results {
		switch {
		case r.Host:
		case r.State == "healthy":
			back = min(back, r.Priority)
		case r.State != "left-out" || r.Constraint == "" || r.Reason == "":
			t.Errorf("%s stays down (%s) and the report does not say why: %q %q", r.Name, r.State, r.Constraint, r.Reason)
		default:
			down = max(down, r.Priority)
		}
	}
	t.Logf("%d of 20 came back; the least of them has priority %d, the most important one left out %d", v.Report.Recovered, back, down)
	if out := e.run("recovery", "show", v.ID); strings.Count(out, "left-out") != 20-v.Report.Recovered {
		t.Errorf("the printed report does not show all that stay down:\n%s", out)
	}
	e.checkInvariants()
}

// Only the management network to the rack is cut. Its machines run on, so nothing may be taken over,
// whoever asks: the run ends suspect, says what is missing, and not one device was written to.
func TestPartition(t *testing.T) {
	t.Parallel()
	e := watched(t, edited(t, nil, "suspectDeadline: 60s", "suspectDeadline: 15s"))
	before := e.acts()
	e.run("lab", "cut-management", "rack-a")
	out, errs, code := e.try("recovery", "start", "rack-a", "--wait")
	if code != 4 {
		t.Errorf("recovery start --wait ends with %d", code)
	}
	for _, want := range []string{": suspect", "Verdict: suspect", "missing: ", "2 independent kinds are needed"} {
		if !strings.Contains(out, want) {
			t.Errorf("the report does not say %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s%s", out, errs)
	}
	e.checkUntouched(before)
}

// checkUntouched fails the test when a device was changed since, or a workload does not serve at home.
func (e *evening) checkUntouched(before map[string]int) {
	e.t.Helper()
	if after := e.acts(); !maps.Equal(before, after) {
		e.t.Errorf("devices were changed: %v became %v", before, after)
	}
	var list []api.WorkloadView
	if err := e.get("/workloads", &list); err != nil {
		e.t.Fatal(err)
	}
	for _, w := range list {
		if w.State != "running" || w.Epoch != 1 {
			e.t.Errorf("workload %s is %s with epoch %d", w.Name, w.State, w.Epoch)
		}
	}
	s, err := e.world.Status(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	if len(list) != 24 || s.Serving != len(list) {
		e.t.Errorf("%d workloads are declared and %d serve", len(list), s.Serving)
	}
	e.checkInvariants()
}

// All BMCs of the rack answer off, and two of its machines run on. By itself that is no fire. When a
// person attests one, everything comes back elsewhere, and what runs on is cut off before that.
func TestHalfAlive(t *testing.T) {
	t.Parallel()
	e := watched(t, edited(t, nil, "suspectDeadline: 60s", "suspectDeadline: 15s"))
	e.run("lab", "half-burn", "rack-a", "a03", "a11")
	e.until(time.Minute, "the eighteen others are off", func() bool {
		s, err := e.world.Status(t.Context())
		return err == nil && s.Serving == 24-18
	})
	before := e.acts()
	out, _, code := e.try("recovery", "start", "rack-a", "--wait")
	if code != 4 || !strings.Contains(out, "sign") {
		t.Errorf("without an attestation it ends with %d\n%s", code, out)
	}
	if after := e.acts(); !maps.Equal(before, after) {
		t.Errorf("devices were changed: %v became %v", before, after)
	}
	_, errs, code := e.try("recovery", "start", "rack-a", "--attest", "I stand before it, it burns", "--wait")
	if code != 0 {
		t.Errorf("with an attestation it ends with %d\n%s", code, errs)
	}
	v, _ := e.wait("rack-a")
	e.checkStory(v)
	if v.Attestation == "" || v.Verdict == nil || len(v.Verdict.Against) == 0 {
		t.Errorf("the attestation, or the signs of life in spite of it, are not in the report: %+v", v.Verdict)
	}
}

// Power returns while the workloads of the rack are being recovered, and its machines start their old
// systems by themselves. They stay cut off, are listed, and write nothing.
func TestPowerReturns(t *testing.T) {
	for _, phase := range []string{"fence", "boot"} {
		t.Run(phase, func(t *testing.T) {
			t.Parallel()
			e := watched(t)
			e.run("lab", "burn", "rack-a")
			e.untilPhase(phase)
			burned := e.written("epoch-1")
			e.run("lab", "restore-power", "rack-a")
			v, code := e.wait("rack-a")
			if code != 0 {
				t.Errorf("recovery wait ends with %d", code)
			}
			e.checkStory(v)
			ended, since := e.written("epoch-1"), e.written("epoch-2")
			if phase != "fence" && ended != burned { // while they are being fenced, some are not yet
				t.Errorf("%d writes by systems that were cut off before they started", ended-burned)
			}
			e.checkZombies()
			e.until(time.Minute, "the new systems write", func() bool { return e.written("epoch-2") > since+100 })
			if now := e.written("epoch-1"); now != ended {
				t.Errorf("%d writes by systems that are cut off", now-ended)
			}
			e.checkInvariants()
		})
	}
}

// written is how often volumes were written to under an epoch: 1 is that of the systems which ran when
// the lab was started.
func (e *evening) written(epoch string) (writes int) {
	e.t.Helper()
	c, err := e.world.Counters(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	for device, n := range c {
		// The print servers are not of rack-a and write on.
		if strings.HasPrefix(device, "volume/") && !strings.HasPrefix(device, "volume/print") {
			writes += n[epoch]
		}
	}
	return writes
}

// checkZombies fails the test unless all machines of rack-a are on, and people are told so.
func (e *evening) checkZombies() {
	e.t.Helper()
	e.until(time.Minute, "all machines of rack-a are listed as powered on although fenced", func() bool {
		var list []api.MachineView
		zombies := 0
		if err := e.get("/machines", &list); err != nil {
			e.t.Fatal(err)
		}
		for _, m := range list {
			if m.Zombie && m.Rack == "rack-a" && m.Fenced != "" {
				zombies++
			}
		}
		return zombies == 20
	})
	if out := e.run("get", "machines"); strings.Count(out, "POWERED ON ALTHOUGH FENCED") != 20 {
		e.t.Errorf("the operator is not told of all:\n%s", out)
	}
}
