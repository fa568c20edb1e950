package hypervisor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/hypervisor"
	"rerack.dev/rerack/hypervisor/agent"
	"rerack.dev/rerack/hypervisor/driver"
	"rerack.dev/rerack/hypervisor/hypersim"
	"rerack.dev/rerack/hypervisor/hypervisortest"
	"rerack.dev/rerack/internal/fault"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConfig(t *testing.T) {
	s := hypervisortest.NewSim(t)
	for key, c := range map[string]hypervisor.Config{
		"machine":       {},
		"readTimeout":   {Machine: "b01", ReadTimeout: -1},
		"changeTimeout": {Machine: "b01", ChangeTimeout: -1},
	} {
		if _, err := hypervisor.New(s.Host, c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// acts are all that can be asked for VM db1, defined as s.
func acts(h *hypervisor.Host, s driver.Spec) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"define":   func(ctx context.Context) error { return h.Define(ctx, s) },
		"start":    func(ctx context.Context) error { return h.Start(ctx, s.Name, s.Epoch) },
		"stop":     func(ctx context.Context) error { return h.Stop(ctx, s.Name, s.Epoch) },
		"undefine": func(ctx context.Context) error { return h.Undefine(ctx, s.Name, s.Epoch) },
		"list":     func(ctx context.Context) error { _, err := h.VMs(ctx); return err },
	}
}

// TestLies asks hosts that do not say what is true. No act may count as done on such words.
func TestLies(t *testing.T) {
	type state int
	const (
		absent state = iota
		defined
		running
	)
	for _, c := range []struct {
		lie  hypersim.Lie
		idle bool
		from state
		act  string
		want fault.Kind
	}{
		{lie: hypersim.AllOff, from: defined, act: "start", want: fault.Unverified},
		{lie: hypersim.AllOn, from: running, act: "stop", want: fault.Unverified},
		{lie: hypersim.AllOn, from: defined, act: "undefine", want: fault.Conflict},
		{lie: hypersim.Nothing, from: absent, act: "define", want: fault.Unverified},
		{lie: hypersim.Nothing, from: defined, act: "start", want: fault.NotFound},
		{lie: hypersim.OtherSpec, from: absent, act: "define", want: fault.Unverified},
		{lie: hypersim.OtherSpec, from: defined, act: "define", want: fault.Unverified},
		{lie: hypersim.OtherEpoch, from: absent, act: "define", want: fault.Stale},
		{lie: hypersim.OtherEpoch, from: running, act: "stop", want: fault.Stale},
		{lie: hypersim.Twice, from: defined, act: "define", want: fault.Internal},
		{lie: hypersim.Twice, from: defined, act: "start", want: fault.Internal},
		{lie: hypersim.Twice, from: running, act: "stop", want: fault.Internal},
		{lie: hypersim.Twice, from: defined, act: "undefine", want: fault.Internal},
		{lie: hypersim.Twice, from: defined, act: "list", want: fault.Internal},
		{lie: hypersim.OtherUUID, from: running, act: "stop", want: fault.Internal},
		{lie: hypersim.OtherUUID, from: absent, act: "define", want: fault.Internal},
		{lie: hypersim.NoState, from: running, act: "list", want: fault.Internal},
		{lie: hypersim.NoState, from: running, act: "stop", want: fault.Internal},
		{idle: true, from: absent, act: "define", want: fault.Unverified},
		{idle: true, from: defined, act: "start", want: fault.Unverified},
		{idle: true, from: running, act: "stop", want: fault.Unverified},
		{idle: true, from: defined, act: "undefine", want: fault.Unverified},
	} {
		t.Run(fmt.Sprintf("%s %s idle %t", c.act, c.lie, c.idle), func(t *testing.T) {
			s := hypervisortest.NewSim(t)
			spec := hypervisortest.Spec("db1", 1, 5)
			if c.from >= defined {
				must(t, s.Define(t.Context(), spec))
			}
			if c.from >= running {
				must(t, s.Start(t.Context(), "db1", 5))
			}
			s.SetFaults(func(f *hypersim.Faults) { f.Lie, f.Idle = c.lie, c.idle })
			h := over(t, s.Host, hypervisor.Config{})
			err := acts(h, spec)[c.act](t.Context())
			if !fault.Is(err, c.want) || !strings.Contains(err.Error(), "host b01") {
				t.Fatalf("%v, want kind %s", err, c.want)
			}
			if c.want == fault.NotFound || c.lie == hypersim.OtherEpoch {
				return
			}
			s.SetFaults(func(f *hypersim.Faults) { *f = hypersim.Faults{} })
			if err := acts(h, spec)[c.act](t.Context()); err != nil {
				t.Fatalf("when it says the truth again: %v", err)
			}
		})
	}
}

// TestALaxHost asks a host that does whatever it is told.
func TestALaxHost(t *testing.T) {
	s := hypervisortest.NewSim(t)
	ctx := t.Context()
	spec := hypervisortest.Spec
	s.Foreign(spec("theirs", 9, 0), true)
	must(t, s.Define(ctx, spec("on", 1, 5)))
	must(t, s.Start(ctx, "on", 5))
	must(t, s.Define(ctx, spec("off", 2, 5)))
	s.SetFaults(func(f *hypersim.Faults) { f.Lax = true })
	h := over(t, s.Host, hypervisor.Config{})
	like := func(name string, other byte) driver.Spec {
		v := spec(name, other, 6)
		v.UUID = spec("", 7, 0).UUID
		return v
	}
	before, counted := fmt.Sprint(s.VMs(ctx)), s.Counters().Changes
	for what, c := range map[string]struct {
		err  error
		want fault.Kind
	}{
		"define a stale one":             {h.Define(ctx, spec("off", 2, 4)), fault.Stale},
		"start a stale one":              {h.Start(ctx, "off", 4), fault.Stale},
		"stop a stale one":               {h.Stop(ctx, "on", 4), fault.Stale},
		"undefine a stale one":           {h.Undefine(ctx, "off", 4), fault.Stale},
		"define theirs":                  {h.Define(ctx, spec("theirs", 9, 6)), fault.Unsafe},
		"start theirs":                   {h.Start(ctx, "theirs", 6), fault.Unsafe},
		"stop theirs":                    {h.Stop(ctx, "theirs", 6), fault.Unsafe},
		"undefine theirs":                {h.Undefine(ctx, "theirs", 6), fault.Unsafe},
		"redefine a running one":         {h.Define(ctx, spec("on", 1, 6)), fault.Conflict},
		"undefine a running one":         {h.Undefine(ctx, "on", 5), fault.Conflict},
		"start what was defined earlier": {h.Start(ctx, "off", 6), fault.Conflict},
		"define one with their UUID":     {h.Define(ctx, spec("new", 9, 6)), fault.Conflict},
		"define one with our MAC":        {h.Define(ctx, like("new", 1)), fault.Conflict},
	} {
		if !fault.Is(c.err, c.want) {
			t.Errorf("%s: %v, want kind %s", what, c.err, c.want)
		}
	}
	if after := fmt.Sprint(s.VMs(ctx)); after != before || s.Counters().Changes != counted {
		t.Errorf("before %s\nafter  %s", before, after)
	}
	must(t, s.Define(ctx, like("twin", 2))) // somebody else's doing: it has the MAC of off
	if err := h.Start(ctx, "off", 5); !fault.Is(err, fault.Conflict) {
		t.Errorf("start a twin: %v", err)
	}
}

func TestDrainIsReadBack(t *testing.T) {
	s := hypervisortest.NewSim(t)
	h := over(t, s.Host, hypervisor.Config{})
	s.SetFaults(func(f *hypersim.Faults) { f.Idle = true })
	if err := h.Drain(t.Context()); !fault.Is(err, fault.Unverified) {
		t.Errorf("a host that does not drain: %v", err)
	}
	s.SetFaults(func(f *hypersim.Faults) { f.Idle = false })
	must(t, h.Drain(t.Context()))
}

// TestAListThatFailsIsNotEmpty breaks every read and write behind each act: whichever it is, the act has
// not succeeded, and nobody is told that there are no VMs.
func TestAListThatFailsIsNotEmpty(t *testing.T) {
	for act, setup := range map[string]func(*hypervisortest.Sim) error{
		"define": func(*hypervisortest.Sim) error { return nil },
		"start":  func(s *hypervisortest.Sim) error { return s.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)) },
		"stop": func(s *hypervisortest.Sim) error {
			if err := s.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)); err != nil {
				return err
			}
			return s.Start(t.Context(), "db1", 5)
		},
		"undefine": func(s *hypervisortest.Sim) error { return s.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)) },
	} {
		for at := 1; at <= 3; at++ {
			s := hypervisortest.NewSim(t)
			must(t, setup(s))
			s.SetFaults(func(f *hypersim.Faults) { f.FailAt = &hypersim.FailPoint{N: at, How: hypersim.Refused} })
			h := over(t, s.Host, hypervisor.Config{})
			if err := acts(h, hypervisortest.Spec("db1", 1, 5))[act](t.Context()); !fault.Is(err, fault.Busy) {
				t.Errorf("%s, call %d refused: %v", act, at, err)
			}
		}
	}
	s := hypervisortest.NewSim(t)
	must(t, s.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)))
	s.SetFaults(func(f *hypersim.Faults) { f.Refuse = 1 })
	h := over(t, s.Host, hypervisor.Config{})
	if vms, err := h.VMs(t.Context()); vms != nil || !fault.Is(err, fault.Busy) {
		t.Errorf("%v, %v", vms, err)
	}
	if vms, err := h.VMs(t.Context()); len(vms) != 1 || err != nil {
		t.Errorf("%v, %v", vms, err)
	}
}

func TestDeadlines(t *testing.T) {
	s := hypervisortest.NewSim(t)
	must(t, s.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)))
	s.SetFaults(func(f *hypersim.Faults) { f.Hang = true })
	hasty := over(t, s.Host, hypervisor.Config{ReadTimeout: 20 * time.Millisecond, ChangeTimeout: 20 * time.Millisecond})
	for what, act := range acts(hasty, hypervisortest.Spec("db1", 1, 5)) {
		if err := act(t.Context()); !fault.Is(err, fault.Timeout) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := hasty.Capacity(t.Context()); !fault.Is(err, fault.Timeout) {
		t.Errorf("capacity: %v", err)
	}
	if err := hasty.Drain(t.Context()); !fault.Is(err, fault.Timeout) {
		t.Errorf("drain: %v", err)
	}

	patient := over(t, s.Host, hypervisor.Config{ChangeTimeout: time.Minute})
	calls := s.Counters().Calls
	done := make(chan error, 1)
	go func() { done <- patient.Start(t.Context(), "db1", 5) }()
	for s.Counters().Calls == calls {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := patient.Stop(ctx, "db1", 5); !fault.Is(err, fault.Busy) {
		t.Errorf("a change behind one that hangs: %v", err)
	}
	s.SetFaults(func(f *hypersim.Faults) { f.Hang = false })
	must(t, <-done)
	must(t, patient.Stop(t.Context(), "db1", 5))
}

// TestSenselessAnswers are such that the protocol lets pass and no host can mean.
func TestSenselessAnswers(t *testing.T) {
	s := hypervisortest.NewSim(t)
	c := s.Serve(t)
	vm := func(change func(*driver.VM)) driver.VM {
		spec := hypervisortest.Spec("db1", 1, 5)
		v := driver.VM{Name: spec.Name, UUID: spec.UUID, State: driver.StateRunning, Epoch: 5, Spec: spec}
		change(&v)
		return v
	}
	var answer any
	c.URL = s.Impostor(t, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(answer) })
	drv, err := agent.Dial(c)
	must(t, err)
	h := over(t, drv, hypervisor.Config{})
	defer func() { must(t, h.Close()) }()
	for what, v := range map[string]any{
		"nothing named":   []any{nil},
		"no name":         []driver.VM{vm(func(v *driver.VM) { v.Name = "" })},
		"another name":    []driver.VM{vm(func(v *driver.VM) { v.Name = "db2" })},
		"no definition":   []driver.VM{vm(func(v *driver.VM) { v.Spec = driver.Spec{} })},
		"no UUID":         []driver.VM{vm(func(v *driver.VM) { v.UUID = "" })},
		"a later epoch":   []driver.VM{vm(func(v *driver.VM) { v.Spec.Epoch = 6 })},
		"a state unknown": []driver.VM{vm(func(v *driver.VM) { v.State = "off" })},
		"no state":        []driver.VM{vm(func(v *driver.VM) { v.State = "" })},
		"a bad VLAN":      []driver.VM{vm(func(v *driver.VM) { v.Spec.NICs[0].VLAN = 5000 })},
		"twins":           []driver.VM{vm(func(*driver.VM) {}), vm(func(v *driver.VM) { v.Epoch, v.State = 0, driver.StateDefined })},
		"very many":       make([]driver.VM, 10_001),
	} {
		answer = v
		if vms, err := h.VMs(t.Context()); !fault.Is(err, fault.Internal) || vms != nil {
			t.Errorf("%s: %v, %v", what, vms, err)
		}
	}
	for _, room := range []driver.Capacity{
		{},
		{CPUs: -8, MemoryMiB: 1024},
		{CPUs: 8, MemoryMiB: -1},
		{CPUs: 8, MemoryMiB: 1024, FreeCPUs: 9},
		{CPUs: 8, MemoryMiB: 1024, FreeMemory: 1025},
		{CPUs: 8, MemoryMiB: 1024, FreeCPUs: -1},
		{CPUs: 8, MemoryMiB: 1024, FreeMemory: -1},
		{CPUs: 1 << 30, MemoryMiB: 1024},
		{CPUs: 8, MemoryMiB: 1 << 50},
	} {
		answer = room
		if got, err := h.Capacity(t.Context()); !fault.Is(err, fault.Internal) || got != (driver.Capacity{}) {
			t.Errorf("%+v: %+v, %v", room, got, err)
		}
	}
	answer = []driver.VM{vm(func(*driver.VM) {}), vm(func(v *driver.VM) { v.Name, v.Epoch, v.Spec, v.UUID = "Their VM!", 0, driver.Spec{}, "" })}
	if vms, err := h.VMs(t.Context()); err != nil || len(vms) != 2 {
		t.Errorf("a list with a foreign VM: %v, %v", vms, err)
	}
	answer = driver.Capacity{CPUs: 8, MemoryMiB: 1024, FreeCPUs: 8}
	if _, err := h.Capacity(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNothingIsAskedForNonsense(t *testing.T) {
	s := hypervisortest.NewSim(t)
	h := over(t, s.Host, hypervisor.Config{})
	spec := hypervisortest.Spec("db1", 1, 5)
	spec.Disks = []driver.Disk{{Volume: "root"}}
	for what, err := range map[string]error{
		"define":             h.Define(t.Context(), spec),
		"start a path":       h.Start(t.Context(), "../db1", 5),
		"stop nobody":        h.Stop(t.Context(), "", 5),
		"stop in no epoch":   h.Stop(t.Context(), "db1", 0),
		"undefine with case": h.Undefine(t.Context(), "DB1", 5),
	} {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := s.Counters().Calls; n != 0 {
		t.Errorf("%d calls were made", n)
	}
}

func TestWhatIsSoIsNotWritten(t *testing.T) {
	s := hypervisortest.NewSim(t)
	h := over(t, s.Host, hypervisor.Config{})
	spec := hypervisortest.Spec("db1", 1, 5)
	must(t, h.Define(t.Context(), spec))
	must(t, h.Start(t.Context(), "db1", 5))
	before := s.Counters()
	must(t, h.Define(t.Context(), spec))
	must(t, h.Start(t.Context(), "db1", 5))
	if after := s.Counters(); after.Calls != before.Calls+2 || after.Changes != before.Changes {
		t.Errorf("%+v, then %+v: want one read each", before, after)
	}
}

func TestChangesAreLogged(t *testing.T) {
	s := hypervisortest.NewSim(t)
	var out bytes.Buffer
	h := over(t, s.Host, hypervisor.Config{Logger: slog.New(slog.NewTextHandler(&out, nil))})
	must(t, h.Define(t.Context(), hypervisortest.Spec("db1", 1, 5)))
	if err := h.Stop(t.Context(), "db1", 4); !fault.Is(err, fault.Stale) {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], `level=INFO`) || !strings.Contains(lines[0], `host=b01 act="define VM db1"`) ||
		!strings.Contains(lines[1], `level=WARN`) || !strings.Contains(lines[1], `act="stop VM db1"`) || !strings.Contains(lines[1], "epoch 4") {
		t.Errorf("%s", out.String())
	}
}
