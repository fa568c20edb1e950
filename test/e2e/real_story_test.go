package e2e

import (
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"rerack.dev/rerack/test/qemu/image"
	"rerack.dev/rerack/test/qemu/qemutest"
)

// storyLimit is for four machines that come back on two, three of them emulated inside an emulated host, on two
// processors.
const storyLimit = 8 * time.Minute

// realStory brings the small story up and waits until all of it serves and has written to its disks.
func realStory(t *testing.T) *evening {
	qemutest.QEMU(t)
	root := filepath.Dir(filepath.Dir(qemutest.Sources(t).Kernel))
	e := labUp(t, "--qemu", "--qemu-kernel", root, "--qemu-loaders", qemutest.Loaders(t), "--example", "real-story")
	t.Cleanup(func() { e.keepConsoles("a01", "a02", "a03", "a04", "b01", "b02") })
	e.untilSeen()
	for at, workload := range homes() {
		e.until(2*time.Minute, workload+" serves at home", func() bool { return e.serves(at, workload) })
	}
	for _, volume := range []string{"db1-root", "db2-root"} {
		e.until(time.Minute, "something is written to "+volume, func() bool { return e.record(volume).n > 2 })
	}
	return e
}

// homes are the workloads by where they answer.
func homes() map[string]string {
	return map[string]string{"10.3.20.11:80": "db1", "10.3.20.12:80": "db2", "10.3.10.11:80": "web1", "10.3.10.12:80": "web2"}
}

// serves asks who is at an address, before anything burned. A system on a disk of its own knows no epoch and says 0.
func (e *evening) serves(at, workload string) bool {
	return e.answers(at, workload, 0) || e.answers(at, workload, 1)
}

// record is the newest on a volume, as its bytes say.
type record struct {
	n  int
	by string // workload and Ethernet address
}

func (e *evening) record(volume string) record {
	e.t.Helper()
	n, by, err := image.LastRecord(filepath.Join(e.dir, "qemu", volume+".disk"))
	if err != nil {
		e.t.Fatal(err)
	}
	return record{n, by}
}

// found is the record that a system found on its disk when it started, as its console says.
func found(console, who string) (n int, ok bool) {
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(who) + `rerack: disk /dev/\w+: found record (\d+)`).FindStringSubmatch(console)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return n, err == nil
}

// TestTheStoryForReal burns a rack of four real machines. One spare becomes a bare machine, the other boots the
// hypervisor and runs the other three; two of the four go on with what they wrote last. Then power returns, and
// the old machines write nothing.
func TestTheStoryForReal(t *testing.T) {
	e := realStory(t)
	e.run("lab", "burn", "rack-a")
	before := map[string]record{"db1": e.record("db1-root"), "db2": e.record("db2-root")}
	v, code := e.waitFor("rack-a", storyLimit)
	if r := v.Report; code != 0 || v.State != "done" || r.Recovered != 4 || r.BareMetal != 1 || r.VMs != 3 {
		t.Fatalf("recovery wait ends with %d; run %s is %s: %s\n%+v\n%+v", code, v.ID, v.State, v.Reason, v.Report, v.Results)
	}
	for at, epoch := range map[string]uint64{"10.3.20.11:80": 0, "10.3.20.12:80": 0, "10.3.10.11:80": 2, "10.3.10.12:80": 2} {
		if !e.answers(at, homes()[at], epoch) {
			t.Errorf("%s does not answer at its address as epoch %d", homes()[at], epoch)
		}
	}
	for workload, c := range map[string]struct{ console, who string }{"db1": {e.console("b01"), ""}, "db2": {e.console("b02"), "vm db2: "}} {
		last, now := before[workload], e.record(workload+"-root")
		n, ok := found(c.console, c.who)
		// The record under way when the power went may be on the disk or not.
		if !ok || n < last.n || n > last.n+1 {
			t.Errorf("%s found record %d on its disk, %v; its last was %d", workload, n, ok, last.n)
		}
		if now.n <= n || now.by == last.by {
			t.Errorf("%s: record %d by %s is the newest; before it was %d by %s", workload, now.n, now.by, last.n, last.by)
		}
	}

	e.run("lab", "restore-power", "rack-a")
	e.until(2*time.Minute, "the old machines try to boot from their volumes", func() bool {
		return strings.Contains(e.console("a01"), noVolume) && strings.Contains(e.console("a02"), noVolume)
	})
	for _, workload := range []string{"db1", "db2"} {
		if now := e.record(workload + "-root"); now.by == before[workload].by {
			t.Errorf("%s: the old machine wrote record %d", workload, now.n)
		}
	}
	e.checkInvariants()
	figure(t, "the story for real: 4 of 4 back, burned to verdict %.1f s, verdict to the last healthy workload %.0f s",
		v.Report.Detection.Seconds(), v.Report.Restored.Seconds())
}

// noVolume is what iPXE says when it does not get its volume: here its port is shut, and the array would not show
// it either.
const noVolume = "Could not open SAN device"

// TestAFencedSystemThatRunsOn has all BMCs of the rack say off while a01 runs on and goes on writing. Its workload
// is taken over; from the moment it is fenced nothing of what it writes arrives.
func TestAFencedSystemThatRunsOn(t *testing.T) {
	e := realStory(t)
	e.run("lab", "half-burn", "rack-a", "a01")
	v, code := e.start("rack-a", "--attest", "I stand before it, it burns")
	if code != 0 || v.Report.Recovered != 4 {
		t.Fatalf("recovery wait ends with %d; run %s is %s: %s\n%+v", code, v.ID, v.State, v.Reason, v.Results)
	}
	if len(e.emulators()) != 3 { // a01, b01, b02
		t.Errorf("%d machines are on", len(e.emulators()))
	}
	n, ok := found(e.console("b01"), "")
	if !ok {
		t.Error("the new system found no record")
	}
	// Both systems write a record each second, the old one too: its command waits for a target that it cannot
	// reach any more.
	e.until(time.Minute, "the new system has written for a while", func() bool { return e.record("db1-root").n >= n+10 })
	for range 10 {
		if now := e.record("db1-root"); !strings.HasSuffix(now.by, "ac:0b:01") {
			t.Errorf("the new system found %d, and record %d by %s is the newest", n, now.n, now.by)
		}
	}
	if len(e.emulators()) != 3 {
		t.Errorf("%d machines are on, and the old one should be", len(e.emulators()))
	}
	e.checkInvariants()
}
