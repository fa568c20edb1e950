package embedded_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"rerack.dev/rerack/orchestrator/store"
	"rerack.dev/rerack/orchestrator/store/embedded"
)

var background = context.Background()

// TestKilledProcessLosesNothing kills a writing process at random moments, RERACK_STORE_KILLS times (20 by
// default), and compares what it had reported with what the file holds.
func TestKilledProcessLosesNothing(t *testing.T) {
	kills := 20
	if s := os.Getenv("RERACK_STORE_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatalf("RERACK_STORE_KILLS: %v", err)
		}
	}
	path := filepath.Join(t.TempDir(), "store")
	var reported [counters]int
	for kill := range kills {
		cmd, words := child(t, "count", path)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The first kill comes before anything is acknowledged, while the file is made.
		victim := rand.IntN(200)
		if kill == 0 {
			victim = 0
		}
		for heard := 0; ; heard++ {
			if heard == victim {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if !words.Scan() {
				break
			}
			var c, n int
			if _, err := fmt.Sscanf(words.Text(), "%d %d", &c, &n); err != nil {
				t.Fatalf("the writer said %q", words.Text())
			}
			reported[c] = n
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("the writer ended by itself: %v", err)
		}
		verifyCounters(t, path, &reported)
	}
	if reported == [counters]int{} {
		t.Fatal("nothing was ever acknowledged")
	}
}

// verifyCounters wants each counter at the value reported last, or one further when the process died
// between the commit and the report, and equal to its shadow.
func verifyCounters(t *testing.T, path string, reported *[counters]int) {
	t.Helper()
	s, err := embedded.Open(embedded.Config{Path: path})
	if err != nil {
		t.Fatalf("Open after a kill = %v", err)
	}
	defer s.Close()
	entries, _, err := s.List(background, "")
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]int{}
	for _, e := range entries {
		values[e.Key], _ = strconv.Atoi(string(e.Value))
	}
	for c := range counters {
		key, shadow := counterKeys(c)
		got := values[key]
		if got < reported[c] || got > reported[c]+1 {
			t.Fatalf("%s = %d after a kill, %d was acknowledged", key, got, reported[c])
		}
		if values[shadow] != got {
			t.Fatalf("%s = %d and %s = %d: half a transaction", key, got, shadow, values[shadow])
		}
		reported[c] = got
	}
}

// TestPowerLossLeavesTheLastCommit builds what a disk may hold when the power fails in a commit: any part
// of its data pages with the old meta page, and then all of them with the new one.
func TestPowerLossLeavesTheLastCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "store")
	s := open(t, embedded.Config{Path: path})
	rng := rand.New(rand.NewPCG(1, 2))
	page := os.Getpagesize()
	image := func() []byte {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, 1<<20)) // the file is longer than its content
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	before, content := image(), contentOf(t, s)
	for range 25 {
		var ops []store.Op
		for range 1 + rng.IntN(20) {
			key := fmt.Sprintf("k/%d", rng.IntN(60))
			if rng.IntN(4) == 0 {
				ops = append(ops, store.Delete(key))
			} else {
				ops = append(ops, store.Put(key, bytes.Repeat([]byte{byte(rng.Int())}, rng.IntN(3000))))
			}
		}
		if err := s.Txn(background, ops...); err != nil {
			t.Fatal(err)
		}
		after := image()
		var changed []int
		for at := 2 * page; at < len(after); at += page {
			if at+page > len(before) || !bytes.Equal(before[at:at+page], after[at:at+page]) {
				changed = append(changed, at)
			}
		}
		for range 3 {
			torn := make([]byte, max(len(before), len(after)))
			copy(torn, before)
			for _, at := range changed {
				switch rng.IntN(3) {
				case 0:
					copy(torn[at:at+page], after[at:at+page])
				case 1:
					copy(torn[at:at+page/2], after[at:at+page/2])
				}
			}
			wantContent(t, filepath.Join(dir, "torn"), torn, content)
		}
		// A disk that wrote the meta page first has lied about the sync. That must not pass as sound.
		lied := make([]byte, max(len(before), len(after)))
		copy(lied, before)
		copy(lied[:2*page], after)
		if err := os.WriteFile(filepath.Join(dir, "lied"), lied, 0o600); err != nil {
			t.Fatal(err)
		}
		if opened, err := embedded.Open(embedded.Config{Path: filepath.Join(dir, "lied")}); err == nil && len(changed) > 0 {
			opened.Close()
			t.Fatal("a commit of which only the meta page was written was opened as if it were sound")
		}
		before, content = after, contentOf(t, s)
		wantContent(t, filepath.Join(dir, "torn"), after, content)
	}
}

func wantContent(t *testing.T, path string, image []byte, want map[string]string) {
	t.Helper()
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := embedded.Open(embedded.Config{Path: path})
	if err != nil {
		t.Fatalf("Open = %v", err)
	}
	defer s.Close()
	got := contentOf(t, s)
	if len(got) != len(want) {
		t.Fatalf("%d entries, want %d", len(got), len(want))
	}
	for k, v := range want {
		if got[k] != v {
			t.Fatalf("%s has another value than was committed", k)
		}
	}
}

// contentOf maps each key to its value and revision.
func contentOf(t *testing.T, s *embedded.Store) map[string]string {
	t.Helper()
	entries, _, err := s.List(background, "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		out[e.Key] = fmt.Sprint(e.Revision, ":", string(e.Value))
	}
	return out
}
