package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/sdk/client"

	bmc "rerack.dev/rerack/bmc/driver"
	"rerack.dev/rerack/orchestrator/recovery"
	"rerack.dev/rerack/orchestrator/revision"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/workflowtest"
	"rerack.dev/rerack/test/world"
	"rerack.dev/rerack/workflows"
	"rerack.dev/rerack/workflows/engine"
)

// plant is the small data centre with a control plane on the embedded engine, in real time.
type plant struct {
	*testing.T
	dc     *workflowtest.DataCentre
	svc    *recovery.Service
	client client.Client // for histories
}

// newPlant builds one; change, which may be nil, alters the activities before they are used.
func newPlant(t *testing.T, change func(*workflows.Activities)) *plant {
	t.Helper()
	top, err := topology.LoadFS(os.DirFS("../testdata"), "small", "more/plain.yaml", "more/capture.yaml")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e, err := engine.Start(ctx, engine.Config{Path: filepath.Join(t.TempDir(), "engine.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Stop() })
	quiet := slog.New(slog.DiscardHandler)
	c, err := workflows.Connect(ctx, e.Address(), engine.Namespace, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	p := &plant{T: t}
	if p.client, err = client.DialContext(ctx, client.Options{HostPort: e.Address(), Namespace: engine.Namespace}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.client.Close)
	kv, err := embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = kv.Close() })
	if p.dc, err = workflowtest.New(ctx, workflowtest.Config{Topology: top, Store: kv, Signals: c}); err != nil {
		t.Fatal(err)
	}
	if _, err := recovery.Adopt(ctx, kv, top, p.dc.Now()); err != nil {
		t.Fatal(err)
	}
	revs := &revision.Log{Store: kv, Now: p.dc.Now}
	if _, _, err := revs.Apply(ctx, top, "ann", "", -1); err != nil {
		t.Fatal(err)
	}
	acts := &workflows.Activities{Store: p.dc.Store(), Topology: revs.Topology, Revisions: revs, Devices: p.dc, Observer: p.dc, Probe: p.dc, Now: p.dc.Now, Log: quiet}
	p.svc = &recovery.Service{Store: kv, Topology: acts.Topology, Engine: c, Judge: p.dc.Judge, PowerOf: p.dc.PowerOf, Now: p.dc.Now, Log: quiet}
	if change != nil {
		change(acts)
	}
	working, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.Work(working, acts); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	return p
}

// finish waits for the end of a run that was accepted.
func (p *plant) finish(r state.Run, err error) state.Run {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.Context(), 2*time.Minute)
	defer cancel()
	_ = p.client.GetWorkflow(ctx, workflows.RecoveryID(r.ID), "").Get(ctx, nil) // the record says how it ended
	if ctx.Err() != nil {
		p.Fatalf("run %s does not end", r.ID)
	}
	if r, err = p.svc.Get(p.Context(), r.ID); err != nil {
		p.Fatal(err)
	}
	for _, v := range p.dc.World.Check() {
		p.Errorf("%s broken: %s: %s", v.Rule, v.Subject, v.Detail)
	}
	return r
}

func (p *plant) recover() state.Run {
	p.Helper()
	r, _, err := p.svc.Start(p.Context(), recovery.Request{Domain: "rack/rack-a", Trigger: "person", By: "ann"})
	return p.finish(r, err)
}

// The procedures on the real engine. With RERACK_RECORD_HISTORIES their histories are kept there, to be
// replayed against every later version of the workflows.
func TestProcedures(t *testing.T) {
	t.Run("recovery", func(t *testing.T) {
		t.Parallel()
		p := newPlant(t, nil)
		p.burn()
		if r := p.recover(); r.State != state.RunDone {
			t.Fatalf("%s: %s", r.State, r.Reason)
		}
		p.keep("recovery", "recovery/rack-a-1")
		p.keep("boot-workload", "boot/rack-a-1/1/workload/db")
		p.keep("boot-host", "boot/rack-a-1/1/host/b2")
		p.keep("boot-vm", "boot/rack-a-1/1/workload/mail")
		p.keep("boot-held", "boot/rack-a-1/1/workload/erp")
	})
	t.Run("second round", func(t *testing.T) {
		t.Parallel()
		p := newPlant(t, nil)
		p.burn()
		p.dc.Break("b1", workflowtest.ReportsFailure)
		if r := p.recover(); r.State != state.RunDone {
			t.Fatalf("%s: %s", r.State, r.Reason)
		}
		p.keep("recovery-second-round", "recovery/rack-a-1")
		p.keep("boot-failed", "boot/rack-a-1/1/workload/db")
		p.keep("boot-given-back", "boot/rack-a-1/1/workload/erp")
	})
	t.Run("place and release", func(t *testing.T) {
		t.Parallel()
		p := newPlant(t, nil)
		r, _, err := p.svc.StartWorkload(t.Context(), state.KindRelease, "batch", "ann")
		if r = p.finish(r, err); r.State != state.RunDone || p.dc.World.Power("b3").On {
			t.Fatalf("%s: %s", r.State, r.Reason)
		}
		p.keep("release", workflows.RecoveryID(r.ID))
		r, _, err = p.svc.StartWorkload(t.Context(), state.KindPlace, "batch", "ann")
		if r = p.finish(r, err); r.State != state.RunDone || len(p.dc.Holders("batch")) != 1 {
			t.Fatalf("%s: %s", r.State, r.Reason)
		}
		p.keep("place", workflows.RecoveryID(r.ID))
	})
	t.Run("approved", func(t *testing.T) {
		t.Parallel()
		p := newPlant(t, func(a *workflows.Activities) {
			book := a.Topology().Runbooks["rack-a-burns"]
			book.Spec.Approvals = 2
			a.Topology().Runbooks["rack-a-burns"] = book
		})
		p.burn()
		r, _, err := p.svc.Start(t.Context(), recovery.Request{Domain: "rack/rack-a", Trigger: "person", By: "ann"})
		if err != nil {
			t.Fatal(err)
		}
		for _, by := range []string{"bob", "bob", "cid"} {
			for p.svc.Approve(t.Context(), r.ID, by) != nil { // until it waits for people
				time.Sleep(10 * time.Millisecond)
			}
		}
		if r = p.finish(r, nil); r.State != state.RunDone || len(r.Approvals) != 2 {
			t.Fatalf("%s: %s, %+v", r.State, r.Reason, r.Approvals)
		}
		p.keep("recovery-approved", workflows.RecoveryID(r.ID))
	})
	t.Run("suspect", func(t *testing.T) {
		t.Parallel()
		p := newPlant(t, nil)
		if err := p.dc.World.SetManagement("rack/rack-a", false); err != nil {
			t.Fatal(err)
		}
		if r := p.recover(); r.State != state.RunSuspect {
			t.Fatalf("%s: %s", r.State, r.Reason)
		}
		p.keep("recovery-suspect", "recovery/rack-a-1")
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		testCancelled(t)
	})
	t.Run("cancelled while fencing", func(t *testing.T) {
		t.Parallel()
		testCancelledWhileFencing(t)
	})
}

// A run that is cancelled behind a power fence that nobody waits for is closed only when that has ended: who
// unfences the machine afterwards does not see it turned off by the run.
func testCancelledWhileFencing(t *testing.T) {
	pressing, booting, cancelled, seen := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
	p := newPlant(t, func(a *workflows.Activities) {
		fencing := &slowPower{Devices: a.Devices, machine: "a1", begun: pressing, until: seen}
		a.Devices = &slowPower{Devices: fencing, machine: "b1", begun: booting, until: cancelled}
	})
	defer p.dc.World.Watch(p.itsOwn)()
	p.burn()
	r, _, err := p.svc.Start(t.Context(), recovery.Request{Domain: "rack/rack-a", Trigger: "person", By: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	<-pressing
	<-booting
	if err := p.svc.Cancel(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	p.await("boot/rack-a-1/1/workload/db", enums.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
	close(cancelled)
	p.await("boot/rack-a-1/1/workload/db", enums.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED)
	for until := time.Now().Add(time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if now, err := p.svc.Get(t.Context(), r.ID); err != nil || now.State.Ended() {
			t.Errorf("the run is %s while a1 is being turned off, %v", now.State, err)
			break
		}
	}
	close(seen)
	if r = p.finish(r, nil); r.State != state.RunCancelled {
		t.Errorf("%s: %s", r.State, r.Reason)
	}
	p.keep("recovery-cancelled-while-fencing", workflows.RecoveryID(r.ID))
}

// A run that is cancelled while a machine is being powered on stops it only after that has ended:
// nothing stays on that nobody knows of.
func testCancelled(t *testing.T) {
	pressing, cancelled := make(chan struct{}), make(chan struct{})
	p := newPlant(t, func(a *workflows.Activities) {
		a.Devices = &slowPower{Devices: a.Devices, machine: "b1", begun: pressing, until: cancelled}
	})
	defer p.dc.World.Watch(p.itsOwn)()
	p.burn()
	r, _, err := p.svc.Start(t.Context(), recovery.Request{Domain: "rack/rack-a", Trigger: "person", By: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	<-pressing
	if err := p.svc.Cancel(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	p.await(workflows.RecoveryID(r.ID), enums.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
	p.await("boot/rack-a-1/1/workload/db", enums.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
	close(cancelled)
	if r = p.finish(r, nil); r.State != state.RunCancelled {
		t.Errorf("%s: %s", r.State, r.Reason)
	}
	if p.dc.World.Power("b1").On {
		t.Error("b1 was left on")
	}
	p.keep("recovery-cancelled", workflows.RecoveryID(r.ID))
	p.keep("boot-cancelled", "boot/rack-a-1/1/workload/db")
}

// itsOwn tells the checker of safety rules that the run may stop what it has started on b1.
func (p *plant) itsOwn(e world.Event) {
	if e.Kind == world.EventRun && e.Name == "b1" {
		if err := p.dc.World.Attest("b1"); err != nil {
			p.Error(err)
		}
	}
}

// slowPower holds the power-on of one machine up, or the power-off of one that is fenced, deaf to its context like a BMC that was told already.
type slowPower struct {
	workflows.Devices
	machine      string
	begun, until chan struct{}
	once         sync.Once
}

func (s *slowPower) Machine(ctx context.Context, m topology.Machine) (workflows.MachineControl, error) {
	c, err := s.Devices.Machine(ctx, m)
	if err != nil || m.Meta.Name != s.machine {
		return c, err
	}
	return &slowControl{c, s}, nil
}

type slowControl struct {
	workflows.MachineControl
	s *slowPower
}

func (c *slowControl) Off(ctx context.Context, readings int, gap time.Duration) ([]bmc.Reading, error) {
	if strings.HasPrefix(c.s.machine, "a") { // one that is fenced
		c.s.once.Do(func() { close(c.s.begun) })
		<-c.s.until
	}
	return c.MachineControl.Off(ctx, readings, gap)
}

func (c *slowControl) On(ctx context.Context, boot bmc.BootOverride, resend time.Duration) error {
	close(c.s.begun)
	<-c.s.until
	return c.MachineControl.On(context.WithoutCancel(ctx), boot, resend)
}

func (p *plant) burn() {
	p.Helper()
	if err := p.dc.World.Burn("rack/rack-a"); err != nil {
		p.Fatal(err)
	}
}

func (p *plant) history(workflow string, wait bool) func() (*history.HistoryEvent, error) {
	it := p.client.GetWorkflowHistory(p.Context(), workflow, "", wait, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	return func() (*history.HistoryEvent, error) {
		if !it.HasNext() {
			return nil, nil
		}
		return it.Next()
	}
}

// await waits until a workflow's history has an event.
func (p *plant) await(workflow string, kind enums.EventType) {
	p.Helper()
	next := p.history(workflow, true)
	for {
		e, err := next()
		if err != nil || e == nil {
			p.Fatalf("%s ended without %s: %v", workflow, kind, err)
		}
		if e.EventType == kind {
			return
		}
	}
}

// keep writes the history of a workflow where RERACK_RECORD_HISTORIES says, without what is this
// machine's own.
func (p *plant) keep(name, workflow string) {
	p.Helper()
	var h history.History
	next := p.history(workflow, false)
	for {
		e, err := next()
		if err != nil {
			p.Fatal(err)
		}
		if e == nil {
			break
		}
		h.Events = append(h.Events, e)
	}
	if len(h.Events) < 5 {
		p.Fatalf("%s has %d events", workflow, len(h.Events))
	}
	dir := os.Getenv("RERACK_RECORD_HISTORIES")
	if dir == "" {
		return
	}
	b, err := temporalproto.CustomJSONMarshalOptions{}.Marshal(&h)
	if err == nil {
		b, err = anonymous(b)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".json"), b, 0o644)
	}
	if err != nil {
		p.Fatal(err)
	}
}

// anonymous takes the names of processes and machines out of a history.
func anonymous(b []byte) ([]byte, error) {
	var v struct {
		Events []any `json:"events"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	scrub(v.Events)
	// One event a line: small, and a diff can be read.
	var lines []string
	for _, e := range v.Events {
		line, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		lines = append(lines, string(line))
	}
	return []byte("{\"events\":[\n" + strings.Join(lines, ",\n") + "\n]}\n"), nil
}

func scrub(v any) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			scrub(x)
		}
	case map[string]any:
		for k, x := range v {
			switch s := fmt.Sprint(x); {
			case slices.Contains([]string{"identity", "workerInstanceKey", "stackTrace"}, k):
				v[k] = ""
			case k == "name" && strings.Contains(s, ":") && v["kind"] != nil:
				v[k] = "sticky"
			case slices.Contains([]string{"binaryChecksum", "buildId", "workerVersion", "header"}, k):
				delete(v, k)
			default:
				scrub(x)
			}
		}
	}
}
