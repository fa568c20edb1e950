package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/test/lab"
)

// stack is a lab and a server for it, each a process of its own, under one directory: so that either
// can be killed without the other.
type stack struct {
	dir   string
	ports stackPorts
	real  bool // some of the lab's machines are
}

// stackPorts are the addresses of a stack on loopback.
type stackPorts struct{ api, bootHTTP, tftp, dhcp string }

func newStack(dir string) (*stack, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return &stack{dir: abs}, nil
}

func (s *stack) path(name string) string { return filepath.Join(s.dir, name) }

func (s *stack) control() *lab.Control { return lab.Dial(s.path("lab.sock")) }

// Ports of a stack's server lie below those that a system gives to sockets which ask for any (from 32768 on
// Linux, 49152 by RFC 6335): a lab opens thousands of these before the server starts and while it is away.
const (
	lowPort  = 20000
	highPort = 32768
	tries    = 1000
)

// freePorts finds free loopback ports for the server. They are held together so that none is given twice.
func freePorts() (stackPorts, error) {
	var p stackPorts
	for _, out := range []*string{&p.api, &p.bootHTTP, &p.tftp, &p.dhcp} {
		held, err := freePort(out == &p.tftp || out == &p.dhcp, out)
		if err != nil {
			return p, err
		}
		defer held.Close()
	}
	return p, nil
}

// freePort holds a free port, so that nobody else is given it, and writes its address down.
func freePort(udp bool, address *string) (held io.Closer, err error) {
	for range tries {
		*address = fmt.Sprintf("127.0.0.1:%d", lowPort+rand.IntN(highPort-lowPort))
		if udp {
			held, err = net.ListenPacket("udp4", *address)
		} else {
			held, err = net.Listen("tcp", *address)
		}
		if err == nil {
			return held, nil
		}
	}
	return nil, &fault.Error{Kind: fault.Busy, What: "find a free port on 127.0.0.1", Err: err}
}

// listenOn puts the API at an address that must be free; port 0 leaves the choice as it is.
func (s *stack) listenOn(address string) error {
	if strings.HasSuffix(address, ":0") {
		return nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return &fault.Error{Kind: fault.Invalid, What: "listen for the API", Err: err,
			Next: "end what listens there, or choose another --listen; 127.0.0.1:0 takes any free port"}
	}
	s.ports.api = address
	return l.Close()
}

// start runs this binary again with args in the background, its output in a log file, and writes its
// process id down.
func (s *stack) start(name string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return &fault.Error{Kind: fault.Internal, What: "log of " + name, Err: err}
	}
	defer log.Close()
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return &fault.Error{Kind: fault.Internal, What: "start " + name, Err: err}
	}
	// The child outlives this process in lab up; while this one lives it must not become a zombie.
	go func() { _ = cmd.Wait() }()
	return os.WriteFile(s.path(name+".pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
}

func (s *stack) pid(name string) (int, bool) {
	b, err := os.ReadFile(s.path(name + ".pid"))
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid, err == nil && pid > 1
}

// alive says whether the process written down still runs. Where the system shows command lines, a process
// of somebody else that was given the same number since is told from it.
func (s *stack) alive(name string) bool {
	pid, ok := s.pid(name)
	if !ok || syscall.Kill(pid, 0) != nil {
		return false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return errors.Is(err, fs.ErrNotExist) || strings.Contains(string(line), s.dir)
}

// stop ends a part and waits until it is gone; one that is not running is success.
func (s *stack) stop(ctx context.Context, name string, sig syscall.Signal) error {
	pid, ok := s.pid(name)
	if !ok {
		return nil
	}
	if !s.alive(name) {
		return os.Remove(s.path(name + ".pid"))
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return &fault.Error{Kind: fault.Internal, What: "stop " + name, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := until(ctx, func() bool { return !s.alive(name) }); err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		return &fault.Error{Kind: fault.Timeout, What: name + " did not end in time and was killed", Evidence: fmt.Sprintf("process %d", pid)}
	}
	return os.Remove(s.path(name + ".pid"))
}

// until polls a condition of another process, which nothing here can be told of.
func until(ctx context.Context, ok func() bool) error {
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// idle refuses a stack that runs.
func (s *stack) idle() error {
	for _, name := range []string{"lab", "server"} {
		if s.alive(name) {
			return &fault.Error{Kind: fault.Conflict, Where: s.dir, What: "the " + name + " is running already", Next: "rerack lab down"}
		}
	}
	return nil
}

// up starts both parts and waits until they answer.
func (s *stack) up(ctx context.Context, labArgs []string) error {
	if err := s.idle(); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return &fault.Error{Kind: fault.Invalid, What: "lab directory", Err: err}
	}
	args := append([]string{"lab", "run", "--dir", s.dir, "--dhcp-server", s.ports.dhcp, "--tftp-server", s.ports.tftp, "--boot-server", s.ports.bootHTTP}, labArgs...)
	if err := s.start("lab", args...); err != nil {
		return err
	}
	if err := s.ready(ctx, "lab", func() bool {
		_, err := s.control().Status(ctx)
		return err == nil
	}); err != nil {
		return err
	}
	return s.startServer(ctx)
}

// startServer starts the control plane for the lab and waits until it serves.
func (s *stack) startServer(ctx context.Context) error {
	args := []string{"server", "--data-dir", s.path("data"), "--listen", s.ports.api, "--boot-http", s.ports.bootHTTP,
		"--tftp", s.ports.tftp, "--dhcp-relay-listen", s.ports.dhcp, "--dhcp-relay-from", lab.RelayPrefix.String(),
		"--secrets", s.path("secrets.json"), "--images", s.path("images"), "--loaders", s.path("loaders"), "--agent-hosts", "127.0.0.0/8", "--device-ca", s.path("ca.pem")}
	if s.real { // where loopback is out of reach
		args = append(args, "--boot-url", "http://"+lab.BootAddress.String(), "--boot-address", lab.BootAddress.String())
	}
	if err := s.start("server", args...); err != nil {
		return err
	}
	return s.ready(ctx, "server", func() bool {
		resp, err := http.Get("http://" + s.ports.api + "/healthz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusNoContent
	})
}

func (s *stack) ready(ctx context.Context, name string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	died := false
	err := until(ctx, func() bool {
		died = !s.alive(name)
		return died || ok()
	})
	if err == nil && !died {
		return nil
	}
	return &fault.Error{Kind: fault.Internal, Where: s.path(name + ".log"), What: "the " + name + " did not start", Evidence: lastLine(s.path(name + ".log"))}
}

func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// down stops both parts, the server first so that it does not see its data centre vanish.
func (s *stack) down(ctx context.Context) error {
	return errors.Join(s.stop(ctx, "server", syscall.SIGTERM), s.stop(ctx, "lab", syscall.SIGTERM))
}

// client talks to the stack's server.
func (s *stack) client() (*client, error) {
	g := global{server: "http://" + s.ports.api, dataDir: s.path("data"), token: s.path("data/admin.token")}
	return g.client()
}
