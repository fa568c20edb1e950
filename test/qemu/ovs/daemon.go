package ovs

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"rerack.dev/rerack/internal/fault"
)

// daemon is a process that dies with this one.
type daemon struct {
	kill context.CancelFunc
	gone chan struct{}
}

func (d *daemon) stop() {
	d.kill()
	<-d.gone
}

// killed is how long a killed daemon may take to be gone.
const killed = 10 * time.Second

// spawn starts a daemon, in a namespace if there is one, and returns once it runs.
func (s *Switch) spawn(in *namespace, name string, args ...string) error {
	ctx, cancel := context.WithCancel(context.Background())
	cmd := s.command(ctx, name, append(args, "--log-file="+s.path(name+".log"), "--no-chdir", "-vconsole:off")...)
	cmd.WaitDelay = killed
	diesWithUs(cmd)
	d := &daemon{kill: cancel, gone: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(d.gone)
		// The process has the namespace of the thread that starts it, and dies with that thread: it stays
		// this goroutine's, and ends with it when it has gone elsewhere.
		runtime.LockOSThread()
		if in == nil {
			defer runtime.UnlockOSThread()
		} else if err := in.enter(); err != nil {
			started <- err
			return
		}
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if err := cmd.Wait(); ctx.Err() == nil {
			s.cfg.Logger.Error("Open vSwitch ended by itself", "switch", s.cfg.Name, "daemon", name, "err", err)
		}
	}()
	if err := <-started; err != nil {
		cancel()
		<-d.gone
		return fault.Wrap(err, "start "+name, "switch "+s.cfg.Name)
	}
	s.daemons = append(s.daemons, d)
	return nil
}

// run runs a tool to its end.
func (s *Switch) run(ctx context.Context, name string, args ...string) error {
	cmd := s.command(ctx, name, args...)
	cmd.WaitDelay = killed
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return &fault.Error{Kind: fault.Internal, Where: "switch " + s.cfg.Name, What: "run " + name, Evidence: strings.TrimSpace(said.String()), Err: err}
	}
	return nil
}

// command keeps all that a tool writes in the switch's own directory.
func (s *Switch) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = os.Environ()
	for _, dir := range []string{"OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"} {
		cmd.Env = append(cmd.Env, dir+"="+s.cfg.Dir)
	}
	return cmd
}
