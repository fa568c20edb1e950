// Package consultest runs a real Consul server for tests, on loopback and in memory.
package consultest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// Server is a running agent that is its own cluster.
type Server struct {
	Address string // host:port of the HTTP API

	token string // that the agent and the look at it use
	cmd   *exec.Cmd
	log   lockedBuffer
	done  chan struct{} // closed when the process has ended
}

// Start runs `consul agent -dev` and returns when it takes writes and sessions; the end of the test stops
// it. The binary is the one that RERACK_CONSUL_BIN names, else the one on the PATH; test/consul/build.sh
// builds it. Without a binary the test is skipped, or fails when RERACK_REQUIRE_PEERS is 1.
func Start(t testing.TB) *Server {
	t.Helper()
	return run(t, "")
}

// StartSecured is Start with access rules that deny everything except to management, a UUID.
func StartSecured(t testing.TB, management string) *Server {
	t.Helper()
	return run(t, management)
}

func run(t testing.TB, token string) *Server {
	t.Helper()
	binary := os.Getenv("RERACK_CONSUL_BIN")
	if binary == "" {
		binary = "consul"
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		const hint = "no Consul server (build it with test/consul/build.sh, name it in RERACK_CONSUL_BIN): %v"
		if os.Getenv("RERACK_REQUIRE_PEERS") == "1" {
			t.Fatalf(hint, err)
		}
		t.Skipf(hint, err)
	}
	// Consul cannot be told to choose its ports itself, and a free one may be taken before it gets there.
	const attempts = 3
	for attempt := 1; ; attempt++ {
		s, err := start(path, token)
		if err == nil {
			t.Cleanup(s.Stop)
			return s
		}
		if attempt == attempts {
			t.Fatalf("start Consul: %v", err)
		}
		t.Logf("start Consul, attempt %d: %v", attempt, err)
	}
}

func start(path, token string) (*Server, error) {
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	s := &Server{Address: fmt.Sprintf("127.0.0.1:%d", ports[0]), token: token, done: make(chan struct{})}
	args := []string{"agent", "-dev", "-bind=127.0.0.1", "-client=127.0.0.1", "-log-level=warn", "-disable-host-node-id",
		"-node=test", "-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-serf-wan-port=-1",
		fmt.Sprintf("-http-port=%d", ports[0]), fmt.Sprintf("-server-port=%d", ports[1]), fmt.Sprintf("-serf-lan-port=%d", ports[2]),
		"-hcl=disable_update_check = true"}
	if token != "" {
		args = append(args, fmt.Sprintf(
			`-hcl=acl { enabled = true default_policy = "deny" tokens { initial_management = %q agent = %[1]q } }`, token))
	}
	s.cmd = exec.Command(path, args...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait() // the status of a process that is killed in the end says nothing
	}()
	if err := s.ready(); err != nil {
		s.Stop()
		return nil, fmt.Errorf("%w\n%s", err, s.log.String())
	}
	return s, nil
}

// Stop kills the server and waits for its end.
func (s *Server) Stop() {
	_ = s.cmd.Process.Kill() // it may have ended before
	<-s.done
}

// ready waits for a leader that has registered its own node, before which there can be no session.
func (s *Server) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		if s.registered(ctx) {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("it ended: %v", s.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("no leader within a minute")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Server) registered(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Address+"/v1/catalog/nodes", nil)
	if err != nil {
		return false
	}
	if s.token != "" {
		req.Header.Set("X-Consul-Token", s.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var nodes []struct{ Node string }
	if err := json.NewDecoder(resp.Body).Decode(&nodes); err != nil || resp.StatusCode != http.StatusOK {
		return false
	}
	return len(nodes) > 0
}

// freePorts returns n ports that are free for TCP and UDP on loopback.
func freePorts(n int) ([]int, error) {
	var ports []int
	for len(ports) < n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all are held until the last is found, so that they differ
		port := l.Addr().(*net.TCPAddr).Port
		udp, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer udp.Close()
		ports = append(ports, port)
	}
	return ports, nil
}

// lockedBuffer collects what the server says while it runs.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.TrimSpace(b.buf.String())
}
