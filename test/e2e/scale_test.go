package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/orchestrator/state"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/gen"
)

// Goals of the scale runs.
const (
	memoryGoal  = 4096 // MiB, of lab and server together at 2,000 machines
	restartGoal = 3 * time.Second
)

// BenchmarkRackOfTwoThousand measures the memory and processor time of watching 2,000 machines, and then burns a
// rack of 40.
func BenchmarkRackOfTwoThousand(b *testing.B) {
	const machines, rack = 2000, 40
	domain := "rack/" + gen.Rack(0)
	begin := time.Now()
	e := labUp(b, "--machines", fmt.Sprint(machines))
	measured(b, time.Since(begin).Seconds(), "up-s")
	e.untilPolled(machines, domain)
	e.measureIdle(b, 30*time.Second)
	e.measureAPI(b)
	e.measureRecovery(b, domain, rack)
	e.measureRestarts(b, machines)
}

// BenchmarkFeedOfTwoThousand burns a power feed of ten racks, a fifth of the data centre: their 320 workloads are
// more than the spares elsewhere, so that hosts are booted for some and repurposable workloads give way.
func BenchmarkFeedOfTwoThousand(b *testing.B) {
	const machines, workloads = 2000, 320
	domain := "powerfeed/" + gen.Feed(1)
	e := labUp(b, "--machines", fmt.Sprint(machines))
	e.untilPolled(machines, "rack/"+gen.Rack(0)) // the feed's spares are off: it is never seen wholly up
	e.measureRecovery(b, domain, workloads)
}

// measureRecovery burns a domain, with the policy's default times, which are those of a real data centre, and lets
// the server find and recover it.
func (e *evening) measureRecovery(b *testing.B, domain string, workloads int) {
	server, data := e.used("server"), e.used("lab")
	burned := time.Now()
	e.run("lab", "burn", domain)
	e.until(4*time.Minute, "a run on "+domain, func() bool { _, ok := e.now(); return ok })
	v, _ := e.wait(domain)
	measured(b, v.Requested.Sub(burned).Seconds(), "burn-to-verdict-s")
	for _, p := range v.Phases {
		measured(b, p.End.Sub(p.Start).Seconds(), strings.ReplaceAll(p.Name, " ", "-")+"-s")
	}
	measured(b, v.Report.Total.Seconds(), "verdict-to-end-s")
	measured(b, lastHealthy(v).Sub(v.Phases[0].End).Seconds(), "verdict-to-all-healthy-s")
	measured(b, float64(v.Report.Recovered), "recovered")
	measured(b, float64(v.Report.VMs), "as-VMs")
	measured(b, (e.used("server").cpu - server.cpu).Seconds(), "server-cpu-s")
	measured(b, (e.used("lab").cpu - data.cpu).Seconds(), "lab-cpu-s")
	if v.State != state.RunDone || v.Report.Recovered != workloads || v.Report.Of != workloads || v.Verdict.State != policies.VerdictBurned {
		b.Errorf("run %s is %s: %s\n%+v", v.ID, v.State, v.Reason, v.Report)
	}
	e.checkInvariants()
	e.checkLog(b)
}

// measured reports a figure, also of a benchmark that misses its goal.
func measured(b *testing.B, value float64, unit string) {
	b.Helper()
	b.Logf("%.2f %s", value, unit)
	b.ReportMetric(value, unit)
}

// untilPolled waits until the power of every machine has been read and the domain is seen up.
func (e *evening) untilPolled(machines int, domain string) {
	e.t.Helper()
	e.until(2*time.Minute, domain+" is seen up, and the power of every machine is read", func() bool {
		var v policies.Verdict
		var list []api.MachineView
		if e.get("/domains/"+domain+"/verdict", &v) != nil || e.get("/machines", &list) != nil {
			return false
		}
		unread := slices.ContainsFunc(list, func(m api.MachineView) bool { return m.PowerAt.IsZero() })
		return v.State == policies.VerdictUp && len(list) == machines && !unread
	})
}

// measureIdle reports what watching costs while nothing happens.
func (e *evening) measureIdle(b *testing.B, over time.Duration) {
	before := map[string]usage{"server": e.used("server"), "lab": e.used("lab")}
	time.Sleep(over) // what is measured is this stretch of time
	total := 0.0
	for name, was := range before {
		now := e.used(name)
		measured(b, now.mib, name+"-MiB")
		measured(b, 100*(now.cpu-was.cpu).Seconds()/now.at.Sub(was.at).Seconds(), name+"-idle-cpu-%")
		total += now.mib
	}
	if total > memoryGoal {
		b.Errorf("lab and server take %.0f MiB, the goal is %d", total, memoryGoal)
	}
}

// measureAPI reports the median times of what people and programs read most.
func (e *evening) measureAPI(b *testing.B) {
	for name, path := range map[string]string{"topology": "/topology", "machines": "/machines", "workloads": "/workloads"} {
		var took []time.Duration
		for range 9 {
			var into any
			begin := time.Now()
			if err := e.get(path, &into); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		measured(b, float64(took[len(took)/2].Microseconds())/1000, "get-"+name+"-ms")
	}
}

// measureRestarts kills the server some times and reports how long it then takes to serve: the worst time until
// its health check is good, and until a program with its token has read the whole topology.
func (e *evening) measureRestarts(b *testing.B, machines int) {
	var healthy, serving time.Duration
	for range 5 {
		e.kill()
		begin := time.Now()
		healthy = max(healthy, e.restart())
		var t struct{ YAML string }
		if err := e.get("/topology", &t); err != nil {
			b.Fatal(err)
		}
		serving = max(serving, time.Since(begin))
		if n := strings.Count(t.YAML, "kind: Machine\n"); n != machines {
			b.Errorf("after a restart the topology has %d machines, not %d", n, machines)
		}
	}
	measured(b, healthy.Seconds(), "kill-to-healthy-s")
	measured(b, serving.Seconds(), "kill-to-topology-s")
	if serving > restartGoal {
		b.Errorf("%s from kill -9 to serving, the goal is %s", serving, restartGoal)
	}
}

// usage is what a process has used.
type usage struct {
	at  time.Time
	cpu time.Duration
	mib float64 // resident now
}

// ticks a second in /proc/PID/stat: USER_HZ, which is 100 on every architecture that Go runs on.
const ticks = 100

var resident = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

func (e *evening) used(name string) usage {
	e.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", e.pid(name))
	stat, err := os.ReadFile(proc + "stat")
	if err != nil {
		e.t.Fatal(err)
	}
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		e.t.Fatal(err)
	}
	u := usage{at: time.Now()}
	_, after, _ := strings.Cut(string(stat), ") ") // the name before it may hold anything
	fields := strings.Fields(after)
	for _, f := range fields[11:13] { // utime and stime, proc(5)
		n, err := strconv.Atoi(f)
		if err != nil {
			e.t.Fatal(err)
		}
		u.cpu += time.Duration(n) * time.Second / ticks
	}
	if m := resident.FindSubmatch(status); m != nil {
		kib, _ := strconv.Atoi(string(m[1])) // only digits
		u.mib = float64(kib) / 1024
	}
	return u
}

// lastHealthy is when the last workload of a run was back.
func lastHealthy(v api.RunView) (at time.Time) {
	for _, r := range v.Results {
		if h := r.Times["healthy"]; h.After(at) {
			at = h
		}
	}
	return at
}

// harmless is what the workflow engine reports as errors and are none: its first moments, before it has its shards,
// and a caller that did not wait for an answer, as when an activity ends while its heartbeat is under way.
var harmless = regexp.MustCompile(`msg="engine: .*(shard status unknown|error="context (canceled|deadline exceeded)")`)

// checkLog fails the benchmark when the server has reported an error.
func (e *evening) checkLog(b *testing.B) {
	b.Helper()
	log, err := os.ReadFile(filepath.Join(e.dir, "server.log"))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if harmless.MatchString(line) {
			continue
		}
		if !strings.HasPrefix(line, "time=") || strings.Contains(line, "level=ERROR") || strings.Contains(line, "panic") {
			b.Errorf("server.log: %s", line)
		}
	}
}
