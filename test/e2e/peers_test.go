package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"rerack.dev/rerack/workflows/engine"
)

// peer is a server of somebody else's, which can be killed and started again.
type peer struct {
	t       *testing.T
	address string
	command func() *exec.Cmd
	ready   func() bool
	running *exec.Cmd
}

func (p *peer) start() {
	p.t.Helper()
	c := p.command()
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.running = c
	(&evening{t: p.t}).until(time.Minute, c.Path+" answers", p.ready)
}

// kill ends it without warning.
func (p *peer) kill() {
	if p.running != nil {
		_ = p.running.Process.Kill()
		_ = p.running.Wait()
		p.running = nil
	}
}

// consulServer is a Consul that keeps its state on disk.
func consulServer(t *testing.T) *peer {
	t.Helper()
	name := os.Getenv("RERACK_CONSUL_BIN")
	if name == "" {
		name = "consul"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	ports := freePorts(t, 3)
	port := func() string {
		_, p, err := net.SplitHostPort(<-ports)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	api, rpc, serf, dir := port(), port(), port(), t.TempDir()
	p := &peer{t: t, address: "127.0.0.1:" + api}
	p.command = func() *exec.Cmd {
		return exec.Command(path, "agent", "-server", "-bootstrap-expect=1", "-data-dir="+dir, "-bind=127.0.0.1", "-client=127.0.0.1",
			"-log-level=error", "-hcl=performance { raft_multiplier = 1 }", "-disable-host-node-id", "-node=e2e", "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1",
			"-serf-wan-port=-1", "-http-port="+api, "-server-port="+rpc, "-serf-lan-port="+serf)
	}
	p.ready = func() bool {
		resp, err := http.Get("http://" + p.address + "/v1/status/leader")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return err == nil && strings.Contains(string(b), ":")
	}
	t.Cleanup(p.kill)
	p.start()
	return p
}

// engineEnv makes the test binary a Temporal server of its own, with its database at the path it holds.
const engineEnv = "RERACK_E2E_ENGINE"

// serveEngine says where it listens and serves until its standard input ends.
func serveEngine(path string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := engine.Start(ctx, engine.Config{Path: path})
	if err != nil {
		return fail(err)
	}
	fmt.Println(e.Address())
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := e.Stop(); err != nil {
		return fail(err)
	}
	return 0
}

// temporalServer is a Temporal server in a process of its own. It chooses other ports at every start: a relay
// gives it one address.
func temporalServer(t *testing.T) *peer {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var target atomic.Pointer[string]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go relay(l, &target)
	path := filepath.Join(t.TempDir(), "temporal.db")
	p := &peer{t: t, address: l.Addr().String()}
	p.command = func() *exec.Cmd {
		c := exec.Command(self)
		c.Env = append(os.Environ(), engineEnv+"="+path)
		if _, err := c.StdinPipe(); err != nil { // held open for as long as the process shall run
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		target.Store(nil)
		go func() {
			line, err := bufio.NewReader(out).ReadString('\n')
			if line = strings.TrimSpace(line); err == nil {
				target.Store(&line)
			}
		}()
		return c
	}
	p.ready = func() bool { return target.Load() != nil }
	t.Cleanup(p.kill)
	return p
}

func relay(l net.Listener, target *atomic.Pointer[string]) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			to := target.Load()
			if to == nil {
				return
			}
			out, err := net.Dial("tcp", *to)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				_, _ = io.Copy(out, in)
				_ = out.Close()
			}()
			_, _ = io.Copy(in, out)
		}()
	}
}

// The state is in a Consul of its own. The server is killed while a recovery goes on, and so is Consul: what was
// accepted comes to the same end.
func TestConsul(t *testing.T) {
	t.Parallel()
	consul := consulServer(t)
	e := labUp(t)
	e.serveWith("--store", "consul://"+consul.address+"/dc1/rerack")
	e.run("lab", "burn", "rack-a")
	e.untilPhase("fence")
	e.kill()
	e.restart()
	e.untilPhase("boot")
	consul.kill()
	consul.start()
	v, code := e.wait("rack-a")
	if code != 0 {
		t.Errorf("recovery wait ends with %d", code)
	}
	e.checkStory(v)
	if _, err := os.Stat(filepath.Join(e.dir, "data", "state.db")); err == nil {
		t.Error("there is an embedded store as well")
	}
}

// The workflows run on a Temporal server of its own. Without it the server says so and ends; when it is killed
// while a recovery goes on, the recovery goes on once it is back.
func TestTemporal(t *testing.T) {
	t.Parallel()
	temporal := temporalServer(t)
	e := labUp(t)
	_, errs, code := e.try("server", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--boot-http", "127.0.0.1:0", "--temporal", temporal.address)
	if code != 7 || !strings.Contains(errs, "workflow engine "+temporal.address) || !strings.Contains(errs, "check --temporal") {
		t.Errorf("without a Temporal server it ends with %d: %s", code, errs)
	}
	temporal.start()
	_, errs, code = e.try("server", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--boot-http", "127.0.0.1:0", "--temporal", temporal.address,
		"--temporal-namespace", "elsewhere")
	if code == 0 || !strings.Contains(errs, "elsewhere") {
		t.Errorf("without its namespace it ends with %d: %s", code, errs)
	}
	e.serveWith("--temporal", temporal.address)
	e.run("lab", "burn", "rack-a")
	e.untilPhase("fence")
	temporal.kill()
	temporal.start()
	e.untilPhase("boot")
	temporal.kill()
	temporal.start()
	v, code := e.wait("rack-a")
	if code != 0 {
		t.Errorf("recovery wait ends with %d", code)
	}
	e.checkStory(v)
	if _, err := os.Stat(filepath.Join(e.dir, "data", "engine.db")); err == nil {
		t.Error("there is an embedded engine as well")
	}
}
