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

func load(t *testing.T) *topology.Topology {
	t.Helper()
	top, err := topology.LoadFS(os.DirFS("../../workflows/testdata"), "small")
	if err == nil {
		err = topology.Validate(top)
	}
	if err != nil {
		t.Fatal(err)
	}
	return top
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
	top, at, began := load(t), dir(t), time.Now()
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
					r := simulate(t, chaos.Config{Seed: seed, Topology: top, Dir: at, Trace: *trace})
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

func TestReplay(t *testing.T) {
	top, at := load(t), dir(t)
	for seed := *first; seed < *first+5; seed++ {
		a := simulate(t, chaos.Config{Seed: seed, Topology: top, Dir: at, Trace: true})
		b := simulate(t, chaos.Config{Seed: seed, Topology: top, Dir: at, Trace: true})
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
