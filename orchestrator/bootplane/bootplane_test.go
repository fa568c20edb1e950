package bootplane_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/internal/pki"
	"rerack.dev/rerack/orchestrator/bootplane"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/pxe"
	"rerack.dev/rerack/pxe/pxetest"
	"rerack.dev/rerack/workflows"
)

// workflow is the other end of the signals: it keeps what it was told, by workflow id.
type workflow struct {
	mu   sync.Mutex
	told map[string][]workflows.Milestone
	fail error
}

func (w *workflow) Reached(_ context.Context, id string, m workflows.Milestone) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	if w.told == nil {
		w.told = map[string][]workflows.Milestone{}
	}
	w.told[id] = append(w.told[id], m)
	return nil
}

func (w *workflow) kinds(id string) (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.told[id] {
		out = append(out, m.Kind)
	}
	return out
}

// clock stands still until it is moved.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func openStore(t testing.TB) store.Store {
	t.Helper()
	s, err := embedded.Open(embedded.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

type world struct {
	*bootplane.Plane
	wf    *workflow
	clock *clock
}

func newPlane(t testing.TB, s store.Store) *world {
	t.Helper()
	ca, err := pki.Open(t.TempDir())
	must(t, err)
	table, err := pxe.NewTable(make([]byte, 32))
	must(t, err)
	w := &world{wf: &workflow{}, clock: &clock{now: time.Now()}}
	w.Plane = &bootplane.Plane{Store: s, Table: table, Signals: w.wf, CA: ca, Now: w.clock.Now, Log: slog.New(slog.DiscardHandler)}
	return w
}

// follow keeps the plane's table current until the test ends.
func (w *world) follow(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

const kernel = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// record is the boot of a diskless workload on machine mI.
func record(i int, epoch uint64) state.Boot {
	name := fmt.Sprintf("m%d", i)
	return state.Boot{Name: name, Machine: name, Workload: fmt.Sprintf("w%d", i), Run: "rack-a-1", Epoch: epoch,
		Workflow: fmt.Sprintf("boot/rack-a-1/1/workload/w%d", i), MACs: []string{pxetest.MAC(i).String()},
		Address: fmt.Sprintf("10.1.0.%d/16", i), Gateway: "10.1.255.254", DNS: []string{"10.1.0.53"}, Hostname: fmt.Sprintf("w%d", i),
		Type: "kernel", Kernel: kernel, Cmdline: map[string]string{"console": "ttyS0"}, Expires: time.Now().Add(time.Hour)}
}

func put(t testing.TB, s store.Store, key string, v any) {
	t.Helper()
	b, err := state.Encode(v)
	must(t, err)
	must(t, s.Txn(t.Context(), store.Put(key, b)))
}

func putBoot(t testing.TB, s store.Store, b state.Boot) {
	t.Helper()
	put(t, s, state.BootsAt+b.Name, b)
}

func load[T any](t testing.TB, s store.Store, key string) T {
	t.Helper()
	v, _, err := state.Load[T](t.Context(), s, key)
	must(t, err)
	return v
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// The contract of the durable sink, over two planes on one store.
func TestMilestonesContract(t *testing.T) {
	s := openStore(t)
	for i := 1; i <= 9; i++ {
		b := record(i, 4)
		b.Run, b.Workflow = "r/1", "r/1"
		putBoot(t, s, b)
	}
	pxetest.TestMilestones(t, func(t *testing.T) pxe.Milestones { return newPlane(t, s) })
}

func TestMilestonesAreRecordedAndPassedOn(t *testing.T) {
	s := openStore(t)
	w := newPlane(t, s)
	b := record(1, 4)
	putBoot(t, s, b)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	say := func(k pxe.Kind, epoch uint64, boot string) error {
		return w.Reached(t.Context(), pxe.Milestone{Machine: "m1", Run: boot, Epoch: epoch, Kind: k, At: at, Nonce: "nonce", AgentURL: "https://10.1.0.1:1"})
	}
	kinds := []pxe.Kind{pxe.KindDHCP, pxe.KindBootFile, pxe.KindScript, pxe.KindKernel, pxe.KindPhoneHome, pxe.KindHealthy}
	for _, k := range kinds {
		must(t, say(k, 4, b.Workflow))
		at = at.Add(time.Second)
	}
	must(t, say(pxe.KindDHCP, 4, b.Workflow)) // again: the first time stays
	r := load[state.Result](t, s, state.ResultsAt+"rack-a-1/w1")
	for i, k := range kinds[:5] {
		if got := r.Times[k.String()]; !got.Equal(at.Add(time.Duration(i-len(kinds)) * time.Second)) {
			t.Errorf("time of %s: %v", k, got)
		}
	}
	if _, ok := r.Times["healthy"]; ok {
		t.Error("the boot plane wrote healthy: that is the workflow's, after it has checked")
	}
	if got := w.wf.kinds(b.Workflow); fmt.Sprint(got) != "[dhcp bootfile script kernel phone-home healthy dhcp]" {
		t.Errorf("signals %v", got)
	}
	for _, err := range []error{say(pxe.KindDHCP, 3, b.Workflow), say(pxe.KindDHCP, 4, "boot/rack-a-1/2/workload/w1"),
		w.Reached(t.Context(), pxe.Milestone{Machine: "m2", Run: b.Workflow, Epoch: 4, Kind: pxe.KindPhoneHome, Nonce: "n"})} {
		if !fault.Is(err, fault.Stale) {
			t.Errorf("a milestone of another boot: %v", err)
		}
	}
	w.wf.fail = fault.New(fault.Unreachable, "engine")
	if err := say(pxe.KindKernel, 4, b.Workflow); !fault.Is(err, fault.Unreachable) {
		t.Errorf("a milestone that the workflow did not hear of: %v", err)
	}
}

// What is held was given nothing to boot: a report that something has booted is not from it.
func TestHeldMachineCannotPhoneHome(t *testing.T) {
	s := openStore(t)
	w := newPlane(t, s)
	b := record(1, 4)
	b.Held = true
	putBoot(t, s, b)
	home := pxe.Milestone{Machine: "m1", Run: b.Workflow, Epoch: 4, Kind: pxe.KindPhoneHome, Nonce: "nonce"}
	if err := w.Reached(t.Context(), home); !fault.Is(err, fault.Conflict) {
		t.Fatal(err)
	}
	if got := load[state.Boot](t, s, state.BootsAt+"m1"); got.Nonce != "" || len(w.wf.kinds(b.Workflow)) != 0 {
		t.Errorf("it was taken: %+v", got)
	}
	b.Held = false
	putBoot(t, s, b)
	must(t, w.Reached(t.Context(), home))
}

func TestJoinSignsOnlyWhatBecomesAHost(t *testing.T) {
	s := openStore(t)
	w := newPlane(t, s)
	host := record(1, 4)
	host.Workload, host.Workflow = "", "boot/rack-a-1/1/host/m1"
	putBoot(t, s, host)
	putBoot(t, s, record(2, 4))
	_, csr, err := pki.NewRequest()
	must(t, err)
	chain, ca, err := w.Join(t.Context(), pxe.Join{Machine: "m1", Run: host.Workflow, Epoch: 4, CSR: csr})
	if err != nil || len(chain) == 0 || string(ca) != string(w.CA.PEM()) {
		t.Fatalf("join: %v", err)
	}
	for name, j := range map[string]pxe.Join{
		"a workload":    {Machine: "m2", Run: record(2, 4).Workflow, Epoch: 4, CSR: csr},
		"another epoch": {Machine: "m1", Run: host.Workflow, Epoch: 3, CSR: csr},
		"another boot":  {Machine: "m1", Run: "boot/rack-a-1/2/host/m1", Epoch: 4, CSR: csr},
		"no record":     {Machine: "m3", Run: host.Workflow, Epoch: 4, CSR: csr},
	} {
		if _, _, err := w.Join(t.Context(), j); !fault.Is(err, fault.Unsafe) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := w.Join(t.Context(), pxe.Join{Machine: "m1", Run: host.Workflow, Epoch: 4, CSR: []byte("rubbish")}); !fault.Is(err, fault.Invalid) {
		t.Errorf("rubbish: %v", err)
	}
}

var here = policies.Where{Machine: "m1"}

func lease(b state.Boot) state.Lease {
	return state.Lease{Workload: b.Workload, Epoch: b.Epoch, Run: b.Run, Holder: policies.Where{Machine: b.Machine, VM: b.VM}, Healthy: true}
}

// What a boot server sees is in the run's report; an image that it refuses ends the boot.
func TestNotes(t *testing.T) {
	s := openStore(t)
	w := newPlane(t, s)
	rec := record(1, 2)
	put(t, s, state.BootsAt+rec.Name, rec)
	m := pxe.Milestone{Machine: "m1", Run: bootplane.BootOf(rec), Epoch: 2, Kind: pxe.KindNote, Topic: pxe.TopicLink, Count: 1, At: w.clock.Now(), Detail: "first"}
	must(t, w.Reached(t.Context(), m))
	w.clock.advance(time.Second)
	m.Count, m.Detail, m.At = 8, "last", w.clock.Now()
	must(t, w.Reached(t.Context(), m))
	if told := w.wf.kinds(rec.Workflow); len(told) != 0 {
		t.Errorf("a note is no milestone: %v", told)
	}
	m.Kind, m.Topic, m.Detail = pxe.KindAlarm, pxe.TopicImage, "content is another"
	must(t, w.Reached(t.Context(), m))
	if told := w.wf.kinds(rec.Workflow); len(told) != 1 || told[0] != workflows.MilestoneRefused {
		t.Errorf("the workflow was told %v", told)
	}
	res, _, err := state.Load[state.Result](t.Context(), s, state.ResultsAt+"rack-a-1/w1")
	must(t, err)
	if len(res.Notes) != 2 || res.Notes[0].Text != "last" || res.Notes[0].Count != 8 || res.Notes[0].Alarm ||
		!res.Notes[0].Last.After(res.Notes[0].First) || !res.Notes[1].Alarm || res.Notes[1].Target != "m1" {
		t.Errorf("%+v", res.Notes)
	}
	m.Epoch = 1
	if err := w.Reached(t.Context(), m); !fault.Is(err, fault.Stale) {
		t.Errorf("of a boot that is over: %v", err)
	}
}
