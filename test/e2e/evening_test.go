package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"rerack.dev/rerack/orchestrator/api"
	"rerack.dev/rerack/policies"
	"rerack.dev/rerack/test/lab"
)

// evening is a lab and its server in processes of their own, and an operator in front of them.
type evening struct {
	t       testing.TB
	dir     string
	address string // of the API
	bin     string
	world   *lab.Control
	server  []string // its command line, to start it again
}

// labUp starts a data centre, by default the story's, with args of rerack lab up.
func labUp(t testing.TB, args ...string) *evening {
	t.Helper()
	e := &evening{t: t, dir: filepath.Join(t.TempDir(), "lab"), address: freePort(t), bin: binary(t)}
	e.world = lab.Dial(filepath.Join(e.dir, "lab.sock"))
	t.Cleanup(e.down)
	e.run(append([]string{"lab", "up", "--listen", e.address}, args...)...)
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", e.pid("server")))
	if err != nil {
		t.Fatal(err)
	}
	e.server = strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
	return e
}

// watched is labUp, and then waits until the server has seen all of the story's data centre up.
func watched(t testing.TB, args ...string) *evening {
	t.Helper()
	e := labUp(t, args...)
	e.untilSeen()
	return e
}

// untilSeen waits until the server has seen all of the story's data centre up.
func (e *evening) untilSeen() {
	e.t.Helper()
	e.until(time.Minute, "rack-a is seen up, and the power of every machine is read", func() bool {
		var v policies.Verdict
		var machines []api.MachineView
		if e.get("/domains/rack/rack-a/verdict", &v) != nil || e.get("/machines", &machines) != nil {
			return false
		}
		for _, m := range machines {
			if m.PowerAt.IsZero() {
				return false
			}
		}
		return v.State == policies.VerdictUp && len(machines) > 0
	})
}

// freePort finds a port that is free, and that is not given to a socket which asks for any: labs open thousands of
// those.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(10000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

// down ends both processes, whatever state they are in.
func (e *evening) down() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if out, err := e.command(ctx, "lab", "down").CombinedOutput(); err != nil {
		e.t.Errorf("lab down: %v\n%s", err, out)
	}
	keepLogs(e.t, e.dir)
}

// command is a command of an operator who has set the environment up for this lab.
func (e *evening) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, e.bin, args...)
	c.Env = append(os.Environ(), "RERACK_LAB_DIR="+e.dir, "RERACK_SERVER=http://"+e.address, "RERACK_TOKEN_FILE="+e.token())
	return c
}

func (e *evening) token() string { return filepath.Join(e.dir, "data", "admin.token") }

// try runs a command and returns what it printed and its exit code.
func (e *evening) try(args ...string) (stdout, stderr string, code int) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 10*time.Minute)
	defer cancel()
	var out, errs bytes.Buffer
	c := e.command(ctx, args...)
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		e.t.Fatalf("rerack %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// run fails the test when the command does.
func (e *evening) run(args ...string) string {
	e.t.Helper()
	out, errs, code := e.try(args...)
	if code != 0 {
		e.t.Fatalf("rerack %s ends with %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// get reads from the API.
func (e *evening) get(path string, into any) error {
	return e.call(http.MethodGet, path, nil, into)
}

func (e *evening) call(method, path string, in, out any) error {
	token, err := os.ReadFile(e.token())
	if err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(e.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+e.address+"/api/v1"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	}
	return json.Unmarshal(b, out)
}

// until polls for something that happens in another process.
func (e *evening) until(limit time.Duration, what string, ok func() bool) {
	e.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			e.t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// wait follows the newest run on a domain to its end and returns its report, and the code that
// rerack recovery wait ends with.
func (e *evening) wait(domain string) (api.RunView, int) {
	e.t.Helper()
	return e.waitFor(domain, 3*time.Minute)
}

func (e *evening) waitFor(domain string, limit time.Duration) (api.RunView, int) {
	e.t.Helper()
	return e.ended("recovery", "wait", domain, "--timeout", limit.String(), "-o", "json")
}

// start starts a run and follows it to its end, as wait does.
func (e *evening) start(domain string, args ...string) (api.RunView, int) {
	e.t.Helper()
	return e.ended(append([]string{"recovery", "start", domain, "--wait", "-o", "json"}, args...)...)
}

func (e *evening) ended(args ...string) (api.RunView, int) {
	e.t.Helper()
	out, errs, code := e.try(args...)
	var v api.RunView
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		e.t.Fatalf("recovery wait ends with %d: %v\n%s%s", code, err, out, errs)
	}
	if e.t.Failed() {
		e.t.Log(errs)
	}
	return v, code
}

// now is the newest run, if there is one; a server that does not answer has none.
func (e *evening) now() (api.RunView, bool) {
	var list []struct{ ID string }
	var v api.RunView
	if e.get("/recoveries", &list) != nil || len(list) == 0 {
		return v, false
	}
	return v, e.get("/recoveries/"+list[0].ID, &v) == nil
}

// untilPhase waits until the newest run has begun a phase.
func (e *evening) untilPhase(name string) {
	e.t.Helper()
	e.until(time.Minute, "phase "+name, func() bool {
		v, ok := e.now()
		for _, p := range v.Phases {
			if ok && p.Name == name {
				return true
			}
		}
		return ok && v.State.Ended()
	})
}

// phase is the one that the newest run is in.
func (e *evening) phase() string {
	v, ok := e.now()
	if !ok || len(v.Phases) == 0 {
		return "none"
	}
	last := v.Phases[len(v.Phases)-1]
	if !last.End.IsZero() {
		return "none after " + last.Name
	}
	return last.Name
}

// checkStory fails the test unless a run brought all of the story back, as the story tells it.
func (e *evening) checkStory(v api.RunView) {
	e.t.Helper()
	if r := v.Report; v.State != "done" || r.Recovered != 20 || r.Of != 20 || r.BareMetal != 8 || r.VMs != 12 || r.Hosts != 2 {
		e.t.Errorf("run %s is %s: %s\n%+v", v.ID, v.State, v.Reason, r)
	}
	vms := map[string]int{}
	for _, r := range v.Results {
		if r.Where.VM {
			vms[r.Where.Machine]++
		}
	}
	for host, n := range vms {
		if n != 6 {
			e.t.Errorf("host %s got %d virtual machines, not 6", host, n)
		}
	}
	e.checkInvariants()
}

func (e *evening) checkInvariants() {
	e.t.Helper()
	if out, errs, code := e.try("lab", "check-invariants"); code != 0 || !strings.Contains(out, "all invariants hold") {
		e.t.Errorf("check-invariants ends with %d\n%s%s", code, out, errs)
	}
}

// acts are what was done to devices, by "device verb": all that changes something, and nothing that
// only looks.
func (e *evening) acts() map[string]int {
	e.t.Helper()
	c, err := e.world.Counters(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	changing := map[string][]string{"bmc": {"press.on", "press.off", "boot.set"}, "machine": {"press-on", "press-off", "boots"},
		"switch": {"commits", "failed"}, "fabric": {"commits", "aborts"}, "array": {"change", "writes"}}
	acts := map[string]int{}
	for device, counts := range c {
		kind, _, _ := strings.Cut(device, "/")
		for _, verb := range changing[kind] {
			if n := counts[verb]; n > 0 {
				acts[device+" "+verb] = n
			}
		}
	}
	return acts
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

// kill ends the server without warning.
func (e *evening) kill() {
	e.t.Helper()
	pid := e.pid("server")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		e.t.Fatal(err)
	}
	// The first thread may be a zombie already while others hold the process's sockets.
	e.until(10*time.Second, "the killed server is gone", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, state, _ := strings.Cut(string(b), ") ")
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		return err != nil || strings.HasPrefix(state, "Z") && len(threads) <= 1
	})
}

// serveWith starts the server anew with more flags, as one that knows nothing yet, and applies the lab's topology.
func (e *evening) serveWith(flags ...string) {
	e.t.Helper()
	e.kill()
	for _, name := range []string{"state.db", "engine.db", "engine.db-wal", "engine.db-shm"} {
		if err := os.RemoveAll(filepath.Join(e.dir, "data", name)); err != nil {
			e.t.Fatal(err)
		}
	}
	e.server = append(e.server, flags...)
	e.restart()
	e.run("apply", filepath.Join(e.dir, "topology"))
	e.untilSeen()
}

// restart starts the server again and returns how long it took to serve.
func (e *evening) restart() time.Duration {
	e.t.Helper()
	log, err := os.OpenFile(filepath.Join(e.dir, "server.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	begin := time.Now()
	c := exec.Command(e.bin, e.server[1:]...)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		e.t.Fatal(err)
	}
	go func() { _ = c.Wait() }()
	if err := os.WriteFile(filepath.Join(e.dir, "server.pid"), []byte(strconv.Itoa(c.Process.Pid)), 0o600); err != nil {
		e.t.Fatal(err)
	}
	e.until(time.Minute, "the server serves again", func() bool {
		resp, err := http.Get("http://" + e.address + "/healthz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusNoContent
	})
	return time.Since(begin)
}
