package ovs

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"time"

	"rerack.dev/rerack/internal/child"
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
	var enter func() error
	if in != nil {
		enter = in.enter
	}
	ended, err := child.Start(cmd, enter)
	if err != nil {
		cancel()
		return fault.Wrap(err, "start "+name, "switch "+s.cfg.Name)
	}
	d := &daemon{kill: cancel, gone: make(chan struct{})}
	go func() {
		defer close(d.gone)
		if err := <-ended; ctx.Err() == nil {
			s.cfg.Logger.Error("Open vSwitch ended by itself", "switch", s.cfg.Name, "daemon", name, "err", err)
		}
	}()
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
