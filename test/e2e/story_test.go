package e2e

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/examples"
)

// What the story may take where firmware takes no time.
const (
	verdictToEnd = 20 * time.Second
	burnToEnd    = 45 * time.Second
	serving      = 3 * time.Second // from the start of a killed server
)

// slack is what a slow machine is given on top of a bound.
func slack(d time.Duration) time.Duration {
	if os.Getenv("RERACK_SLOW") != "" {
		return 2 * d
	}
	return d
}

// edited writes the story's topology with every old replaced by the new after it, and more files, into a
// directory.
func edited(t *testing.T, more map[string]string, replace ...string) string {
	t.Helper()
	dir := t.TempDir()
	used := map[string]bool{}
	err := fs.WalkDir(examples.Story, "story", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(examples.Story, path)
		if err != nil {
			return err
		}
		text := string(b)
		for i := 0; i < len(replace); i += 2 {
			used[replace[i]] = used[replace[i]] || strings.Contains(text, replace[i])
			text = strings.ReplaceAll(text, replace[i], replace[i+1])
		}
		return os.WriteFile(filepath.Join(dir, filepath.Base(path)), []byte(text), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(replace); i += 2 {
		if !used[replace[i]] {
			t.Fatalf("the story does not say %q", replace[i])
		}
	}
	for name, text := range more {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestStory recovers the story's rack, first undisturbed, and then in a second lab with the server killed
// ten times meanwhile: nothing may be done to a device that was not done the first time.
func TestStory(t *testing.T) {
	var undisturbed map[string]int
	t.Run("undisturbed", func(t *testing.T) {
		e := watched(t)
		begin := time.Now()
		e.run("lab", "burn", "rack-a")
		v, code := e.wait("rack-a")
		burn := time.Since(begin)
		if code != 0 {
			t.Errorf("recovery wait ends with %d", code)
		}
		e.checkStory(v)
		r := v.Report
		figure(t, "detection %.2f s, verdict to report %.2f s, burn to report %.2f s",
			r.Detection.Seconds(), r.Total.Seconds(), burn.Seconds())
		if r.Total > slack(verdictToEnd) || burn > slack(burnToEnd) {
			t.Errorf("verdict to report took %s, burn to report %s; allowed are %s and %s", r.Total, burn, slack(verdictToEnd), slack(burnToEnd))
		}
		undisturbed = e.acts()
		checkOnce(t, e)
	})
	if t.Failed() {
		return
	}
	t.Run("killed ten times", func(t *testing.T) {
		e := watched(t)
		e.run("lab", "burn", "rack-a")
		e.until(time.Minute, "a run", func() bool { _, ok := e.now(); return ok })
		var killed []string
		var slowest time.Duration
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		rnd := rand.New(rand.NewPCG(seed, 0))
		for _, k := range []struct {
			phase string
			most  time.Duration // about as long as the phase takes
			times int
		}{{"fence", 2500 * time.Millisecond, 2}, {"plan", 50 * time.Millisecond, 1}, {"evict", time.Second, 2},
			{"rewire", 100 * time.Millisecond, 2}, {"boot", 3 * time.Second, 3}} {
			e.untilPhase(k.phase)
			for range k.times {
				// A moment by chance is what is wanted here.
				after := time.Duration(rnd.Int64N(int64(k.most)))
				time.Sleep(after)
				in := e.phase()
				e.kill()
				took := e.restart()
				t.Logf("killed %s later in phase %s; serving again after %s", after.Round(time.Millisecond), in, took.Round(time.Millisecond))
				slowest = max(slowest, took)
				killed = append(killed, in)
			}
		}
		if slowest > slack(serving) {
			t.Errorf("serving again took up to %s", slowest)
		}
		v, code := e.wait("rack-a")
		if code != 0 {
			t.Errorf("recovery wait ends with %d", code)
		}
		e.checkStory(v)
		figure(t, "killed in %s; serving again after at most %.2f s; verdict to report %.2f s", strings.Join(killed, ", "),
			slowest.Seconds(), v.Report.Total.Seconds())
		for act, n := range e.acts() {
			if n > undisturbed[act] {
				t.Errorf("%s: %d times, and undisturbed %d times", act, n, undisturbed[act])
			}
		}
		checkOnce(t, e)
	})
}

// checkOnce fails the test when a machine was told more than once what it was to do, or a device was
// changed more often than once to fence and once to rewire.
func checkOnce(t *testing.T, e *evening) {
	t.Helper()
	for act, n := range e.acts() {
		device, verb, _ := strings.Cut(act, " ")
		most := map[string]int{"press.on": 1, "press.off": 1, "boot.set": 1, "commits": 2, "failed": 0, "aborts": 0}
		if limit, ok := most[verb]; ok && n > limit {
			t.Errorf("%s: %d × %s", device, n, verb)
		}
	}
}

// TestFirmware gives every machine twenty seconds of firmware and notes what our own software adds: a
// machine whose workload waits for another's passes the time in its firmware meanwhile.
func TestFirmware(t *testing.T) {
	t.Parallel()
	const post = 20 * time.Second
	e := watched(t, "--post", post.String())
	e.run("lab", "burn", "rack-a")
	v, _ := e.wait("rack-a")
	e.checkStory(v)
	r := v.Report
	figure(t, "firmware of %s: verdict to report %.2f s, of which firmware %.2f s and our own share %.2f s",
		post, r.Total.Seconds(), r.Hardware.Seconds(), r.Own.Seconds())
	if r.Hardware < post || r.Hardware > post+slack(verdictToEnd) {
		t.Errorf("the longest time in firmware is %s; every machine takes %s", r.Hardware, post)
	}
	if r.Own > slack(verdictToEnd) {
		t.Errorf("our own share is %s, allowed is %s", r.Own, slack(verdictToEnd))
	}
}
