package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rerack.dev/rerack/test/lab"
)

// evening is a lab and its server in processes of their own.
type evening struct {
	t    *testing.T
	dir  string
	api  string
	bin  string
	args []string // of the server, to start it again
}

// labUp starts the story's data centre and waits until it is seen up.
func labUp(t *testing.T, args ...string) *evening {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &evening{t: t, dir: filepath.Join(t.TempDir(), "lab"), api: l.Addr().String(), bin: binary(t)}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := e.command(ctx, "lab", "down").CombinedOutput(); err != nil {
			t.Errorf("lab down: %v\n%s", err, out)
		}
		if t.Failed() {
			for _, log := range []string{"lab.log", "server.log"} {
				if b, err := os.ReadFile(filepath.Join(e.dir, log)); err == nil {
					t.Logf("%s:\n%s", log, tail(string(b), 40))
				}
			}
		}
	})
	e.run(append([]string{"lab", "up", "--listen", e.api}, args...)...)
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", e.pid("server")))
	if err != nil {
		t.Fatal(err)
	}
	e.args = strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
	return e
}

func (e *evening) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, e.bin, args...)
	c.Env = append(os.Environ(), "RERACK_LAB_DIR="+e.dir, "RERACK_SERVER=http://"+e.api, "RERACK_TOKEN_FILE="+filepath.Join(e.dir, "data/admin.token"))
	return c
}

// run fails the test when the command does.
func (e *evening) run(args ...string) string {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 4*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	c := e.command(ctx, args...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		e.t.Fatalf("rerack %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

func (e *evening) pid(name string) int {
	e.t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, name+".pid"))
	if err != nil {
		e.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		e.t.Fatal(err)
	}
	return pid
}

// crash kills the server without warning, starts it again and returns how long it took to serve.
func (e *evening) crash() time.Duration {
	e.t.Helper()
	if err := syscall.Kill(e.pid("server"), syscall.SIGKILL); err != nil {
		e.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(e.dir, "server.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	begin := time.Now()
	c := exec.Command(e.args[0], e.args[1:]...)
	c.Path, c.Stdout, c.Stderr = e.bin, log, log
	if err := c.Start(); err != nil {
		e.t.Fatal(err)
	}
	go func() { _ = c.Wait() }()
	if err := os.WriteFile(filepath.Join(e.dir, "server.pid"), []byte(strconv.Itoa(c.Process.Pid)), 0o600); err != nil {
		e.t.Fatal(err)
	}
	for deadline := begin.Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + e.api + "/healthz")
		if err == nil {
			_ = resp.Body.Close()
			return time.Since(begin)
		}
	}
	e.t.Fatal("the server did not come back in a minute")
	return 0
}

// waitFor polls the output of a command of the product until it says what is wanted.
func (e *evening) waitFor(want string, args ...string) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	var last []byte
	for ctx.Err() == nil {
		last, _ = e.command(ctx, args...).Output() // a server that is not ready is asked again
		if strings.Contains(string(last), want) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	e.t.Fatalf("rerack %s never said %q; last:\n%s", strings.Join(args, " "), want, last)
}

type runReport struct {
	ID     string
	State  string
	Report struct {
		Recovered, Of, BareMetal, VMs, Hosts int
		TotalNs                              time.Duration
	}
}

// The server is killed ten times while a recovery goes on. It ends as if nothing had happened, and no
// machine was pressed and no switch or fabric changed more often than without the crashes.
func TestRecoverySurvivesTenKills(t *testing.T) {
	e := labUp(t)
	e.waitFor("rack/rack-a: up", "recovery", "verdict", "rack/rack-a")
	e.run("lab", "burn", "rack-a")
	e.waitFor("running", "recovery", "list")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 10 {
		// A moment by chance is what is wanted here: from right after the start to several steps later.
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
		t.Logf("serving again %s after the kill", e.crash().Round(time.Millisecond))
	}
	var r runReport
	if err := json.Unmarshal([]byte(e.run("recovery", "wait", "rack-a", "--timeout", "3m", "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	if r.State != "done" || r.Report.Recovered != 20 || r.Report.BareMetal != 8 || r.Report.VMs != 12 || r.Report.Hosts != 2 {
		t.Errorf("the run ended %+v", r)
	}
	if out := e.run("lab", "check-invariants"); !strings.Contains(out, "all invariants hold") {
		t.Error(out)
	}
	c, err := lab.Dial(filepath.Join(e.dir, "lab.sock")).Counters(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for device, n := range c {
		for verb, most := range map[string]int{"press.on": 1, "press.off": 1, "boot.set": 1} {
			if got := n[verb]; strings.HasPrefix(device, "bmc/") && int(got) > most {
				t.Errorf("%s: %d × %s, without crashes it is %d", device, got, verb, most)
			}
		}
		if strings.HasPrefix(device, "switch/") && n["commits"] > 2 || strings.HasPrefix(device, "fabric/") && n["commits"] > 2 {
			t.Errorf("%s: %d commits, without crashes it is one to fence and one to rewire", device, n["commits"])
		}
	}
}

// However many ask at once, one run recovers the domain.
func TestOneRunForAllWhoAsk(t *testing.T) {
	e := labUp(t)
	e.waitFor("rack/rack-a: up", "recovery", "verdict", "rack/rack-a")
	e.run("lab", "burn", "rack-a")
	const people = 8
	out := make(chan string, people)
	for range people {
		go func() {
			b, err := e.command(t.Context(), "recovery", "start", "rack-a", "-o", "json").CombinedOutput()
			if err != nil {
				b = append(b, err.Error()...)
			}
			out <- string(b)
		}()
	}
	started := 0
	for range people {
		var got struct {
			Run     struct{ ID string }
			Started bool
		}
		s := <-out
		if err := json.Unmarshal([]byte(s), &got); err != nil || got.Run.ID != "rack-a-1" {
			t.Errorf("asked for the recovery, got %s", s)
		}
		if got.Started {
			started++
		}
	}
	if started > 1 {
		t.Errorf("%d requests started a run", started)
	}
	e.run("recovery", "wait", "rack-a-1", "--timeout", "3m")
	if got := strings.Count(e.run("recovery", "list"), "rack-a-"); got != 1 {
		t.Errorf("%d runs are listed", got)
	}
}

// A machine that never phones home is taken out of use and its workload comes back elsewhere, or is
// named in the report with the machine that was tried.
func TestSilentTargetIsReplaced(t *testing.T) {
	e := labUp(t)
	e.waitFor("rack/rack-a: up", "recovery", "verdict", "rack/rack-a")
	e.run("lab", "fault", "machine", "b05", "no-phone-home")
	e.run("lab", "burn", "rack-a")
	out, err := e.command(t.Context(), "recovery", "wait", "rack-a", "--timeout", "4m").Output()
	if err == nil {
		t.Error("all came back although one of two arm64 machines never phones home")
	}
	for _, want := range []string{"19/20 recovered", "Tried without success", "b05: no phone-home within"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the report does not say %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
	if m := e.run("get", "machine", "b05"); !strings.Contains(m, "suspect") {
		t.Errorf("b05 is not suspect: %s", m)
	}
	e.run("lab", "check-invariants")
}
