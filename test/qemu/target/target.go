// Package target runs tgtd, the Linux SCSI target daemon in user space, as the storage array of real machines.
// Nothing of it needs privilege; it ends with the process that started it.
package target

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"rerack.dev/rerack/internal/child"
	"rerack.dev/rerack/internal/fault"
	"rerack.dev/rerack/sanzoning/tgt/tgtadm"
)

// Config of a Daemon. Dir is required.
type Config struct {
	// Dir gets the management socket. Its path is short: a socket's name ends at 108 bytes.
	Dir string
	// Program is tgtd; default is what PATH has, or Debian's /usr/sbin/tgtd.
	Program string
	Volumes []Volume
}

// Volume is one target with a disk as LUN 1; LUN 0 is the target's controller.
type Volume struct {
	Target       string   // IQN
	Path         string   // of the disk's file
	User, Secret string   // CHAP; none when empty
	Rules        []string // access list to begin with; nobody when empty
}

// LUN is where a target has its disk.
const LUN = 1

// Daemon is a tgtd that runs.
type Daemon struct {
	Socket string         // of its management
	Portal netip.AddrPort // of its iSCSI service, on loopback
	stop   context.CancelFunc
	once   sync.Once
	ended  <-chan error
	// accounts are the secrets by user. The daemon knows one for each.
	accounts map[string]string
}

// answers is how long a daemon may take until it answers.
const answers = 20 * time.Second

// control numbers the management socket among those in Dir.
const control = "7"

// Start starts a daemon with its volumes. ctx bounds the start.
func Start(ctx context.Context, c Config) (_ *Daemon, err error) {
	program, err := find(c.Program)
	if err != nil {
		return nil, err
	}
	portal, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	cmd := exec.CommandContext(run, program, "-f", "-C", control, "--iscsi", "portal="+portal.String())
	cmd.Env = append(os.Environ(), "TGT_IPC_SOCKET="+filepath.Join(c.Dir, "ipc"))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	ended, err := child.Start(cmd, nil)
	if err != nil {
		stop()
		return nil, fault.Wrap(err, "start", program)
	}
	d := &Daemon{Socket: filepath.Join(c.Dir, "ipc."+control), Portal: portal, stop: stop, ended: ended, accounts: map[string]string{}}
	defer func() {
		if err != nil {
			_ = d.Close() // it failed already
		}
	}()
	if err := d.wait(ctx, &said); err != nil {
		return nil, err
	}
	for i, v := range c.Volumes {
		if err := d.add(ctx, int32(i+1), v); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func find(program string) (string, error) {
	if program != "" {
		return program, nil
	}
	for _, p := range []string{"tgtd", "/usr/sbin/tgtd"} {
		if path, err := exec.LookPath(p); err == nil {
			return path, nil
		}
	}
	return "", &fault.Error{Kind: fault.NotFound, What: "find tgtd", Next: "install the package tgt"}
}

func freePort(ctx context.Context) (netip.AddrPort, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, fault.Wrap(err, "find a free port", "for iSCSI")
	}
	defer l.Close()
	return netip.ParseAddrPort(l.Addr().String())
}

// wait waits until the daemon answers on both of its sockets.
func (d *Daemon) wait(ctx context.Context, said *bytes.Buffer) error {
	ctx, cancel := context.WithTimeout(ctx, answers)
	defer cancel()
	var dial net.Dialer
	for {
		_, err := d.Call(ctx, tgtadm.Request{Mode: tgtadm.System, Op: tgtadm.Show})
		if err == nil {
			var c net.Conn
			if c, err = dial.DialContext(ctx, "tcp", d.Portal.String()); err == nil {
				return c.Close()
			}
		}
		select {
		case end := <-d.ended:
			d.ended = closed()
			return &fault.Error{Kind: fault.Internal, Where: "tgtd", What: "start", Evidence: said.String(), Err: end}
		case <-ctx.Done():
			return &fault.Error{Kind: fault.Timeout, Where: "tgtd", What: "start", Err: err}
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func closed() <-chan error {
	c := make(chan error)
	close(c)
	return c
}

func (d *Daemon) add(ctx context.Context, tid int32, v Volume) error {
	reqs := []tgtadm.Request{{Mode: tgtadm.Target, Op: tgtadm.New, TID: tid, Params: "targetname=" + v.Target},
		{Mode: tgtadm.Device, Op: tgtadm.New, TID: tid, LUN: LUN, Params: "path=" + v.Path},
		// An initiator that has burned says no goodbye. Without this its session would stand for ever, and look
		// like a sign of life.
		{Mode: tgtadm.Target, Op: tgtadm.Update, TID: tid, Params: "nop_count=3"},
		{Mode: tgtadm.Target, Op: tgtadm.Update, TID: tid, Params: "nop_interval=1"}}
	if v.User != "" {
		if d.accounts[v.User] != v.Secret {
			reqs = append(reqs, tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.New, Params: fmt.Sprintf("user=%s,password=%s", v.User, v.Secret)})
			d.accounts[v.User] = v.Secret
		}
		reqs = append(reqs, tgtadm.Request{Mode: tgtadm.AccountMode, Op: tgtadm.Bind, TID: tid, Params: "user=" + v.User})
	}
	for _, r := range v.Rules {
		reqs = append(reqs, tgtadm.Request{Mode: tgtadm.Target, Op: tgtadm.Bind, TID: tid, Params: "initiator-address=" + r})
	}
	for _, r := range reqs {
		_, err := d.Call(ctx, r)
		if err != nil {
			return fault.Wrap(err, "add target "+v.Target, "tgtd")
		}
	}
	return nil
}

// Call sends one management request.
func (d *Daemon) Call(ctx context.Context, r tgtadm.Request) (string, error) {
	var dial net.Dialer
	c, err := dial.DialContext(ctx, "unix", d.Socket)
	if err != nil {
		return "", &fault.Error{Kind: fault.Unreachable, Where: "tgtd " + d.Socket, What: "connect", Err: err}
	}
	return tgtadm.Call(ctx, c, r)
}

// Close kills the daemon and waits for its end. It may be called again.
func (d *Daemon) Close() error {
	d.once.Do(func() {
		d.stop()
		<-d.ended
	})
	return nil
}
