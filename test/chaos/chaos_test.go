package chaos_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rerack.dev/rerack/orchestrator/topology"
	"rerack.dev/rerack/test/chaos"
)

var (
	seeds = flag.Uint64("chaos.seeds", 40, "how many seeds to simulate")
	first = flag.Uint64("chaos.first", 1, "the first seed")
	trace = flag.Bool("chaos.trace", false, "print the trace of every seed")
)

// config is what a seed is simulated on: the small data centre, in which somebody has to give way, or the same with
// two more spares. The policy is the one that comes without being asked for.
func config(t *testing.T, seed uint64, dir string) chaos.Config {
	t.Helper()
	paths := []string{"small"}
	if seed%2 == 0 {
		paths = append(paths, "more/plain.yaml", "more/big.yaml")
	}
	top, err := topology.LoadFS(os.DirFS("../../workflows/testdata"), paths...)
	if err == nil {
		p := top.Policies["quick"]
		p.Spec.Fencing = topology.FencingPolicy{}
		p.Spec.Evidence.SuspectDeadline = topology.Duration(2 * time.Minute)
		p.Spec.Recovery.BootDeadline = topology.Duration(5 * time.Minute)
		top.Policies["quick"] = p
		err = topology.Validate(top)
	}
	if err != nil {
		t.Fatal(err)
	}
	return chaos.Config{Seed: seed, Topology: top, Scarce: seed%2 != 0, Dir: dir, Trace: *trace}
}

func dir(t *testing.T) string {
	if d, err := os.MkdirTemp("/dev/shm", "rerack-chaos-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(d) })
		return d
	}
	return t.TempDir()
}

func simulate(t *testing.T, c chaos.Config) (r chaos.Report) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var err error
		if r, err = chaos.Run(c); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

func TestSeeds(t *testing.T) {
	at, began := dir(t), time.Now()
	var mu sync.Mutex
	next := *first
	total := chaos.Report{Fired: map[chaos.Fault]int{}}
	broken, least := 0, 1<<30
	var virtual time.Duration
	ends := map[string]int{}
	t.Run("all", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				for {
					mu.Lock()
					seed := next
					next++
					mu.Unlock()
					if seed >= *first+*seeds || t.Failed() && !*trace && broken > 20 {
						return
					}
					r := simulate(t, config(t, seed, at))
					mu.Lock()
					total.Steps += r.Steps
					least = min(least, r.Steps)
					virtual += r.Took
					for f, n := range r.Fired {
						total.Fired[f] += n
					}
					for e, n := range r.Ends {
						ends[string(e)] += n
					}
					if *trace {
						t.Logf("trace of seed %d, hash %016x\n%s", seed, r.Hash, strings.Join(r.Trace, "\n"))
					}
					if len(r.Broken) > 0 {
						broken++
						t.Errorf("seed %d, hash %016x, %d events:\n  %s", seed, r.Hash, r.Steps, strings.Join(r.Broken, "\n  "))
					}
					mu.Unlock()
				}
			})
		}
	})
	took := time.Since(began)
	var out strings.Builder
	fmt.Fprintf(&out, "%d seeds, %d events (least %d), %.0f events/s, %.0f seeds/min, virtual %s, broken %d, ends %v\n", *seeds, total.Steps, least,
		float64(total.Steps)/took.Seconds(), float64(*seeds)/took.Minutes(), virtual.Round(time.Second), broken, ends)
	for _, f := range slices.Sorted(maps.Keys(total.Fired)) {
		fmt.Fprintf(&out, "%8d  %s\n", total.Fired[f], f)
	}
	t.Log(out.String())
}

// TestReplay simulates seeds twice: the traces are the same.
func TestReplay(t *testing.T) {
	at := dir(t)
	for seed := *first; seed < *first+10; seed++ {
		c := config(t, seed, at)
		c.Trace = true
		a, b := simulate(t, c), simulate(t, c)
		if a.Hash == b.Hash {
			continue
		}
		for i := range min(len(a.Trace), len(b.Trace)) {
			if a.Trace[i] != b.Trace[i] {
				t.Errorf("seed %d differs at %d:\n%s\nfirst\n%s\nthen\n%s", seed, i, strings.Join(a.Trace[max(0, i-5):i], "\n"), a.Trace[i], b.Trace[i])
				break
			}
		}
	}
}

// TestFound simulates again what once broke a rule. Seeds tell another story when the plot changes: what is found
// gets a test where it was mended as well.
func TestFound(t *testing.T) {
	at := dir(t)
	for seed, what := range map[uint64]string{
		57:  "a victim whose BMC turned it off after it had given no answer was said to be healthy",
		476: "a workload could not be placed any more when the host of its VM was off",
	} {
		if r := simulate(t, config(t, seed, at)); len(r.Broken) > 0 {
			t.Errorf("seed %d, in which %s:\n  %s", seed, what, strings.Join(r.Broken, "\n  "))
		}
	}
}

// TestCheckerNotices makes devices that only say that they took something away: an identity in use twice and two
// writers to one volume are found.
func TestCheckerNotices(t *testing.T) {
	at := dir(t)
	found := map[string]bool{}
	for seed := uint64(1); seed <= 100 && (!found["S1"] || !found["S2"]); seed++ {
		c := config(t, seed, at)
		c.Deaf = true
		for _, b := range simulate(t, c).Broken {
			rule, _, _ := strings.Cut(b, ":")
			found[rule] = true
		}
	}
	if !found["S1"] || !found["S2"] {
		t.Errorf("fences that did not hold broke only %v in 100 seeds", slices.Sorted(maps.Keys(found)))
	}
}
